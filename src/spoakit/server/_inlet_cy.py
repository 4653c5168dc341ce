"""Where reads come in: the compiled half of a connection to an engine. Hot code.

Plain Python that compiles to C (see ``spoakit._cython``). A frame that comes alone costs
mostly what is around it, so its way is kept short: a look at the clock, one call, one write.
"""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING, Any

from spoakit.agent._dispatch_cy import Dispatcher

if TYPE_CHECKING:
    from spoakit import _cython as cython
else:
    try:
        import cython
    except ModuleNotFoundError:
        from spoakit import _cython as cython

COMPILED: bool = cython.compiled


@cython.cclass
class Inlet:
    """Answers a frame that comes alone; whatever else is read goes to `receive`.

    Args:
        dispatcher: knows what such a frame looks like.
        longest: the longest read, in bytes, that may be answered here.
    """

    _answer: Any
    _longest: cython.Py_ssize_t
    _write: Any
    _received: cython.double
    _clear: cython.bint

    def __init__(self, dispatcher: Dispatcher, longest: int) -> None:
        self._answer = dispatcher.answer
        self._longest = longest
        self._write = None
        self._received = monotonic()
        self._clear = False

    @property
    def received(self) -> float:
        """When the last bytes were read, on ``time.monotonic()``'s clock."""
        return self._received

    @property
    def is_clear(self) -> bool:
        """Whether a frame would be answered at once: nothing waits or has come in part."""
        return self._clear

    @is_clear.setter
    def is_clear(self, clear: bool) -> None:
        self._clear = clear

    def connection_made(self, transport: Any) -> None:
        """Take note of where ACKs are written to."""
        self._write = transport.write

    def data_received(self, data: bytes) -> None:
        """Handle all frames of a read, and write what is due at once."""
        self._received = monotonic()
        if self._clear and len(data) <= self._longest:
            ack = self._answer(data, self._received, self)
            if ack is not None:
                self._write(ack)
                return
        self.receive(data)

    def receive(self, data: bytes) -> None:
        """Handle a read of any kind."""
        raise NotImplementedError("what handles the other reads is the protocol's")
