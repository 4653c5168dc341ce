"""A target: its queue, its connections, and what happens while it cannot be reached."""

import asyncio
import logging
import random
import ssl
import time
from typing import Final, cast

from spoakit.apps.mirror._access_log_cy import AccessLog
from spoakit.apps.mirror._http1_cy import Connection
from spoakit.apps.mirror._pool_cy import Pool
from spoakit.apps.mirror._request_cy import (
    RefusedRequestError,
    Request,
    RequestBuilder,
    TruncatedBodyError,
)
from spoakit.apps.mirror.counters import Counters, Publisher
from spoakit.apps.mirror.settings import TargetSettings
from spoakit.logs import Throttle
from spoakit.metrics.counters import CounterRow

logger = logging.getLogger("spoakit.mirror")

# How much later than its time an overdue answer is given up, as a share of that time.
_CHECKS: Final = 20
_DRAIN_POLL: Final = 0.01
_MAX_DOUBLINGS: Final = 16


class Target:
    """Copy requests to one URL, without ever making the caller wait.

    A request goes out at once if a connection is free, and else waits in a bounded queue for one.
    Connections are opened as they are needed.

    A target that cannot be reached, or that answers nothing in the time an answer may take, gets no
    new connection for a while (`TargetSettings.min_backoff` and so on), and then only one at a time
    until it answers. Connections that work are not concerned.

    To be used in a running event loop; `aclose` ends it.
    """

    def __init__(self, settings: TargetSettings, access_log: AccessLog, row: CounterRow) -> None:
        self.settings: Final = settings
        self._counters = Counters()
        self._publisher = Publisher(row)
        self._access_log = access_log
        self._loop = asyncio.get_running_loop()
        self._throttle = Throttle(logger)
        url = settings.url
        self._builder = RequestBuilder(url.base_path.encode(), url.authority.encode())
        self._origin = url.origin.encode()
        self._ssl = ssl.create_default_context() if url.scheme == "https" else None
        self._pool = Pool(
            settings.queue_length, settings.queue_bytes, access_log, self._origin, self
        )

        self._connections: set[Connection] = set()
        self._attempts: set[asyncio.Task[None]] = set()
        self._limit = settings.connections  # of connections, for now
        self._failures = 0  # in a row
        self._closed = False
        self._failed_at = 0.0
        self._retry: asyncio.TimerHandle | None = None
        self._timer = self._loop.call_later(settings.answer_timeout / _CHECKS, self._check)

    @property
    def counters(self) -> Counters:
        """The figures as they are now."""
        self._counters.answered = self._pool.answered
        self._counters.dropped = self._pool.dropped
        return self._counters

    def copy(self, method: bytes, target: bytes, headers: bytes, binary: bool, body: bytes) -> None:
        """Send a copy of a request, now or when its turn comes.

        Args:
            method: the method.
            target: a path or a complete URL.
            headers: the fields as HAProxy sends them.
            binary: whether that is ``req.hdrs_bin`` and not ``req.hdrs``.
            body: the body.
        """
        self._counters.received += 1
        try:
            request = self._builder.build(method, target, headers, binary, body)
        except TruncatedBodyError as error:
            self._counters.truncated += 1
            self._throttle.warning(
                "truncated",
                "%s: a request is not copied: %s; see 'option http-buffer-request', "
                "tune.bufsize and max-frame-size",
                self.settings.url,
                error,
            )
        except RefusedRequestError as error:
            self._counters.refused += 1
            self._throttle.warning(
                "refused", "%s: a request is not copied: %s", self.settings.url, error
            )
        else:
            self._pool.put(request)

    async def aclose(self, timeout: float) -> None:
        """Send what is in the queue, for at most `timeout` seconds, then close the connections.

        A target that does not answer is tried once more, and not waited for after that.
        """
        if self._retry is not None:
            self._retry.cancel()
            self._end_pause()
        deadline = self._loop.time() + timeout
        try:
            while self._is_hopeful() and self._loop.time() < deadline:
                await asyncio.sleep(_DRAIN_POLL)
        finally:
            self._close()
        # Closed connections are gone when the event loop has gone round.
        await asyncio.gather(*self._attempts, return_exceptions=True)
        await asyncio.sleep(0)

    def _close(self) -> None:
        self._closed = True
        for attempt in self._attempts:
            attempt.cancel()
        for connection in list(self._connections):
            connection.close()
        self._timer.cancel()
        if self._retry is not None:
            self._retry.cancel()
        if unsent := self._pool.drop_all():
            logger.warning("%s: stopped with %d requests not sent", self.settings.url, unsent)
        self._publisher.publish(self.counters)
        logger.info("%s: %s", self.settings.url, self.counters)

    def _is_hopeful(self) -> bool:
        """Return whether waiting can still lead to an answer."""
        if self._attempts or self._pool.idle < len(self._connections):
            return True
        return self._pool.waiting > 0 and self._retry is None

    # Called by the connections.

    def on_open(self, connection: Connection) -> None:
        """Use a new connection."""
        self._connections.add(connection)
        if self._closed:
            connection.close()
        else:
            self._pool.use(connection)

    def on_closed(self, connection: Connection) -> None:
        """Replace a connection, if there is something to send."""
        self._connections.discard(connection)
        self._pool.forget(connection)
        self._open()

    def on_failure(self, connection: Connection, request: Request, error: str, stale: bool) -> None:
        """Send a request again that met the end of its connection, or log that it failed."""
        if stale and request.is_idempotent and not request.retried:
            self._counters.retried += 1
            # What is idle may have been closed as well: this one goes over a new connection, or one
            # that works right now.
            self._pool.close_idle()
            self._pool.put_back(request.as_retried())
            self._open()
            return
        self._counters.failed += 1
        result = " ".join(error.split()).encode("latin-1", "replace")
        self._access_log.write(connection, request, self._origin, result, time.perf_counter())
        if not stale and self._pool.answered_at < connection.sent_at:
            self._pause(error)

    # Called by the pool.

    def on_waiting(self) -> None:
        """Open a connection for a request that waits, if there may be one more."""
        if len(self._connections) < self._limit:
            self._open()

    def on_dropped(self) -> None:
        """Say that the queue is full."""
        self._throttle.warning(
            "dropped",
            "%s: the queue is full, the oldest request is dropped; %d so far",
            self.settings.url,
            self._pool.dropped,
        )

    def on_recovered(self, now: float) -> None:
        """Use as many connections as before."""
        self._failures = 0
        self._throttle.info(
            "recovered",
            "%s: answers again after %.1f s; %d requests wait",
            self.settings.url,
            now - self._failed_at,
            self._pool.waiting,
        )
        if self._retry is None:
            self._end_pause()

    # Connections.

    def _open(self) -> None:
        while (
            not self._closed
            and len(self._attempts) < self._pool.waiting
            and len(self._attempts) + len(self._connections) < self._limit
        ):
            attempt = self._loop.create_task(self._connect())
            self._attempts.add(attempt)
            attempt.add_done_callback(self._end_attempt)

    def _end_attempt(self, attempt: asyncio.Task[None]) -> None:
        self._attempts.discard(attempt)
        # The connection may have come and gone already, while the attempt took its place.
        self._open()

    async def _connect(self) -> None:
        url = self.settings.url
        try:
            async with asyncio.timeout(self.settings.connect_timeout):
                await self._loop.create_connection(
                    lambda: cast(asyncio.Protocol, Connection(self, self._pool)),
                    url.host,
                    url.port,
                    ssl=self._ssl,
                )
        except TimeoutError:
            self._pause(f"no connection within {self.settings.connect_timeout:g} s")
        except (OSError, UnicodeError) as error:  # the latter for a name that cannot be one
            reason = getattr(error, "strerror", None) or str(error)
            self._pause(reason)

    def _check(self) -> None:
        """Give up the answers that are overdue: one timer for all of them; publish the counts."""
        self._publisher.publish(self.counters)
        timeout = self.settings.answer_timeout
        overdue = time.perf_counter() - timeout
        for connection in list(self._connections):
            if connection.request is not None and connection.sent_at < overdue:
                connection.abort(f"no answer within {timeout:g} s")
        self._timer = self._loop.call_later(timeout / _CHECKS, self._check)

    def _pause(self, error: str) -> None:
        """Open no connection for a while: the last attempt, or all requests lately, failed."""
        if self._retry is not None or self._closed:
            return
        settings = self.settings
        pause = settings.min_backoff * 2 ** min(self._failures, _MAX_DOUBLINGS)
        pause = min(pause, settings.max_backoff) * random.uniform(0.5, 1)
        if not self._failures:
            self._failed_at = time.perf_counter()
            self._throttle.warning(
                "failed", "%s: %s; requests wait until it answers", settings.url, error
            )
        self._failures += 1
        self._pool.watch()
        self._limit = 0
        self._retry = self._loop.call_later(pause, self._end_pause)

    def _end_pause(self) -> None:
        self._retry = None
        self._limit = 1 if self._failures else self.settings.connections
        self._open()
