"""When observers are called: soon after the ACK, or several calls together."""

from asyncio import AbstractEventLoop, Handle
from collections.abc import Callable
from typing import Final

Run = Callable[[int], bool]
"""Calls observers that wait, so many at most, all for 0; tells if some are left."""

# Of calls whose time has come, how many are made before the event loop may do something else:
# ACKs, above all.
_AT_A_TIME: Final = 4


class ObserverBatcher:
    """Have the calls of observers made several at a time while messages come close to each other.

    What a small call costs is mostly waking up, oneself and whoever is written to, and finding
    nothing in the processor's caches; several at a time share that. The first one after a quiet
    time is made at once. Those that follow wait until `max_delay` seconds after the last ones, or
    until many wait.

    Args:
        loop: the event loop.
        max_delay: seconds; with 0 none waits for longer than the loop's next round.
    """

    __slots__ = ("_loop", "_max_delay", "_next", "_next_at")

    def __init__(self, loop: AbstractEventLoop, max_delay: float) -> None:
        self._loop = loop
        self._max_delay = max_delay
        self._next_at = 0.0
        self._next: Handle | None = None

    def schedule(self, run: Run) -> None:
        """Have a first call made that waits, and those that will wait with it."""
        if not self._max_delay or self._loop.time() >= self._next_at:
            self._next = self._loop.call_soon(self._run_all, run)
        else:
            self._next = self._loop.call_at(self._next_at, self._run_some, run)

    def hurry(self, run: Run) -> None:
        """Have all that wait made in the loop's next round, since they are many."""
        if self._max_delay:
            if self._next is not None:
                self._next.cancel()
            self._next = self._loop.call_soon(self._run_all, run)

    def _run_all(self, run: Run) -> None:
        run(0)
        self._end()

    def _run_some(self, run: Run) -> None:
        if run(_AT_A_TIME):
            self._next = self._loop.call_soon(self._run_some, run)
        else:
            self._end()

    def _end(self) -> None:
        self._next = None
        if self._max_delay:
            self._next_at = self._loop.time() + self._max_delay
