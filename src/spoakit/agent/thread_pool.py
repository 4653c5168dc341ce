"""Threads for threaded handlers, with a bound on the calls that wait for one."""

from __future__ import annotations

from asyncio import AbstractEventLoop, Future
from contextlib import suppress
from queue import SimpleQueue
from threading import Thread
from typing import Any

from spoakit.agent._dispatch_cy import BoundHandler


class ThreadPool:
    """The threads of threaded handlers, and a bound on the calls that wait for one.

    Args:
        loop: the event loop.
        size: how many threads there are.
        queue: how many calls may wait for one; further ones are refused.
    """

    def __init__(self, loop: AbstractEventLoop, size: int = 32, queue: int = 1024) -> None:
        self._loop = loop
        self._size = size
        self._places = size + queue
        self._taken = 0
        self._threads: list[Thread] = []
        self._calls: SimpleQueue[tuple[Future[Any], BoundHandler, list[Any]] | None] = SimpleQueue()

    def submit(self, bound: BoundHandler, values: list[Any]) -> Future[Any] | None:
        """Have a handler called in a thread; None if all places are taken."""
        if self._taken == self._places:
            return None
        self._taken += 1
        future: Future[Any] = self._loop.create_future()
        self._calls.put((future, bound, values))
        if len(self._threads) < min(self._taken, self._size):
            thread = Thread(target=self._run, name=f"spoakit-{len(self._threads)}", daemon=True)
            thread.start()
            self._threads.append(thread)
        return future

    def close(self) -> None:
        """Drop the calls that wait; running ones end by themselves, and nobody waits for them."""
        while not self._calls.empty():
            self._calls.get()
        for _ in self._threads:
            self._calls.put(None)

    def _run(self) -> None:
        while (call := self._calls.get()) is not None:
            future, bound, values = call
            result, error = None, None
            if not future.cancelled():
                try:
                    result = bound.start(values)
                except BaseException as raised:
                    error = raised
            # The loop is closed when a handler outlives the drain.
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._finished, future, result, error)
            del call, future, bound, values, result, error

    def _finished(self, future: Future[Any], result: object, error: BaseException | None) -> None:
        # A place is free when the thread is, not when a deadline gave the call up.
        self._taken -= 1
        if future.cancelled():
            return
        if error is None:
            future.set_result(result)
        elif isinstance(error, StopIteration):
            # Futures refuse it; out of a coroutine it comes as this, too.
            stopped = RuntimeError("the handler raised StopIteration")
            future.set_exception(stopped.with_traceback(error.__traceback__))
        else:
            future.set_exception(error)
