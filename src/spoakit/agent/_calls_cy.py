"""Calls of async and threaded handlers, and the queue of those that have ended. Hot code.

Plain Python that compiles to C (see ``spoakit._cython``). A call ends inside of its own task, which
only adds it to the queue; the event loop's next round handles all that have ended meanwhile. A done
callback for each would cost a quarter of such a call, and run in a context of its own.
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

    The call's task never has the exception itself: asyncio lets SystemExit out of the event loop,
    refuses StopIteration, and logs an exception that is not asked for.
    """

    __slots__ = ("error",)

    def __init__(self, error: BaseException) -> None:
        self.error = error


@cython.final
@cython.freelist(256)
@cython.cclass
class PendingCall:
    """A call of an async or threaded handler.

    Args:
        bound: the handler.
        deadline: when the fallback stands in for its actions, on the loop's clock.

    Attributes:
        bound: the handler.
        result: what it has been ended with.
        has_ended: whether it has ended.
        frame: waits for it; None if none does, or does no longer.
        task: makes it; None if a thread does.
        ended: the queue that it joins when it ends; None as long as nothing waits.
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
        """When the fallback stands in for its actions, on the loop's clock."""
        return self._deadline

    @property
    def done(self) -> bool:
        """Whether it has ended, or been given up."""
        return self.has_ended or self.frame is None

    def end(self, result: Any) -> None:
        """Note the result; a frame that waits is resumed by the event loop's next round."""
        self.has_ended = True
        if self.ended is None:
            self.result = result
        elif self.frame is not None or type(result) is Failure:
            self.result = result
            self.ended._add(self)

    @cython.cfunc
    def pop_result(self) -> object:
        """Return the handler's result, or a `Failure`; `Deadlines` may keep this object longer."""
        result: Any = self.result
        # A task that cancels itself, and then returns without having waited, is cancelled.
        if self.task is not None and self.task.cancelled():
            result = Failure(CancelledError())
        self.result = self.frame = self.task = None
        return result

    def cancel(self) -> None:
        """Give the call up; its result is ignored."""
        task: Any = self.task
        self.frame = self.task = None
        if task is not None:
            task.cancel()


@cython.final
@cython.cclass
class EndedCalls:
    """Calls that have ended since the event loop's last round.

    Args:
        loop: the event loop.
        resume: called with them, in the order in which they have ended. It runs in a copy of the
            context in which this is made: what a handler has set is not for others.
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
        """Resume nothing any more."""
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
