"""Deadlines of calls: one queue and at most one timer for all calls of a handler. Hot code.

Plain Python that compiles to C (see ``spoakit._cython``).
"""

from __future__ import annotations

from asyncio import AbstractEventLoop
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from spoakit import _cython as cython
else:
    try:
        import cython
    except ModuleNotFoundError:
        from spoakit import _cython as cython

COMPILED: bool = cython.compiled

# uvloop's timers count whole milliseconds, and may fire that much too early.
_RESOLUTION = cython.declare(cython.double, 0.001)
# Number of entries below which finished ones are not removed, because it is not worth the time.
_MIN_ENTRIES = cython.declare(cython.Py_ssize_t, 64)


class Entry(Protocol):
    """Call or connection that has a deadline."""

    @property
    def deadline(self) -> float:
        """Deadline on the clock of ``loop.time()``; never changes."""

    @property
    def done(self) -> bool:
        """True once it has finished, and its deadline does not matter any more."""


@cython.final
@cython.cclass
class Deadlines:
    """Queue of the deadlines of one handler's calls.

    All calls of a handler have the same timeout, so their deadlines are added almost in order, and
    a queue with one timer is enough. A timer for each call would cost ten times as much. Finished
    calls stay in the queue until `_drop_done`: at most 64, plus twice the number of unfinished
    calls when it last ran.

    Args:
        loop: the event loop.
        on_expired: called once with each entry that is not done at its deadline.
    """

    _loop: Any
    _on_expired: Any
    _entries: Any
    _append: Any
    _last: cython.double
    _limit: cython.Py_ssize_t
    _timer: Any
    _timer_at: cython.double

    def __init__(self, loop: AbstractEventLoop, on_expired: Callable[[Any], object]) -> None:
        self._loop = loop
        self._on_expired = on_expired
        self._entries = deque()
        self._append = self._entries.append
        self._last = 0.0
        self._limit = _MIN_ENTRIES
        self._timer = None
        # uvloop's handles have no `when()`.
        self._timer_at = 0.0

    def __len__(self) -> int:
        """Return the number of entries, including finished ones."""
        return len(self._entries)

    def add(self, entry: Entry) -> None:
        """Watch an entry until it is done or its deadline has passed."""
        if len(self._entries) >= self._limit:
            self._drop_done()
        deadline: cython.double = entry.deadline
        # `_last` may belong to an entry that has left, which is earlier than all that remain.
        if deadline < self._last:
            self._insert(entry)
        else:
            self._append(entry)
            self._last = deadline
        if self._timer is None:
            self._set_timer()

    def close(self) -> None:
        """Drop all entries, and stop the timer."""
        self._entries.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _insert(self, entry: Entry) -> None:
        """Insert an entry whose deadline is not the latest: its message waited for others."""
        index = len(self._entries)
        while index and entry.deadline < self._entries[index - 1].deadline:
            index -= 1
        self._entries.insert(index, entry)
        if self._timer is not None and entry.deadline < self._timer_at:
            self._timer.cancel()
            self._timer = None

    def _set_timer(self) -> None:
        if self._timer is None and self._entries:
            self._timer_at = self._entries[0].deadline
            self._timer = self._loop.call_at(self._timer_at, self._expire_due)

    def _drop_done(self) -> None:
        unfinished = [entry for entry in self._entries if not entry.done]
        self._entries.clear()
        self._entries.extend(unfinished)
        self._limit = _MIN_ENTRIES + 2 * len(unfinished)

    def _expire_due(self) -> None:
        entries = self._entries
        now = self._loop.time() + _RESOLUTION
        self._timer = None
        try:
            while entries and (entries[0].done or entries[0].deadline <= now):
                entry = entries.popleft()
                if not entry.done:
                    self._on_expired(entry)
        finally:
            self._set_timer()
