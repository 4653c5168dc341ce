"""Calls of async and threaded handlers, and the queue of ended calls. Hot code.

Plain Python that compiles to C (see ``spoakit._cython``). A call ends inside its own task, which
only appends it to the queue. The next round of the event loop handles all calls in the queue. A
done callback for each call would add a third to its cost, and run in a context of its own.
"""

from __future__ import annotations

from asyncio import AbstractEventLoop, CancelledError
from collections.abc import Callable
from contextvars import copy_context
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spoakit import _cython as cython
else:
    try:
        import cython
    except ModuleNotFoundError:
        from spoakit import _cython as cython

COMPILED: bool = cython.compiled


class Failure:
    """Result of a call that raised.

    The task returns this instead of raising: asyncio would let SystemExit end the event loop,
    refuse StopIteration, and log an exception that nobody retrieves.
    """

    __slots__ = ("error",)

    def __init__(self, error: BaseException) -> None:
        self.error = error


@cython.final
@cython.freelist(256)
@cython.cclass
class PendingCall:
    """Call of an async or threaded handler.

    Args:
        bound: the handler.
        deadline: when the fallback replaces its actions, on the loop's clock.

    Attributes:
        bound: the handler.
        result: the handler's result or a `Failure`, once it has ended.
        has_ended: True once it has ended.
        frame: the suspended frame that waits for it; None without one, or after a deadline.
        task: the task that runs it; None in a thread.
        ended: the queue to join at the end; None while no frame waits.
    """

    if not cython.compiled:
        bound: Any
        result: Any
        has_ended: bool
        frame: Any
        task: Any
        ended: Any
        _deadline: float

    def __init__(self, bound: Any, deadline: float) -> None:
        self.bound = bound
        self.result = None
        self.has_ended = False
        self.frame = None
        self.task = None
        self.ended = None
        self._deadline = deadline

    @property
    def deadline(self) -> float:
        """Time at which the fallback replaces its actions, on the loop's clock."""
        return self._deadline

    @property
    def done(self) -> bool:
        """True once it has ended, or its frame waits no longer."""
        return self.has_ended or self.frame is None

    def end(self, result: Any) -> None:
        """Set the result; the next round of the event loop resumes the frame that waits."""
        self.has_ended = True
        if self.ended is None:
            self.result = result
        elif self.frame is not None or type(result) is Failure:
            self.result = result
            self.ended._add(self)

    @cython.cfunc
    def pop_result(self) -> object:
        """Return the result and drop it, since `Deadlines` may keep this object for longer."""
        result: Any = self.result
        # A task that cancelled itself and then ended without awaiting counts as cancelled.
        if self.task is not None and self.task.cancelled():
            result = Failure(CancelledError())
        self.result = self.frame = self.task = None
        return result

    def cancel(self) -> None:
        """Cancel the call, and ignore its result."""
        task: Any = self.task
        self.frame = self.task = None
        if task is not None:
            task.cancel()


@cython.final
@cython.cclass
class EndedCalls:
    """Queue of calls that have ended since the last round of the event loop.

    Args:
        loop: the event loop.
        resume: called with the ended calls in order. It runs in a copy of the context in which
            this object was created, so that no handler sees another one's context variables.
    """

    if not cython.compiled:
        _loop: Any
        _context: Any
        _resume: Any
        _calls: Any

    def __init__(self, loop: AbstractEventLoop, resume: Callable[[list[Any]], object]) -> None:
        self._loop = loop
        self._context = copy_context()
        self._resume = resume
        self._calls = []

    def close(self) -> None:
        """Drop the calls, and resume none from now on."""
        self._loop = None
        self._calls = []

    @cython.cfunc
    def _add(self, call: PendingCall) -> object:
        self._calls.append(call)
        if len(self._calls) == 1 and self._loop is not None:
            self._loop.call_soon(self._resume_all, context=self._context.copy())
        return None

    def _resume_all(self) -> None:
        calls: list[Any] = self._calls
        self._calls = []
        self._resume(calls)
