"""Threads of handlers: started as they are needed, bounded, and not waited for."""

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from spoakit import Agent
from spoakit.agent._calls_cy import EndedCalls, PendingCall
from spoakit.agent._dispatch_cy import BoundHandler
from spoakit.agent.thread_pool import ThreadPool
from spoakit.exceptions import DeadlineError, RefusedError
from spoakit.testing import Engine
from tests.support.agent_frames import bound_handler
from tests.support.suspending import pool
from tests.support.waiting import TIMEOUT, wait_until


def runner(agent: Agent, function: Callable[[], Any]) -> BoundHandler:
    agent.message("message", threaded=True)(function)
    return bound_handler(agent.handlers[0], function)


class Submitted:
    """A frame that waits for a call in a thread."""

    def __init__(self, threads: ThreadPool, bound: BoundHandler) -> None:
        loop = asyncio.get_running_loop()
        self.outcome: asyncio.Future[Any] = loop.create_future()
        self.call = PendingCall(bound, loop.time() + TIMEOUT)
        self.call.frame = self
        self.call.ended = EndedCalls(loop, self.resume)
        threads.submit(self.call, [])

    def resume(self, calls: list[PendingCall]) -> None:
        assert calls == [self.call]
        self.outcome.set_result(self.call.result)


async def submit_when_free(threads: ThreadPool, bound: BoundHandler) -> Any:
    while True:
        try:
            return await Submitted(threads, bound).outcome
        except RefusedError:
            await asyncio.sleep(0.001)


def test_calls_over_the_threads_and_their_queue_are_refused(
    agent: Agent, blocked: threading.Event
) -> None:
    def block() -> str:
        blocked.wait(TIMEOUT)
        return threading.current_thread().name

    async def live() -> None:
        threads = ThreadPool(asyncio.get_running_loop(), size=2, queue=3)
        blocking = runner(agent, block)
        waiting = [Submitted(threads, blocking) for _ in range(5)]
        # What a deadline gives up keeps its slot until a thread has seen it.
        waiting[4].call.cancel()
        waiting[0].call.cancel()
        for _ in range(2):
            with pytest.raises(RefusedError, match="2 threads are busy, and 3 calls wait"):
                Submitted(threads, blocking)
        blocked.set()
        async with asyncio.timeout(TIMEOUT):
            outcomes = await asyncio.gather(*(each.outcome for each in waiting[1:4]))
            assert set(outcomes) <= {"spoakit-0", "spoakit-1"}
            outcome = await submit_when_free(threads, blocking)
            assert outcome in {"spoakit-0", "spoakit-1"}
        assert blocking.calls == 5
        assert not waiting[0].outcome.done()
        threads.close()

    asyncio.run(live())


def test_threads_are_started_as_they_are_needed_and_end(agent: Agent) -> None:
    async def live() -> None:
        threads = ThreadPool(asyncio.get_running_loop(), size=8)
        quick = runner(agent, lambda: None)
        for _ in range(50):
            await Submitted(threads, quick).outcome
        assert len(pool()) == 1
        threads.close()

    asyncio.run(live())
    wait_until(lambda: pool() == [])


def test_nobody_waits_for_a_thread_that_hangs(
    agent: Agent, blocked: threading.Event, caplog: pytest.LogCaptureFixture
) -> None:
    @agent.message("message", threaded=True, timeout=0.01)
    def hang() -> None:
        blocked.wait(TIMEOUT)

    start = time.monotonic()
    with Engine(agent, raise_errors=False) as engine:
        assert isinstance(engine.call("message").error, DeadlineError)
    assert time.monotonic() - start < TIMEOUT / 2
    [thread] = pool()
    # Nor does the interpreter, when it exits.
    assert thread.daemon
    blocked.set()
    wait_until(lambda: pool() == [])
    assert len(caplog.messages) == 1
