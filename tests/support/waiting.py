"""Waiting for something that another process, thread or task does."""

import asyncio
import inspect
import time
from collections.abc import Callable

TIMEOUT = 30.0
"""Seconds, for anything that a test waits for."""

_PAUSE = 0.002


def wait_until(condition: Callable[[], object], what: str = "") -> None:
    """Wait for a condition; an error says what was waited for, by default as the test has it."""
    end = time.monotonic() + TIMEOUT
    while not condition():
        if time.monotonic() > end:
            raise _timeout_error(condition, what)
        time.sleep(_PAUSE)


async def until(condition: Callable[[], object], what: str = "") -> None:
    """Wait for a condition as `wait_until` does, while the event loop runs."""
    end = time.monotonic() + TIMEOUT
    while not condition():
        if time.monotonic() > end:
            raise _timeout_error(condition, what)
        await asyncio.sleep(_PAUSE)


def _timeout_error(condition: Callable[[], object], what: str) -> AssertionError:
    return AssertionError(f"not within {TIMEOUT:g} s: {what or _source(condition)}")


def _source(condition: Callable[[], object]) -> str:
    """Return the lines of the test that have the condition."""
    try:
        return inspect.getsource(condition).strip()
    except (OSError, TypeError):  # not written in Python
        return repr(condition)
