# cython: wraparound=False
"""A target's requests that wait, and the connections that are free for them. Hot code.

Plain Python that compiles to C (see ``spoakit._cython``).
"""

from __future__ import annotations

from collections import deque
from time import perf_counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from spoakit import _cython as cython
    from spoakit.apps.mirror._request_cy import OutgoingRequest
    from spoakit.apps.mirror.access_log._lines_cy import AccessLog, Response, TargetLabel
    from spoakit.apps.mirror.http.interfaces import QueueListener
    from spoakit.metrics._histogram_cy import HistogramCells
else:
    try:
        import cython
    except ModuleNotFoundError:
        from spoakit import _cython as cython
    if cython.compiled:
        from cython.cimports.spoakit.apps.mirror._request_cy import OutgoingRequest
        from cython.cimports.spoakit.apps.mirror.access_log._lines_cy import (
            AccessLog,
            Response,
            TargetLabel,
        )
        from cython.cimports.spoakit.metrics._histogram_cy import HistogramCells
    else:
        from spoakit.apps.mirror._request_cy import OutgoingRequest
        from spoakit.apps.mirror.access_log._lines_cy import AccessLog, Response, TargetLabel
        from spoakit.metrics._histogram_cy import HistogramCells

COMPILED: bool = cython.compiled


@cython.cclass
class RequestSlot(Response):
    """Room for one request at a time, and what there is of its response.

    That is a connection of HTTP/1.1, or a stream of HTTP/2.
    """

    @cython.ccall
    def send(self, request: OutgoingRequest) -> object:
        """Send a request."""
        raise NotImplementedError("what derives from it sends")

    def close(self) -> None:
        """Close the connection, unless others use it."""
        raise NotImplementedError("what derives from it closes")


