"""Batches of observers' calls, made after the ACKs have been written."""

from asyncio import AbstractEventLoop, Handle
from collections.abc import Callable
from typing import Final

Run = Callable[[int], bool]
"""Function that makes up to this many pending calls, all for 0; True if any are left."""

# Limit on calls in one round of the event loop, so that ACKs do not wait for a whole batch.
_CALLS_A_ROUND: Final = 4


class ObserverBatcher:
    """Scheduler that batches observers' calls while messages come in quick succession.

    Most of a small call's cost is waking up this process and the one it writes to, and missing the
    processor's caches. The calls of a batch share both. The first call after a pause is made at
    once. Later calls wait until `max_delay` seconds after the last batch, or until
    `OBSERVER_BATCH` calls are pending.

    Args:
        loop: the event loop.
        max_delay: seconds; 0 makes calls in the next round of the loop.
    """

    __slots__ = ("_loop", "_max_delay", "_next", "_next_at")

    def __init__(self, loop: AbstractEventLoop, max_delay: float) -> None:
        self._loop = loop
        self._max_delay = max_delay
        self._next_at = 0.0
        self._next: Handle | None = None

    def schedule(self, run: Run) -> None:
        """Schedule a batch: the first pending call and those that join it."""
        if not self._max_delay or self._loop.time() >= self._next_at:
            self._next = self._loop.call_soon(self._run_all, run)
        else:
            self._next = self._loop.call_at(self._next_at, self._run_some, run)

    def schedule_soon(self, run: Run) -> None:
        """Schedule the batch for the loop's next round, since many calls are pending."""
        if self._max_delay:
            if self._next is not None:
                self._next.cancel()
            self._next = self._loop.call_soon(self._run_all, run)

    def _run_all(self, run: Run) -> None:
        try:
            run(0)
        finally:
            self._end()

    def _run_some(self, run: Run) -> None:
        more = True
        try:
            more = run(_CALLS_A_ROUND)
        finally:
            if more:
                self._next = self._loop.call_soon(self._run_some, run)
            else:
                self._end()

    def _end(self) -> None:
        self._next = None
        if self._max_delay:
            self._next_at = self._loop.time() + self._max_delay
