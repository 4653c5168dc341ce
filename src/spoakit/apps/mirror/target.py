"""A target: its queue, its connections, and what happens while it cannot be reached."""

import asyncio
import logging
import random
import ssl
import time
from collections import deque
from typing import Final, cast

from spoakit.apps.mirror._http1_cy import Connection
from spoakit.apps.mirror._request_cy import (
    RefusedRequestError,
    Request,
    TruncatedBodyError,
    build_request,
)
from spoakit.apps.mirror.access_log import AccessLog
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
        self.counters: Final = Counters()
        self._publisher = Publisher(self.counters, row)
        self._access_log = access_log
        self._loop = asyncio.get_running_loop()
        self._throttle = Throttle(logger)
        url = settings.url
        self._base_path = url.base_path.encode()
        self._authority = url.authority.encode()
        self._origin = url.origin
        self._ssl = ssl.create_default_context() if url.scheme == "https" else None

        self._queue: deque[Request] = deque()
        self._queue_bytes = 0
        self._connections: set[Connection] = set()
        self._idle: list[Connection] = []  # the last used comes first
        self._attempts: set[asyncio.Task[None]] = set()
        self._limit = settings.connections  # of connections, for now
        self._failures = 0  # in a row
        self._closed = False
        self._failed_at = self._answered_at = 0.0
        self._retry: asyncio.TimerHandle | None = None
        self._timer = self._loop.call_later(settings.answer_timeout / _CHECKS, self._check)

    def copy(self, method: bytes, target: bytes, headers: bytes, binary: bool, body: bytes) -> None:
        """Send a copy of a request, now or when its turn comes.

        Args:
            method: the method.
            target: a path or a complete URL.
            headers: the fields as HAProxy sends them.
            binary: whether that is ``req.hdrs_bin`` and not ``req.hdrs``.
            body: the body.
        """
        self.counters.received += 1
        try:
            request = build_request(
                method, target, headers, binary, body, self._base_path, self._authority
            )
        except TruncatedBodyError as error:
            self.counters.truncated += 1
            self._throttle.warning(
                "truncated",
                "%s: a request is not copied: %s; see 'option http-buffer-request', "
                "tune.bufsize and max-frame-size",
                self.settings.url,
                error,
            )
        except RefusedRequestError as error:
            self.counters.refused += 1
            self._throttle.warning(
                "refused", "%s: a request is not copied: %s", self.settings.url, error
            )
        else:
            if self._idle:
                self._idle.pop().send(request)
            else:
                self._enqueue(request)

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
        self.counters.dropped += len(self._queue)
        if self._queue:
            logger.warning(
                "%s: stopped with %d requests not sent", self.settings.url, len(self._queue)
            )
            self._queue.clear()
        self._publisher.publish()
        logger.info("%s: %s", self.settings.url, self.counters)

    def _is_hopeful(self) -> bool:
        """Return whether waiting can still lead to an answer."""
        if self._attempts or len(self._idle) < len(self._connections):
            return True
        return bool(self._queue) and self._retry is None

    # Called by the connections.

    def on_open(self, connection: Connection) -> None:
        """Use a new connection."""
        self._connections.add(connection)
        if self._closed:
            connection.close()
        else:
            self._use(connection)

    def on_answer(
        self, connection: Connection, request: Request, now: float, ready: bool
    ) -> Request | None:
        """Log an answer, which also shows that the target works, and say what to send next."""
        self.counters.answered += 1
        self._answered_at = now
        if self._failures:
            self._recover()
        self._access_log.write(connection, request, self._origin, "ok", now)
        if not ready:
            return None
        if self._queue:
            return self._dequeue()
        self._idle.append(connection)
        return None

    def on_closed(self, connection: Connection) -> None:
        """Replace a connection, if there is something to send."""
        self._connections.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        self._open()

    def on_failure(self, connection: Connection, request: Request, error: str, stale: bool) -> None:
        """Send a request again that met the end of its connection, or log that it failed."""
        if stale and request.is_idempotent and not request.retried:
            self.counters.retried += 1
            # What is idle may have been closed as well: this one goes over a new connection, or one
            # that works right now.
            for idle in self._idle[:]:
                idle.close()
            self._queue.appendleft(request.as_retried())
            self._queue_bytes += len(request.wire)
            self._open()
            return
        self.counters.failed += 1
        self._access_log.write(connection, request, self._origin, error, time.perf_counter())
        if not stale and self._answered_at < connection.sent_at:
            self._pause(error)

    # The queue.

    def _use(self, connection: Connection) -> None:
        if self._queue:
            connection.send(self._dequeue())
        else:
            self._idle.append(connection)

    def _enqueue(self, request: Request) -> None:
        self._queue.append(request)
        self._queue_bytes += len(request.wire)
        if (
            len(self._queue) > self.settings.queue_length
            or self._queue_bytes > self.settings.queue_bytes
        ):
            self._drop()
        if len(self._connections) < self._limit:
            self._open()

    def _dequeue(self) -> Request:
        request = self._queue.popleft()
        self._queue_bytes -= len(request.wire)
        return request

    def _drop(self) -> None:
        while (
            len(self._queue) > self.settings.queue_length
            or self._queue_bytes > self.settings.queue_bytes
        ):
            self._dequeue()
            self.counters.dropped += 1
            self._throttle.warning(
                "dropped",
                "%s: the queue is full, the oldest request is dropped; %d so far",
                self.settings.url,
                self.counters.dropped,
            )

    # Connections.

    def _open(self) -> None:
        while (
            not self._closed
            and len(self._attempts) < len(self._queue)
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
                    lambda: cast(asyncio.Protocol, Connection(self)),
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
        self._publisher.publish()
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
        self._limit = 0
        self._retry = self._loop.call_later(pause, self._end_pause)

    def _end_pause(self) -> None:
        self._retry = None
        self._limit = 1 if self._failures else self.settings.connections
        self._open()

    def _recover(self) -> None:
        self._failures = 0
        self._throttle.info(
            "recovered",
            "%s: answers again after %.1f s; %d requests wait",
            self.settings.url,
            self._answered_at - self._failed_at,
            len(self._queue),
        )
        if self._retry is None:
            self._end_pause()
