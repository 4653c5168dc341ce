"""Thread pool for threaded handlers, with a limit on waiting calls."""

from __future__ import annotations

from asyncio import AbstractEventLoop
from collections import deque
from contextlib import suppress
from queue import SimpleQueue
from threading import Thread
from typing import Any

from spoakit.agent._calls_cy import Failure, PendingCall
from spoakit.agent.call_errors import throttle
from spoakit.exceptions import RefusedError


class ThreadPool:
    """Thread pool for threaded handlers, with a limit on waiting calls.

    Args:
        loop: the event loop.
        size: limit on the number of threads.
        queue: limit on the number of calls that wait for a thread; further calls are refused.
    """

    def __init__(self, loop: AbstractEventLoop, size: int = 32, queue: int = 1024) -> None:
        self._loop = loop
        self._size = size
        self._queue = queue
        self._occupied = 0
        self._threads: list[Thread] = []
        # Waking the loop is a system call, so it is made once for all results it has not handled.
        self._results: deque[tuple[PendingCall, Any]] = deque()
        self._is_woken = False
        self._calls: SimpleQueue[tuple[PendingCall, list[Any]] | None] = SimpleQueue()

    def submit(self, call: PendingCall, values: list[Any]) -> None:
        """Queue a call for the next free thread.

        Raises:
            RefusedError: the queue is full, or no thread can be started.
        """
        if self._occupied == self._size + self._queue:
            raise RefusedError(f"all {self._size} threads are busy, and {self._queue} calls wait")
        if len(self._threads) < min(self._occupied + 1, self._size):
            self._start_thread()
        self._occupied += 1
        self._calls.put((call, values))

    def close(self) -> None:
        """Drop waiting calls; each thread ends after its running call, which is not awaited."""
        while not self._calls.empty():
            self._calls.get()
        for _ in self._threads:
            self._calls.put(None)

    def _start_thread(self) -> None:
        """Start one more thread.

        Raises:
            RefusedError: that failed, and no other thread could make the call.
        """
        count = len(self._threads)
        thread = Thread(target=self._run, name=f"spoakit-{count}", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            if count == 0:
                raise RefusedError(str(error)) from error
            throttle.warning("threads", "cannot start more than %d threads: %s", count, error)
        else:
            self._threads.append(thread)

    def _run(self) -> None:
        while (submitted := self._calls.get()) is not None:
            call, values = submitted
            result: Any = None
            if not call.done:
                try:
                    result = call.bound.call(values)
                except BaseException as error:
                    result = Failure(error)
            self._results.append((call, result))
            if not self._is_woken:
                self._is_woken = True
                # The loop is closed if the handler ran for longer than the drain.
                with suppress(RuntimeError):
                    self._loop.call_soon_threadsafe(self._finish_all)
            del submitted, call, values, result

    def _finish_all(self) -> None:
        # Reset first, so that a result added from now on wakes the loop again.
        self._is_woken = False
        while self._results:
            call, result = self._results.popleft()
            # A call that missed its deadline occupies its thread until it ends.
            self._occupied -= 1
            call.end(result)
