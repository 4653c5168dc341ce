"""Fast path of reads: the compiled half of a connection to an engine. Hot code.

Plain Python that compiles to C (see ``spoakit._cython``). A read of few frames costs mostly what
is around them, so its way is kept short: a look at the clock, one call or two, one write.
"""

from __future__ import annotations

from collections.abc import Sequence
from time import monotonic
from typing import TYPE_CHECKING, Any

from spoakit.agent._dispatch_cy import Dispatcher
from spoakit.exceptions import ProtocolError

if TYPE_CHECKING:
    from spoakit import _cython as cython
else:
    try:
        import cython
    except ModuleNotFoundError:
        from spoakit import _cython as cython

COMPILED: bool = cython.compiled


@cython.cclass
class FastPathProtocol:
    """Base of a protocol: answers reads of whole NOTIFYs, as nearly all are, by itself.

    Other reads go to `receive`.

    Args:
        dispatcher: handles the frames.
        frame_size_cap: the largest FRAME-LENGTH that is accepted.
        longest: the longest read, in bytes, that is handled here.
    """

    _try_single: Any
    _try_batch: Any
    _frame_size_cap: cython.Py_ssize_t
    _longest: cython.Py_ssize_t
    _write: Any
    _received: cython.double
    _is_open: cython.bint

    def __init__(self, dispatcher: Dispatcher, frame_size_cap: int, longest: int) -> None:
        self._try_single = dispatcher.try_single
        self._try_batch = dispatcher.try_batch
        self._frame_size_cap = frame_size_cap
        self._longest = longest
        self._write = None
        self._received = monotonic()
        self._is_open = False

    @property
    def received(self) -> float:
        """When the last bytes were read, on ``time.monotonic()``'s clock."""
        return self._received

    @property
    def is_fast_path_open(self) -> bool:
        """Whether the next read may be handled here: nothing waits or has come in part."""
        return self._is_open

    @is_fast_path_open.setter
    def is_fast_path_open(self, is_open: bool) -> None:
        self._is_open = is_open

    def connection_made(self, transport: Any) -> None:
        """Keep the function that writes."""
        self._write = transport.write

    def data_received(self, data: bytes) -> None:
        """Handle all frames of a read, and write what is due at once."""
        self._received = monotonic()
        if not self._is_open or len(data) > self._longest:
            self.receive(data)
            return
        # FRAME-LENGTH does not count itself.
        if len(data) - 4 <= self._frame_size_cap:
            ack = self._try_single(data, self._received, self)
            if ack is not None:
                self._write(ack)
                return
        try:
            rest: Any = self._try_batch(data, self._frame_size_cap, self, self._write)
        except ProtocolError as error:
            self.refuse(error)
            return
        if rest is None:
            self.receive(data)
        elif rest:
            self.handle(rest)

    # The rest is the protocol's, which derives from this: what is compiled cannot be abstract.

    def receive(self, data: bytes) -> None:
        """Handle a read of any kind."""
        raise NotImplementedError("the protocol's")

    def handle(self, events: Sequence[Any]) -> None:
        """Handle the events of a read that `Dispatcher.try_batch` has left."""
        raise NotImplementedError("the protocol's")

    def refuse(self, error: ProtocolError) -> None:
        """End the connection, because of what has been read."""
        raise NotImplementedError("the protocol's")
