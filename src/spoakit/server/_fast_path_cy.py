"""Fast path of reads, and frames in flight: the compiled half of a connection. Hot code.

Plain Python that compiles to C (see ``spoakit._cython``). Most of the cost of a small read is
around its frames, so the fast path is short: read the clock, make one or two calls, write once.
"""

from __future__ import annotations

from collections.abc import Sequence
from time import monotonic
from typing import TYPE_CHECKING, Any

from spoakit.agent._dispatch_cy import Dispatcher
from spoakit.agent.interfaces import PendingFrame
from spoakit.exceptions import ProtocolError
from spoakit.spop import Event
from spoakit.spop._encode_cy import append_acks
from spoakit.spop.constants import MIN_FRAME_SIZE

if TYPE_CHECKING:
    from spoakit import _cython as cython
else:
    try:
        import cython
    except ModuleNotFoundError:
        from spoakit import _cython as cython

COMPILED: bool = cython.compiled

MAX_IN_FLIGHT_SIZE: int = 4 * 1024 * 1024
"""Limit on the bytes of one connection's frames in flight."""
_MAX_IN_FLIGHT_SIZE = cython.declare(cython.Py_ssize_t, 4 * 1024 * 1024)


@cython.final
@cython.cclass
class Backlog:
    """Backlog of a connection: events not handled yet, and frames in flight.

    Args:
        max_in_flight: limit on frames in flight; while it is reached, no event is handled.

    Attributes:
        events: events that wait, in order; later events must wait behind them.
    """

    events = cython.declare(list[Event], visibility="readonly")
    _in_flight: set[Any]
    _max_in_flight: cython.Py_ssize_t
    _size: cython.Py_ssize_t

    def __init__(self, max_in_flight: int) -> None:
        self.events = []
        self._in_flight = set()
        self._max_in_flight = max_in_flight
        self._size = 0

    def __len__(self) -> int:
        """Return the number of frames in flight."""
        return len(self._in_flight)

    @property
    def is_empty(self) -> bool:
        """True if all received frames have been acknowledged."""
        return not self._in_flight and not self.events

    @property
    def is_full(self) -> bool:
        """True if the limit on frames in flight, or on their bytes, is reached.

        One frame is always accepted, since it may exceed the limit on bytes by itself.
        """
        return bool(self._is_full())

    @cython.cfunc
    @cython.inline
    def _is_full(self) -> cython.bint:
        count: cython.Py_ssize_t = len(self._in_flight)
        if count == 0:
            return False
        return count >= self._max_in_flight or self._size > _MAX_IN_FLIGHT_SIZE

    @cython.ccall
    def add(self, frame: PendingFrame) -> object:
        """Add a frame in flight."""
        self._in_flight.add(frame)
        self._size += frame.size
        return None

    @cython.ccall
    def discard(self, frame: PendingFrame) -> object:
        """Remove a frame that is not in flight any more; does nothing for others."""
        if frame in self._in_flight:
            self._in_flight.remove(frame)
            self._size -= frame.size
        return None

    def pop_events(self) -> list[Event]:
        """Return and clear the events that wait."""
        events: list[Any] = self.events
        self.events = []
        return events

    def cancel(self) -> None:
        """Drop the events, and cancel the handlers of the frames in flight."""
        self.events.clear()
        in_flight: tuple[Any, ...] = tuple(self._in_flight)
        self._in_flight.clear()
        self._size = 0
        for frame in in_flight:
            frame.cancel()


