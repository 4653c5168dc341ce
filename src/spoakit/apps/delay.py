"""Delay before messages are handled, to test HAProxy with a slow agent."""

import asyncio
import functools
from collections.abc import Callable, Coroutine
from typing import Any, Final, ParamSpec, TypeVar

DEADLINE: Final = 1.0
"""Deadline of a message, in seconds beyond the delay."""

P = ParamSpec("P")
R = TypeVar("R")


def delayed(handle: Callable[P, R], delay: float) -> Callable[P, Coroutine[Any, Any, R]]:
    """Return a handler that waits `delay` seconds first; other frames are not blocked."""

    @functools.wraps(handle)
    async def handle_later(*args: P.args, **kwargs: P.kwargs) -> R:
        await asyncio.sleep(delay)
        return handle(*args, **kwargs)

    return handle_later
