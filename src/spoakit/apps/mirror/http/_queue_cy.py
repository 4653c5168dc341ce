# cython: wraparound=False
"""Queue of a target's requests, and the free slots of its connections. Hot code.

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
    """Slot for one request at a time, and its response.

    It is an HTTP/1.1 connection or an HTTP/2 stream.
    """

    @cython.ccall
    def send(self, request: OutgoingRequest) -> object:
        """Send a request."""
        raise NotImplementedError("derived classes implement send")

    def close(self) -> None:
        """Close the connection, unless other slots share it."""
        raise NotImplementedError("derived classes implement close")


@cython.final
@cython.cclass
class RequestQueue:
    """Bounded queue that gives each request to a free slot, now or later.

    Args:
        max_length: the largest number of requests that wait.
        max_bytes: the largest total size of the requests that wait.
        drops_newest: whether a full queue drops the new request, not the oldest one.
        max_age: the seconds that a request may wait; 0 for no limit.
        access_log: gets a line for each response.
        label: the target, for the access log.
        listener: called for waiting and dropped requests, and when the target works again.
        first_byte: histogram of the times to the first byte of responses.
        response: histogram of the times to the end of responses.

    Attributes:
        calls_for_connections: whether to call the listener for requests that wait, since it may
            open more connections.
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
        # Requests to retry on a *new* connection, because theirs was closed before a response.
        _retries: deque[OutgoingRequest]
        _queue_bytes: int
        _idle: list[RequestSlot]
        _first_byte: HistogramCells
        _response: HistogramCells
        _by_class: list[int]
        _queue_full: int
        _too_old: int
        _responses: int
        _last_response_at: float
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
        self._retries = deque()
        self._queue_bytes = 0
        self._idle = []  # a stack: the slot used last is used first
        self._responses = self._dropped = 0
        self._last_response_at = 0.0

    @property
    def waiting(self) -> int:
        """The number of requests that wait."""
        return len(self._queue) + len(self._retries)

    @property
    def waiting_bytes(self) -> int:
        """The total size of the requests in the queue, without retries."""
        return self._queue_bytes

    @property
    def queue_full(self) -> int:
        """The number of requests dropped because the queue was full."""
        return self._queue_full

    @property
    def too_old(self) -> int:
        """The number of requests dropped because they waited for too long."""
        return self._too_old

    @property
    def by_class(self) -> list[int]:
        """The numbers of responses, by the first digit of the status."""
        return self._by_class

    def oldest(self, now: float) -> float:
        """Return the seconds that the oldest request of the queue has waited."""
        return now - self._queue[0].waiting_since if self._queue else 0.0

    @property
    def responses(self) -> int:
        """The number of complete responses."""
        return self._responses

    @property
    def last_response_at(self) -> float:
        """The time of the last complete response, on ``time.perf_counter()``'s clock."""
        return self._last_response_at

    @property
    def dropped(self) -> int:
        """The number of requests dropped, for any reason."""
        return self._dropped

    def watch(self) -> None:
        """Call the listener's `on_recovered` at the next response."""
        self._watched = True

    @cython.ccall
    def put(self, request: OutgoingRequest) -> object:
        """Send a request in a free slot, or queue it."""
        slot: RequestSlot
        if self._idle:
            slot = self._idle.pop()
            slot.send(request)
            return None
        size: cython.longlong = len(request.wire)
        if size > self._max_bytes and self._queue:
            # Dropping all others would not make enough room.
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
        """Queue a request again, before all others, for a *new* slot.

        There are at most as many retries as slots, so they do not count towards the limits.
        """
        self._retries.append(request)

    def add_slot(self, slot: RequestSlot) -> None:
        """Add a new slot: send the next request in it, or keep it free."""
        self.expire(perf_counter())
        if self._retries:
            slot.send(self._retries.popleft())
        elif self._queue:
            slot.send(self._pop_oldest())
        else:
            self._idle.append(slot)

    def remove_slot(self, slot: RequestSlot) -> None:
        """Remove a slot; called when its connection ends."""
        if slot in self._idle:
            self._idle.remove(slot)

    def close_idle(self) -> None:
        """Close the connections of free slots."""
        for slot in self._idle[:]:
            slot.close()

    @cython.ccall
    def expire(self, now: cython.double) -> object:
        """Drop the requests that have waited for longer than `max_age`."""
        count: cython.Py_ssize_t = 0
        if self._max_age > 0:
            while self._queue and now - self._queue[0].waiting_since > self._max_age:
                self._pop_oldest()
                count += 1
        if count > 0:
            self._too_old += count
            self._dropped += count
            self._listener.on_too_old(count)
        return None

    def drop_all(self) -> int:
        """Drop all requests that wait; return their number."""
        count: cython.Py_ssize_t = self.waiting
        self._dropped += count
        self._queue.clear()
        self._retries.clear()
        self._queue_bytes = 0
        return count

    @cython.ccall
    def on_response(
        self, slot: RequestSlot, request: OutgoingRequest, now: cython.double, ready: cython.bint
    ) -> OutgoingRequest | None:
        """Count and log a response; return the next request for its slot.

        Returns:
            The request to send next, if the slot is `ready` and one waits; after None a ready slot
            is free.
        """
        self._responses += 1
        self._last_response_at = now
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
            return self._pop_oldest()
        self._idle.append(slot)
        return None

    def record_alive(self, now: float) -> None:
        """Record a sign that the target works, which does not count as a response."""
        self._last_response_at = now
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
            self._pop_oldest()
        self._count_drop(self._drops_newest)
        return None

    @cython.cfunc
    def _count_drop(self, is_newest: cython.bint) -> object:
        self._queue_full += 1
        self._dropped += 1
        self._listener.on_dropped(is_newest)
        return None

    @cython.cfunc
    def _pop_oldest(self) -> OutgoingRequest:
        request: OutgoingRequest = self._queue.popleft()
        self._queue_bytes -= len(request.wire)
        return request
