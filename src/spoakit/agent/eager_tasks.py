"""Tasks whose first step runs at once, so that one that never waits costs no round of the loop."""

import sys
from asyncio import AbstractEventLoop, Future, Task, current_task
from asyncio.tasks import _enter_task, _leave_task
from collections.abc import Callable, Coroutine
from contextvars import Context
from typing import Any, TypeVar, cast

T = TypeVar("T")

if sys.version_info >= (3, 12):

    def start_task(loop: AbstractEventLoop, coroutine: Coroutine[Any, Any, T]) -> Task[T]:
        """Return a task of a coroutine that has run to its end, or to what it waits for first.

        It is `current_task()` meanwhile, and runs in a copy of the current context, as any task.
        """
        return Task(coroutine, loop=loop, eager_start=True)

else:

    class _FirstStep:
        """Stand-in for the event loop that a task schedules its first step with, and keeps it."""

        step: Callable[[], object]
        context: Context

        def get_debug(self) -> bool:
            """Return False: the task was made here."""
            return False

        def call_soon(self, step: Callable[[], object], *, context: Context) -> None:
            """Keep the step."""
            self.step = step
            self.context = context

    def start_task(loop: AbstractEventLoop, coroutine: Coroutine[Any, Any, T]) -> Task[T]:
        """Return a task of a coroutine that has run to its end, or to what it waits for first.

        It is `current_task()` meanwhile, and runs in a copy of the current context, as any task.
        Python 3.12 has this as ``eager_start``. Here the task is made with a loop that keeps the
        first step, and given the true one as any future is, before the step runs.
        """
        first = _FirstStep()
        task = Task(coroutine, loop=cast(AbstractEventLoop, first))
        Future.__init__(task, loop=loop)
        outer = current_task(loop)
        if outer is None:
            first.context.run(first.step)
            return task
        # No two tasks are current at once.
        _leave_task(loop, outer)
        try:
            first.context.run(first.step)
        finally:
            _enter_task(loop, outer)
        return task