@cython.cclass
class FastPathProtocol:
    """Base of `SpopProtocol`, which answers reads of unfragmented NOTIFYs by itself.

    Nearly all reads are like this. It passes other reads to `receive`.

    Args:
        dispatcher: the dispatcher of the worker.
        frame_size_cap: the largest FRAME-LENGTH that is accepted.
        max_read: the longest read, in bytes, for the fast path.
        max_in_flight: see `Backlog`.
        outgoing: the output buffer.

    Attributes:
        outgoing, max_frame_size, received, accepts_frames: see `EngineLink`.
        backlog: events that wait, and frames in flight.
        received_bytes, sent_bytes: the number of bytes read and written.
        is_halted: True while no frames may be handled, however few are in flight.
        flush_handle: the handle of the call that `flush_soon` has scheduled, or None.
    """

    outgoing = cython.declare(bytearray, visibility="readonly")
    max_frame_size = cython.declare(cython.Py_ssize_t, visibility="public")
    backlog = cython.declare(Backlog, visibility="readonly")
    is_halted = cython.declare(cython.bint, visibility="public")
    flush_handle = cython.declare(object, visibility="public")
    received_bytes = cython.declare(cython.longlong, visibility="readonly")
    sent_bytes = cython.declare(cython.longlong, visibility="public")
    _dispatcher: Any
    _try_single: Any
    _try_batch: Any
    _frame_size_cap: cython.Py_ssize_t
    _max_read: cython.Py_ssize_t
    _write: Any
    _received: cython.double
    _is_open: cython.bint

    def __init__(
        self,
        dispatcher: Dispatcher,
        frame_size_cap: int,
        max_read: int,
        max_in_flight: int,
        outgoing: bytearray,
    ) -> None:
        self.outgoing = outgoing
        self.max_frame_size = MIN_FRAME_SIZE
        self.backlog = Backlog(max_in_flight)
        self.is_halted = False
        self.flush_handle = None
        self.received_bytes = self.sent_bytes = 0
        self._dispatcher = dispatcher
        self._try_single = dispatcher.try_single
        self._try_batch = dispatcher.try_batch
        self._frame_size_cap = frame_size_cap
        self._max_read = max_read
        self._write = None
        self._received = monotonic()
        self._is_open = False

    @property
    def received(self) -> float:
        """Time of the last read, on ``time.monotonic()``'s clock."""
        return self._received

    @property
    def is_fast_path_open(self) -> bool:
        """True if the fast path may handle the next read: nothing waits, no frame is incomplete."""
        return self._is_open

    @is_fast_path_open.setter
    def is_fast_path_open(self, is_open: bool) -> None:
        self._is_open = is_open

    def connection_made(self, transport: Any) -> None:
        """Keep the transport's write method."""
        self._write = transport.write

    def data_received(self, data: bytes) -> None:
        """Handle all frames of a read, and write their ACKs at once."""
        self._received = monotonic()
        self.received_bytes += len(data)
        if not self._is_open or len(data) > self._max_read:
            self.receive(data)
            return
        # FRAME-LENGTH does not count itself.
        if len(data) - 4 <= self._frame_size_cap:
            ack = self._try_single(data, self._received, self)
            if ack is not None:
                self.sent_bytes += len(ack)
                self._write(ack)
                return
        try:
            rest: Any = self._try_batch(data, self._frame_size_cap, self)
        except ProtocolError as error:
            self.refuse(error)
            return
        if rest is None:
            self.receive(data)
        elif rest:
            self.handle(rest)
        elif self.outgoing:
            acks: bytes = bytes(self.outgoing)
            self.outgoing.clear()
            self.sent_bytes += len(acks)
            self._write(acks)

    @property
    def accepts_frames(self) -> bool:
        """False while no more frames may be handled; see `EngineLink`."""
        return not self.is_halted and not self.backlog._is_full()

    def wait(self, frame: PendingFrame) -> None:
        """Add a suspended frame until `finish` or `close_with_error`."""
        self.backlog.add(frame)
        self._is_open = False

    def finish(self, frames: Sequence[PendingFrame]) -> None:
        """Acknowledge frames in flight, in one write with others that finish in this round."""
        backlog: Backlog = self.backlog
        ids: list[Any] = []
        actions: list[Any] = []
        for frame in frames:
            backlog.discard(frame)
            ids.append(frame.ids)
            actions.append(frame.actions)
        oversized: cython.Py_ssize_t = append_acks(self.outgoing, ids, actions, self.max_frame_size)
        while oversized > 0:
            self._dispatcher.oversized_ack(self)
            oversized -= 1
        if self.flush_handle is None:
            self.flush_soon()

    # SpopProtocol implements the rest. Compiled classes cannot have abstract methods.

    def flush_soon(self) -> None:
        """Schedule a write, after the callbacks that are due."""
        raise NotImplementedError("see SpopProtocol")

    def receive(self, data: bytes) -> None:
        """Handle a read of any kind."""
        raise NotImplementedError("see SpopProtocol")

    def handle(self, events: Sequence[Any]) -> None:
        """Handle the events of a read that `Dispatcher.try_batch` has not handled."""
        raise NotImplementedError("see SpopProtocol")

    def refuse(self, error: ProtocolError) -> None:
        """End the connection because of a violation by the engine."""
        raise NotImplementedError("see SpopProtocol")
