"""Connection pool of one target: opens connections on demand, checks and replaces them."""

import asyncio
import logging
import time
from collections.abc import Sequence
from typing import Final, cast

from spoakit.apps.mirror._request_cy import OutgoingRequest
from spoakit.apps.mirror.access_log._lines_cy import AccessLog, Response, TargetLabel
from spoakit.apps.mirror.config.schema import TargetSettings
from spoakit.apps.mirror.http._http11_cy import Connection
from spoakit.apps.mirror.http._queue_cy import RequestQueue
from spoakit.apps.mirror.http.connection_budget import ConnectionBudget
from spoakit.apps.mirror.http.connector import HTTP_2, ConnectError
from spoakit.apps.mirror.http.fallback_connector import make_connector
from spoakit.apps.mirror.http.health import Health
from spoakit.apps.mirror.http.http2_session import Http2Session
from spoakit.apps.mirror.http.interfaces import PooledConnection
from spoakit.apps.mirror.http.names import Names
from spoakit.apps.mirror.http.outcome import Outcome, Retry, Trouble
from spoakit.apps.mirror.metrics import Counters, TargetMetrics
from spoakit.logs import Throttle

logger = logging.getLogger("spoakit.mirror")

# Seconds between two log lines about odd responses, which mostly repeat.
_ODDITY_INTERVAL: Final = 60.0


