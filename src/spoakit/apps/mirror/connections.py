"""The connections to a target: opened as they are needed, watched, and replaced."""

import asyncio
import logging
import random
import time
from collections.abc import Sequence
from typing import Final, cast

from spoakit.apps.mirror._access_log_cy import AccessLog, Answer
from spoakit.apps.mirror._http1_cy import Connection
from spoakit.apps.mirror._pool_cy import Pool
from spoakit.apps.mirror._request_cy import Request
from spoakit.apps.mirror.connection_budget import ConnectionBudget
from spoakit.apps.mirror.dialer import HTTP_2, Dialer, DialError
from spoakit.apps.mirror.http2 import Retry
from spoakit.apps.mirror.metrics import Counters, Failure, TargetMetrics
from spoakit.apps.mirror.settings import TargetSettings
from spoakit.apps.mirror.streams import Streams
from spoakit.logs import Throttle

logger = logging.getLogger("spoakit.mirror")

_MAX_DOUBLINGS: Final = 16
# Seconds between two lines about odd responses; what they say hardly changes.
_ODDITY_INTERVAL: Final = 60.0


class Connections:
    """Carry requests to a target.

    A request goes out at once if a connection is free, and else waits in a bounded queue for one.
    Connections are opened as they are needed: of HTTP/2, one after the other, since many requests
    share one.

    A target that cannot be reached, or that answers nothing in the time an answer may take, gets no
    new connection for a while (`Timeouts.min_backoff` and so on), and then only one at a time
    until it answers. Connections that work are not concerned.

    To be used in a running event loop; `close` ends it.

    Args:
        settings: the target's.
        access_log: gains a line for each answer and failure.
        counters: the target's.
        metrics: the target's, for the times of responses.
        budget: of the connections to all targets.
        http: the protocols that may be spoken, as in `Dialer`.
    """

    def __init__(
        self,
        settings: TargetSettings,
        access_log: AccessLog,
        counters: Counters,
        metrics: TargetMetrics,
        budget: ConnectionBudget,
        http: Sequence[str],
    ) -> None:
        self._settings = settings
        self._access_log = access_log
        self._counters = counters
        self._loop = asyncio.get_running_loop()
        self._throttle = Throttle(logger)
        self._oddities = Throttle(logger, _ODDITY_INTERVAL)
        self._origin = settings.url.origin.encode()
        self._dialer = Dialer(settings, http)
        self._shares = HTTP_2 in http  # until a connection shows that the target cannot
        queue = settings.queue
        self._pool = Pool(
            queue.length,
            queue.bytes,
            queue.overflow == "drop-newest",
            queue.max_age,
            access_log,
            self._origin,
            self,
            metrics.first_byte,
            metrics.response,
        )
        self.put: Final = self._pool.put
        self._open_ones: set[Connection | Streams] = set()
        self._attempts: set[asyncio.Task[None]] = set()
        self._limit = settings.pool.connections  # for now
        self._failures = 0  # in a row
        self._closed = False
        self._failed_at = 0.0
        self._retry: asyncio.TimerHandle | None = None
        self._budget = budget
        budget.join(self._count)

    @property
    def pool(self) -> Pool:
        """The requests that wait, and the connections that are free."""
        return self._pool

    @property
    def count(self) -> int:
        """The number of open connections."""
        return len(self._open_ones)

    @property
    def in_flight(self) -> int:
        """The number of requests that have been sent and wait for their response."""
        return sum(
            connection.protocol.in_flight
            if isinstance(connection, Streams)
            else not connection.is_idle
            for connection in self._open_ones
        )

    @property
    def is_hopeful(self) -> bool:
        """Whether waiting can still lead to an answer."""
        if self._attempts or not all(connection.is_idle for connection in self._open_ones):
            return True
        return self._pool.waiting > 0 and self._retry is None

    def check(self) -> None:
        """Give up overdue answers, and connections that are too old or too long unused."""
        now = time.perf_counter()
        self._pool.expire(now)
        pool, timeouts = self._settings.pool, self._settings.timeouts
        for connection in list(self._open_ones):
            connection.expire(now, timeouts.first_byte, timeouts.total)
            unused = now - connection.idle_since if connection.is_idle else 0.0
            if (
                unused > min(pool.idle, connection.idle_limit)
                or now - connection.opened_at > pool.lifetime
            ):
                connection.retire()
        # There may be room by now that others have left.
        self._open()

    def try_again(self) -> None:
        """Try to reach a target that failed without waiting any longer."""
        if self._retry is not None:
            self._retry.cancel()
            self._end_pause()

    async def close(self) -> int:
        """Close all connections; return how many requests were waiting."""
        self._closed = True
        self._budget.leave(self._count)
        for attempt in self._attempts:
            attempt.cancel()
        for connection in list(self._open_ones):
            connection.close()
        if self._retry is not None:
            self._retry.cancel()
        unsent = self._pool.drop_all()
        # Closed connections are gone when the event loop has gone round.
        await asyncio.gather(*self._attempts, return_exceptions=True)
        await asyncio.sleep(0)
        return unsent

    # Called by the connections.

    @property
    def is_probing(self) -> bool:
        """Whether the target failed, and has not answered since."""
        return self._failures > 0

    def on_open(self, connection: Connection | Streams) -> None:
        """Use a new connection."""
        self._open_ones.add(connection)
        if self._closed:
            connection.close()
        elif isinstance(connection, Connection):
            self._pool.use(connection)

    def on_closed(self, connection: Connection | Streams) -> None:
        """Replace a connection, if there is something to send."""
        self._open_ones.discard(connection)
        if isinstance(connection, Connection):
            self._pool.forget(connection)
        elif connection.refusal is not None:
            # It takes connections, and no requests: the next one is no better if it comes at once.
            self._pause(connection.refusal)
        self._open()

    def on_odd(self, connection: Connection | Streams, what: str) -> None:
        """Count an odd response, which is one all the same, and say so once a minute."""
        self._counters.odd += 1
        self._oddities.warning(
            "odd",
            "%s: an odd response: %s; it counts as a response, and may cost its connection; "
            "%d so far",
            self._settings.name,
            what,
            self._counters.odd,
            extra={"target": self._settings.name},
        )

    def on_failure(
        self, answer: Answer, request: Request, error: Failure, stale: bool, retry: Retry | bool
    ) -> None:
        """Send a request again that was not acted on, or log that it failed."""
        if retry == Retry.ALWAYS or (retry and not request.retried):
            self._counters.retried += 1
            # What is idle may have been closed as well: this one goes over a new connection.
            self._pool.close_idle()
            self._pool.put_back(request if retry == Retry.ALWAYS else request.as_retried())
            self._open()
            return
        self._counters.failed += 1
        self._counters.failures[error.reason] += 1
        result = " ".join(error.split()).encode("latin-1", "replace")
        self._access_log.write(answer, request, self._origin, result, time.perf_counter())
        # A target whose head of a response has been read is there, whatever came behind it.
        if not stale and not answer.status and self._pool.answered_at < answer.sent_at:
            self._pause(error)

    # Called by the pool, and by a connection that has no room for what the pool gave it.

    def on_waiting(self) -> None:
        """Open a connection for a request that waits, if there may be one more."""
        if len(self._open_ones) < self._limit:
            self._open()

    def on_dropped(self, is_newest: bool) -> None:
        """Say that the queue is full."""
        which = "newest" if is_newest else "oldest"
        self._throttle.warning(
            "dropped",
            "%s: the queue is full, the %s request is dropped; %d so far",
            self._settings.name,
            which,
            self._pool.queue_full,
            extra={"target": self._settings.name},
        )

    def on_too_old(self, count: int) -> None:
        """Say that requests have waited for too long."""
        self._throttle.warning(
            "too old",
            "%s: %d requests have waited for longer than queue.max-age (%g s), and are dropped; "
            "%d so far",
            self._settings.name,
            count,
            self._settings.queue.max_age,
            self._pool.too_old,
            extra={"target": self._settings.name},
        )

    def on_recovered(self, now: float) -> None:
        """Use as many connections as before."""
        self._failures = 0
        self._throttle.info(
            "recovered",
            "%s: answers again after %.1f s; %d requests wait",
            self._settings.name,
            now - self._failed_at,
            self._pool.waiting,
            extra={"target": self._settings.name},
        )
        if self._retry is None:
            self._end_pause()

    # Opening.

    def _open(self) -> None:
        wanted = min(self._pool.waiting, 1 if self._shares else self._limit)
        while not self._closed and len(self._attempts) < wanted and self._count() < self._limit:
            if not self._budget.has_room(self._count()):
                self._on_no_room()
                return
            attempt = self._loop.create_task(self._connect())
            self._attempts.add(attempt)
            attempt.add_done_callback(self._end_attempt)

    def _count(self) -> int:
        return len(self._attempts) + len(self._open_ones)

    def _on_no_room(self) -> None:
        """Say that there is no room for one more connection; `check` tries again."""
        self._throttle.warning(
            "budget",
            "%s: no more connections for now: those to all targets are %d, and the other open "
            "files that the limit allows are kept for HAProxy; raise it (ulimit -n), or lower "
            "connections",
            self._settings.name,
            self._budget.limit,
            extra={"target": self._settings.name},
        )

    def _end_attempt(self, attempt: asyncio.Task[None]) -> None:
        self._attempts.discard(attempt)
        # The connection may have come and gone already, while the attempt took its place.
        self._open()

    async def _connect(self) -> None:
        streams: list[Streams] = []

        def make(http: str) -> asyncio.Protocol:
            self._shares = http == HTTP_2
            if not self._shares:
                return cast(asyncio.Protocol, Connection(self, self._pool))
            streams.append(Streams(self, self._pool))
            return streams[0].protocol

        try:
            await self._dialer.connect(make)
            if streams and (error := await streams[0].opened(self._settings.timeouts.connect)):
                raise DialError(error, "protocol")
        except DialError as error:
            self._counters.connect_failures += 1
            self._counters.failed_attempts[error.reason] += 1
            self._pause(str(error))

    def _pause(self, error: str) -> None:
        """Open no connection for a while: the last attempt, or all requests lately, failed."""
        if self._retry is not None or self._closed:
            return
        timeouts = self._settings.timeouts
        pause = timeouts.min_backoff * 2 ** min(self._failures, _MAX_DOUBLINGS)
        pause = min(pause, timeouts.max_backoff) * random.uniform(0.5, 1)
        if not self._failures:
            self._failed_at = time.perf_counter()
            self._throttle.warning(
                "failed",
                "%s: %s; requests wait until it answers",
                self._settings.name,
                error,
                extra={"target": self._settings.name},
            )
        self._failures += 1
        self._pool.watch()
        self._limit = 0
        self._retry = self._loop.call_later(pause, self._end_pause)

    def _end_pause(self) -> None:
        self._retry = None
        self._limit = 1 if self._failures else self._settings.pool.connections
        self._open()
