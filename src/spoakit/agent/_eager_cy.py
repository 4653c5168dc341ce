"""Eager tasks: the first step runs at once, so a task that never waits costs no loop round.

Hot code: plain Python that compiles to C (see ``spoakit._cython``).
"""

from __future__ import annotations

import sys
from asyncio import AbstractEventLoop, Future, Task, current_task
from asyncio.tasks import _enter_task, _leave_task
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spoakit import _cython as cython
else:
    try:
        import cython
    except ModuleNotFoundError:
        from spoakit import _cython as cython

_HAS_EAGER_START: bool = sys.version_info >= (3, 12)
_EAGERLY: dict[str, Any] = {"eager_start": True}


@cython.final
@cython.cclass
class TaskStarter:
    """Starter of eager tasks in one event loop.

    From Python 3.12 on this is `eager_start`. In Python 3.11 the task is created with this object
    in place of its loop: `call_soon` keeps the first step instead of scheduling it. Before the
    step runs, the task gets the real loop.

    Args:
        loop: the event loop.
    """

    _loop: Any
    _step: Any
    _context: Any

    def __init__(self, loop: AbstractEventLoop) -> None:
        self._loop = loop
        self._step = None
        self._context = None

    def start(self, coroutine: Coroutine[Any, Any, Any], name: str) -> Task[Any]:
        """Return a task that has run to its first await that blocks, or to its end.

        Meanwhile it is `current_task()`, and runs in a copy of the current context, like any task.
        """
        loop: Any = self._loop
        task: Task[Any]
        if _HAS_EAGER_START:
            task = Task(coroutine, loop=loop, name=name, **_EAGERLY)
            return task
        stand_in: Any = self
        task = Task(coroutine, loop=stand_in, name=name)
        Future.__init__(task, loop=loop)
        step: Any = self._step
        context: Any = self._context
        self._step = self._context = None
        outer: Any = current_task(loop)
        if outer is None:
            context.run(step)
            return task
        # Only one task may be current.
        _leave_task(loop, outer)
        try:
            context.run(step)
        finally:
            _enter_task(loop, outer)
        return task

    def get_debug(self) -> bool:
        """Return False; a new task asks its loop for this."""
        return False

    def call_soon(self, step: Any, *, context: Any) -> None:
        """Keep a task's first step and its context; called by the constructor of `Task`."""
        self._step = step
        self._context = context
