# cython: wraparound=False
"""A target's requests that wait, and the connections that are free for them. Hot code.

Plain Python that compiles to C (see ``spoakit._cython``).
"""

from __future__ import annotations

from collections import deque
from time import perf_counter
from typing import TYPE_CHECKING, Any

from spoakit.apps.mirror._request_cy import OutgoingRequest
from spoakit.apps.mirror.access_log._lines_cy import AccessLog, TargetLabel

if TYPE_CHECKING:
    from spoakit import _cython as cython
    from spoakit.apps.mirror.http.interfaces import QueueListener, RequestSlot
    from spoakit.metrics._histogram_cy import HistogramCells
else:
    try:
        import cython
    except ModuleNotFoundError:
        from spoakit import _cython as cython
    if cython.compiled:
        from cython.cimports.spoakit.metrics._histogram_cy import HistogramCells
    else:
        from spoakit.metrics._histogram_cy import HistogramCells

COMPILED: bool = cython.compiled


@cython.final
@cython.cclass
class RequestQueue:
    """Give each request to a free place, or have it wait for one in a bounded queue.

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
    """

    _max_length: cython.Py_ssize_t
    _max_bytes: cython.longlong
    _drops_newest: cython.bint
    _max_age: cython.double
    _access_log: AccessLog
    _label: TargetLabel
    _listener: Any
    _queue: Any
    # Those that met the end of their connections, and are not to meet that of another one.
    _again: Any
    _queue_bytes: cython.longlong
    # When each of the queue began to wait.
    _since: Any
    _idle: list[Any]
    _first_byte: HistogramCells
    _response: HistogramCells
    _by_class: list[int]
    _queue_full: cython.ulonglong
    _too_old: cython.ulonglong
    _answered: cython.ulonglong
    _answered_at: cython.double
    _dropped: cython.ulonglong
    _watched: cython.bint

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
        self._since = deque()
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
        return now - self._since[0] if self._since else 0.0

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

    def put(self, request: OutgoingRequest) -> None:
        """Send a request now, or when its turn comes."""
        if self._idle:
            self._idle.pop().send(request)
            return
        size: cython.longlong = len(request.wire)
        if size > self._max_bytes and self._queue:
            # Room for it would cost all others, and not be enough.
            self._count_drop(True)
            return
        self._queue.append(request)
        self._since.append(perf_counter())
        self._queue_bytes += size
        while len(self._queue) > 1 and (
            len(self._queue) > self._max_length or self._queue_bytes > self._max_bytes
        ):
            self._drop()
        self._listener.on_waiting()

    def put_back(self, request: OutgoingRequest) -> None:
        """Have a request wait for a new place, which it gets before all others.

        There are no more of these than there were places, and they count for no limit.
        """
        self._again.append(request)

    def use(self, place: RequestSlot) -> None:
        """Send the next request in a new place, or keep it for one."""
        self.expire(perf_counter())
        if self._again:
            place.send(self._again.popleft())
        elif self._queue:
            place.send(self._take())
        else:
            self._idle.append(place)

    def forget(self, place: RequestSlot) -> None:
        """Use a place no more."""
        if place in self._idle:
            self._idle.remove(place)

    def close_idle(self) -> None:
        """Close the connections that are free."""
        for place in self._idle[:]:
            place.close()

    def expire(self, now: float) -> None:
        """Drop the requests that have waited for longer than they may."""
        if self._max_age > 0 and self._since and now - self._since[0] > self._max_age:
            count: cython.Py_ssize_t = 0
            while self._since and now - self._since[0] > self._max_age:
                self._take()
                count += 1
            self._too_old += count
            self._dropped += count
            self._listener.on_too_old(count)

    def drop_all(self) -> int:
        """Drop what waits; return how many requests that were."""
        count: cython.Py_ssize_t = self.waiting
        self._dropped += count
        self._queue.clear()
        self._again.clear()
        self._since.clear()
        self._queue_bytes = 0
        return count

    def on_response(
        self, place: RequestSlot, request: OutgoingRequest, now: float, ready: bool
    ) -> OutgoingRequest | None:
        """Log a response, which also shows that the target works.

        Returns:
            Where the place is ready for it, the request to send next; with None the place is
            kept for one that comes later.
        """
        self._answered += 1
        self._answered_at = now
        status: cython.Py_ssize_t = place.status
        self._by_class[status // 100 % 10] += 1
        sent_at: cython.double = place.sent_at
        first_byte_at: cython.double = place.first_byte_at
        time: cython.double = now
        self._first_byte._observe((first_byte_at or time) - sent_at, 1)
        self._response._observe(time - sent_at, 1)
        if self._watched:
            self._recover(time)
        self._access_log.write(place, request, self._label, b"ok", now)
        if not ready:
            return None
        if self._queue:
            self.expire(time)
        if self._queue:
            return self._take()
        self._idle.append(place)
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
            self._since.pop()
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
        self._since.popleft()
        self._queue_bytes -= len(request.wire)
        return request
