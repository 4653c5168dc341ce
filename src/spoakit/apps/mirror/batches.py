"""Copying requests several at a time."""

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import Final

from spoakit.apps.mirror._request_cy import Original
from spoakit.logs import Throttle

logger = logging.getLogger("spoakit.mirror")

INTERVAL: Final = 0.005
"""How long a request may wait for others, in seconds."""

MAX_WAITING: Final = 16
"""How many requests may wait."""

# How many are copied before the event loop may do something else: ACKs, above all.
_AT_A_TIME: Final = 4


class Batches:
    """Copy requests in batches while they come close to each other.

    What one costs is mostly waking up, oneself and the target, and finding nothing in the
    processor's caches; several at a time share that. The first one after a quiet time is copied
    at once. Those that follow wait until `INTERVAL` after the last batch, or until there are
    `MAX_WAITING` of them.

    To be used in a running event loop.

    Args:
        copy: copies one request. What it raises for one that has waited is logged, and costs no
            other.
    """

    def __init__(self, copy: Callable[[Original], None]) -> None:
        self._copy = copy
        self._loop = asyncio.get_running_loop()
        self._throttle = Throttle(logger)
        self._waiting: list[Original] = []
        self._next_at = 0.0
        self._next: asyncio.Handle | None = None

    def add(self, original: Original) -> None:
        """Copy a request, now or soon."""
        waiting = self._waiting
        if waiting:
            waiting.append(original)
            if len(waiting) >= MAX_WAITING:
                self.flush()
            return
        now = self._loop.time()
        if now >= self._next_at:
            self._next_at = now + INTERVAL
            self._copy(original)
        else:
            waiting.append(original)
            self._next = self._loop.call_at(self._next_at, self._copy_some)

    def flush(self) -> None:
        """Copy all that wait."""
        if self._next is not None:
            self._next.cancel()
        waiting, self._waiting = self._waiting, []
        self._copy_each(waiting)
        self._end_batch()

    def _copy_some(self) -> None:
        some, self._waiting = self._waiting[:_AT_A_TIME], self._waiting[_AT_A_TIME:]
        self._copy_each(some)
        if self._waiting:
            self._next = self._loop.call_soon(self._copy_some)
        else:
            self._end_batch()

    def _end_batch(self) -> None:
        self._next = None
        self._next_at = self._loop.time() + INTERVAL

    def _copy_each(self, originals: Iterable[Original]) -> None:
        for original in originals:
            try:
                self._copy(original)
            except Exception as error:
                self._throttle.error("failed", "a request could not be copied: %r", error)
                logger.debug("a request could not be copied", exc_info=error)
