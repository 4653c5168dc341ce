"""Batches of observers' calls: soon after the ACK, or several calls together."""

from asyncio import AbstractEventLoop, Handle
from collections.abc import Callable
from typing import Final

Run = Callable[[int], bool]
"""Makes at most this many of the pending calls, all for 0; returns True if some are left."""

# Calls that are made in one round of the event loop, so that ACKs do not wait for all of them.
_CALLS_A_ROUND: Final = 4


class ObserverBatcher:
    """Scheduler of observers' calls, several at a time while messages come close to each other.

    A small call costs mostly two things: waking up this process and the one it writes to, and
    missing the processor's caches. Several at a time share both. The first call after a quiet
    time is made at once. Those that follow wait until `max_delay` seconds after the last ones, or
    until many are pending.

    Args:
        loop: the event loop.
        max_delay: seconds; with 0 no call waits for longer than the loop's next round.
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

    def hurry(self, run: Run) -> None:
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