@cython.final
@cython.cclass
class RequestQueue:
    """Give each request to a free slot, or have it wait for one in a bounded queue.

    Args:
        max_length: how many requests may wait.
        max_bytes: their size altogether.
        drops_newest: what a full queue drops: the request that comes, and not the oldest.
        max_age: the seconds that a request may wait; 0 for any time.
        access_log: gains a line for each response.
        label: the target, for the log.
        listener: is told what happens.
        first_byte: counts the time to the first byte of each response.
        response: counts the time to the end of each response.

    Attributes:
        calls_for_connections: whether the listener is told of requests that wait, since there may
            be more connections.
    """

    if not cython.compiled:
        calls_for_connections: bool
        _max_length: int
        _max_bytes: int
        _drops_newest: bool
        _max_age: float
        _access_log: AccessLog
        _label: TargetLabel
        _listener: QueueListener
        _queue: deque[OutgoingRequest]
        # Those that met the end of their connections, and are not to meet that of another one.
        _again: deque[OutgoingRequest]
        _queue_bytes: int
        _idle: list[RequestSlot]
        _first_byte: HistogramCells
        _response: HistogramCells
        _by_class: list[int]
        _queue_full: int
        _too_old: int
        _answered: int
        _answered_at: float
        _dropped: int
        _watched: bool

    def __init__(
        self,
        max_length: int,
        max_bytes: int,
        drops_newest: bool,
        max_age: float,
        access_log: AccessLog,
        label: TargetLabel,
        listener: QueueListener,
        first_byte: HistogramCells,
        response: HistogramCells,
    ) -> None:
        self._first_byte = first_byte
        self._response = response
        self._by_class = [0] * 10
        self._queue_full = self._too_old = 0
        self.calls_for_connections = True
        self._watched = False
        self._max_length = max_length
        self._max_bytes = max_bytes
        self._drops_newest = drops_newest
        self._max_age = max_age
        self._access_log = access_log
        self._label = label
        self._listener = listener
        self._queue = deque()
        self._again = deque()
        self._queue_bytes = 0
        self._idle = []  # the last used comes last, and first again
        self._answered = self._dropped = 0
        self._answered_at = 0.0

    @property
    def waiting(self) -> int:
        """How many requests wait."""
        return len(self._queue) + len(self._again)

    @property
    def waiting_bytes(self) -> int:
        """The size of the requests that wait in the queue."""
        return self._queue_bytes

    @property
    def queue_full(self) -> int:
        """How many requests the full queue did not hold."""
        return self._queue_full

    @property
    def too_old(self) -> int:
        """How many requests waited for too long."""
        return self._too_old

    @property
    def by_class(self) -> list[int]:
        """How many responses there were by the class of their status, at its number."""
        return self._by_class

    def oldest(self, now: float) -> float:
        """Return how many seconds the oldest request of the queue has waited."""
        return now - self._queue[0].waiting_since if self._queue else 0.0

    @property
    def answered(self) -> int:
        """How many responses there were."""
        return self._answered

    @property
    def answered_at(self) -> float:
        """When the last one was complete, on ``time.perf_counter()``'s clock."""
        return self._answered_at

    @property
    def dropped(self) -> int:
        """How many requests were dropped."""
        return self._dropped

    def watch(self) -> None:
        """Let the connector know of the next response."""
        self._watched = True

    @cython.ccall
    def put(self, request: OutgoingRequest) -> object:
        """Send a request now, or when its turn comes."""
        slot: RequestSlot
        if self._idle:
            slot = self._idle.pop()
            slot.send(request)
            return None
        size: cython.longlong = len(request.wire)
        if size > self._max_bytes and self._queue:
            # Room for it would cost all others, and not be enough.
            self._count_drop(True)
            return None
        request.waiting_since = perf_counter()
        self._queue.append(request)
        self._queue_bytes += size
        while (len(self._queue) > self._max_length or self._queue_bytes > self._max_bytes) and len(
            self._queue
        ) > 1:
            self._drop()
        if self.calls_for_connections:
            self._listener.on_waiting()
        return None

    def put_back(self, request: OutgoingRequest) -> None:
        """Have a request wait for a new slot, which it gets before all others.

        There are no more of these than there were slots, and they count for no limit.
        """
        self._again.append(request)

    def use(self, slot: RequestSlot) -> None:
        """Send the next request in a new slot, or keep it for one."""
        self.expire(perf_counter())
        if self._again:
            slot.send(self._again.popleft())
        elif self._queue:
            slot.send(self._take())
        else:
            self._idle.append(slot)

    def forget(self, slot: RequestSlot) -> None:
        """Use a slot no more."""
        if slot in self._idle:
            self._idle.remove(slot)

    def close_idle(self) -> None:
        """Close the connections that are free."""
        for slot in self._idle[:]:
            slot.close()

    @cython.ccall
    def expire(self, now: cython.double) -> object:
        """Drop the requests that have waited for longer than they may."""
        count: cython.Py_ssize_t = 0
        if self._max_age > 0:
            while self._queue and now - self._queue[0].waiting_since > self._max_age:
                self._take()
                count += 1
        if count > 0:
            self._too_old += count
            self._dropped += count
            self._listener.on_too_old(count)
        return None

    def drop_all(self) -> int:
        """Drop what waits; return how many requests that were."""
        count: cython.Py_ssize_t = self.waiting
        self._dropped += count
        self._queue.clear()
        self._again.clear()
        self._queue_bytes = 0
        return count

    @cython.ccall
    def on_response(
        self, slot: RequestSlot, request: OutgoingRequest, now: cython.double, ready: cython.bint
    ) -> OutgoingRequest | None:
        """Log a response, which also shows that the target works.

        Returns:
            Where the slot is ready for it, the request to send next; with None the slot is
            kept for one that comes later.
        """
        self._answered += 1
        self._answered_at = now
        self._by_class[slot.status // 100 % 10] += 1
        self._first_byte._observe((slot.first_byte_at or now) - slot.sent_at, 1)
        self._response._observe(now - slot.sent_at, 1)
        if self._watched:
            self._recover(now)
        self._access_log.write(slot, request, self._label, b"ok", now)
        if not ready:
            return None
        if self._queue:
            self.expire(now)
        if self._queue:
            return self._take()
        self._idle.append(slot)
        return None

    def record_alive(self, now: float) -> None:
        """Record that the target works, by a response that does not count as one."""
        self._answered_at = now
        if self._watched:
            self._recover(now)

    @cython.cfunc
    def _recover(self, now: cython.double) -> object:
        self._watched = False
        self._listener.on_recovered(now)
        return None

    @cython.cfunc
    def _drop(self) -> object:
        if self._drops_newest:
            request: OutgoingRequest = self._queue.pop()
            self._queue_bytes -= len(request.wire)
        else:
            self._take()
        self._count_drop(self._drops_newest)
        return None

    @cython.cfunc
    def _count_drop(self, is_newest: cython.bint) -> object:
        self._queue_full += 1
        self._dropped += 1
        self._listener.on_dropped(is_newest)
        return None

    @cython.cfunc
    def _take(self) -> OutgoingRequest:
        request: OutgoingRequest = self._queue.popleft()
        self._queue_bytes -= len(request.wire)
        return request