class ConnectionPool:
    """Pool of connections to a target, and the queue of the requests that wait for one.

    A request is sent at once if a connection is free, and otherwise queued. HTTP/2 connections are
    opened one after the other, since many requests share one. While the target is in trouble,
    `Health` limits the connections.

    Create it in a running event loop; `close` ends it.

    Args:
        settings: the target's settings.
        access_log: gets a line for each response and failure.
        counters: the target's counters.
        metrics: the target's metrics, for the times of responses.
        budget: the budget of the connections to all targets.
        names: the worker's cache of addresses.
        http: the allowed protocols, as in `Connector`.
    """

    def __init__(
        self,
        settings: TargetSettings,
        access_log: AccessLog,
        counters: Counters,
        metrics: TargetMetrics,
        budget: ConnectionBudget,
        names: Names,
        http: Sequence[str],
    ) -> None:
        self._settings = settings
        self._access_log = access_log
        self._counters = counters
        self._loop = asyncio.get_running_loop()
        self._throttle = Throttle(logger)
        self._oddities = Throttle(logger, _ODDITY_INTERVAL)
        self._label = TargetLabel(settings.name, settings.url.origin)
        self._connector = make_connector(settings, http, names)
        self._shares = HTTP_2 in http  # until a connection turns out to be HTTP/1.1
        queue = settings.queue
        self._queue = RequestQueue(
            queue.length,
            queue.bytes,
            queue.overflow == "drop-newest",
            queue.max_age,
            access_log,
            self._label,
            self,
            metrics.first_byte,
            metrics.response,
        )
        self.health: Final = Health(settings.name, settings.timeouts, self._open)
        self._connections: set[PooledConnection] = set()
        self._attempts: set[asyncio.Task[None]] = set()
        self._closed = False
        self._budget = budget
        budget.join(self._count)

    @property
    def queue(self) -> RequestQueue:
        """The queue of requests and free slots."""
        return self._queue

    @property
    def count(self) -> int:
        """The number of open connections."""
        return len(self._connections)

    @property
    def in_flight(self) -> int:
        """The number of requests in flight."""
        return sum(connection.in_flight for connection in self._connections)

    @property
    def is_hopeful(self) -> bool:
        """There are requests that may still get a response."""
        if self._attempts or self.in_flight:
            return True
        return self._queue.waiting > 0 and not self.health.is_pausing

    def check(self) -> None:
        """Fail overdue requests, and close connections that are too old or too long idle."""
        now = time.perf_counter()
        self._queue.expire(now)
        settings, timeouts = self._settings, self._settings.timeouts
        for connection in list(self._connections):
            connection.expire(now, timeouts.first_byte, timeouts.total)
            unused = 0.0 if connection.in_flight else now - connection.idle_since
            if (
                unused > min(settings.keep_alive, connection.idle_limit)
                or now - connection.opened_at > settings.lifetime
            ):
                connection.retire()
        # Other targets may have closed connections, which leaves room in the budget.
        self._open()

    async def close(self) -> int:
        """Close all connections; return the number of requests not sent."""
        self._closed = True
        self._budget.leave(self._count)
        for attempt in self._attempts:
            attempt.cancel()
        for connection in list(self._connections):
            connection.close()
        self.health.close()
        unsent = self._queue.drop_all()
        # The event loop ends closed connections in its next iteration.
        await asyncio.gather(*self._attempts, return_exceptions=True)
        await asyncio.sleep(0)
        return unsent

    # Called by the connections.

    @property
    def is_probing(self) -> bool:
        """The target is in trouble: one request at a time is enough."""
        return self.health.is_probing

    def on_open(self, connection: PooledConnection) -> None:
        """Use a new connection."""
        self._connections.add(connection)
        self._count_connections()
        if self._closed:
            connection.close()
        elif isinstance(connection, Connection):
            self._queue.add_slot(connection)

    def on_closed(self, connection: PooledConnection, outcome: Outcome | None) -> None:
        """Replace a connection, if requests wait."""
        self._connections.discard(connection)
        self._count_connections()
        if isinstance(connection, Connection):
            self._queue.remove_slot(connection)
        if outcome is not None and outcome.trouble is not None:
            self._record_failure(outcome.trouble, outcome.text)
        self._open()

    def on_odd(self, text: str) -> None:
        """Count an odd response, and log it at most once a minute."""
        self._counters.odd += 1
        self._oddities.warning(
            "odd",
            "%s: an odd response: %s; it counts as a response, and may cost its connection; "
            "%d so far",
            self._settings.name,
            text,
            self._counters.odd,
            extra={"target": self._settings.name},
        )

    def on_failure(self, response: Response, request: OutgoingRequest, outcome: Outcome) -> None:
        """Retry a request that the target did not act on, or log its failure."""
        retry = outcome.retry
        if retry == Retry.ALWAYS or (retry == Retry.ONCE and not request.retried):
            self._counters.retried += 1
            # The target may have closed the idle connections as well, so the retry needs a new one.
            self._queue.close_idle()
            self._queue.put_back(request if retry == Retry.ALWAYS else request.as_retried())
            self._open()
            return
        self._counters.failed += 1
        self._counters.failures[outcome.reason] += 1
        now = time.perf_counter()
        if outcome.is_response:
            self._queue.record_alive(now)
        self._access_log.write(response, request, self._label, outcome.log_text, now)
        # A head that was received, or a later response to another request, shows that the target
        # works.
        is_unheard = not response.status and self._queue.last_response_at < response.sent_at
        if outcome.trouble is not None and is_unheard:
            self._record_failure(outcome.trouble, outcome.text)

    # Called by the queue, and by a session without room for a request of the queue.

    def on_waiting(self) -> None:
        """Open a connection for a request that waits, if one more is allowed."""
        if len(self._connections) < self._settings.connections:
            self._open()

    def on_dropped(self, is_newest: bool) -> None:
        """Log a request dropped from the full queue."""
        which = "newest" if is_newest else "oldest"
        self._throttle.warning(
            "dropped",
            "%s: the queue is full, the %s request is dropped; %d so far",
            self._settings.name,
            which,
            self._queue.queue_full,
            extra={"target": self._settings.name},
        )

    def on_too_old(self, count: int) -> None:
        """Log requests dropped because they waited for too long."""
        self._throttle.warning(
            "too old",
            "%s: %d requests have waited for longer than queue.max-age (%g s), and are dropped; "
            "%d so far",
            self._settings.name,
            count,
            self._settings.queue.max_age,
            self._queue.too_old,
            extra={"target": self._settings.name},
        )

    def on_recovered(self, now: float) -> None:
        """Open connections again: the trouble has ended."""
        self.health.record_response(now, self._queue.waiting)
        self._open()

    # Opening.

    def _record_failure(self, trouble: Trouble, text: str) -> None:
        if not self._closed:
            self._queue.watch()
            self.health.record_failure(trouble, text)

    def _open(self) -> None:
        limit = self.health.limit(self._settings.connections)
        wanted = min(self._queue.waiting, 1 if self._shares else limit)
        while not self._closed and len(self._attempts) < wanted and self._count() < limit:
            if not self._budget.has_room(self._count()):
                self._on_no_room()
                return
            attempt = self._loop.create_task(self._connect())
            self._attempts.add(attempt)
            attempt.add_done_callback(self._end_attempt)

    def _count_connections(self) -> None:
        """Let the queue call `on_waiting` only while more connections are allowed."""
        limit = self._settings.connections
        self._queue.calls_for_connections = len(self._connections) < limit

    def _count(self) -> int:
        return len(self._attempts) + len(self._connections)

    def _on_no_room(self) -> None:
        """Log that the budget has no room for a connection; `check` tries again."""
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
        # The connection may have been opened and closed while its attempt was still counted.
        self._open()

    async def _connect(self) -> None:
        sessions: list[Http2Session] = []

        def make(http: str) -> asyncio.Protocol:
            self._shares = http == HTTP_2
            if not self._shares:
                return cast(
                    asyncio.Protocol, Connection(self, self._queue, self._connector.forward)
                )
            sessions.append(Http2Session(self, self._queue))
            return sessions[0].protocol

        try:
            await self._connector.connect(make)
            if sessions and (error := await sessions[0].opened(self._settings.timeouts.connect)):
                raise ConnectError(error, "protocol")
        except ConnectError as error:
            self._counters.connect_failures += 1
            self._counters.failed_attempts[error.reason] += 1
            self._record_failure(error.trouble, str(error))
