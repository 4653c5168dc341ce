"""A delay before messages are handled, to try out what HAProxy makes of slow agents."""

import asyncio
import functools
from collections.abc import Callable, Coroutine
from typing import Any, Final, ParamSpec, TypeVar

DEADLINE: Final = 1.0
"""Seconds beyond the delay; a message that has no answer then is late."""

P = ParamSpec("P")
R = TypeVar("R")


def delayed(handle: Callable[P, R], delay: float) -> Callable[P, Coroutine[Any, Any, R]]:
    """Return what does the same `delay` seconds later; the ACK waits, other frames do not."""

    @functools.wraps(handle)
    async def handle_later(*args: P.args, **kwargs: P.kwargs) -> R:
        await asyncio.sleep(delay)
        return handle(*args, **kwargs)

    return handle_later
