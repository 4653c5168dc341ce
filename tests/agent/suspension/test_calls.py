"""spoakit.agent._suspension_cy: calls that end in their first step, and many at once."""

import asyncio
import sys
from collections.abc import Sequence
from contextvars import ContextVar
from typing import Any

import pytest

from spoakit import Action, Agent, Argument, Message
from spoakit.agent.interfaces import PendingFrame
from spoakit.agent.runtime import Runtime
from spoakit.spop import encode_messages
from spoakit.testing import Engine
from tests.support.suspending import EngineLink, dispatch, running
from tests.support.waiting import TIMEOUT, until


def test_a_call_that_does_not_wait_is_answered_at_once(agent: Agent) -> None:
    number = agent.variable("txn.number", int)

    @agent.message("async")
    async def handle(n: int) -> Action:
        return number.set(n)

    async def use(runtime: Runtime, link: EngineLink) -> None:
        for n in range(3):
            dispatch(runtime, link, encode_messages([Message("async", (Argument.of("n", n),))]))
        assert link.waiting == []
        assert link.outgoing

    running(agent, use)


def test_a_call_runs_in_a_task_and_in_a_context_of_its_own(agent: Agent) -> None:
    variable: ContextVar[int] = ContextVar("variable", default=0)
    seen: list[object] = []

    @agent.message("async")
    async def handle(wait: bool) -> None:
        task = asyncio.current_task()
        seen.append(variable.get())
        variable.set(variable.get() + 1)
        if wait:
            await asyncio.sleep(0)
        assert isinstance(task, asyncio.Task)
        assert task is asyncio.current_task()
        assert task.get_loop() is asyncio.get_running_loop()
        seen.append(variable.get())

    async def use(runtime: Runtime, link: EngineLink) -> None:
        outer = asyncio.current_task()
        for wait in (False, True, False):
            argument = Argument.of("wait", wait)
            dispatch(runtime, link, encode_messages([Message("async", (argument,))]))
            assert asyncio.current_task() is outer
        await until(lambda: len(seen) == 6)
        assert variable.get() == 0

    running(agent, use)
    assert sorted(map(str, seen)) == ["0", "0", "0", "1", "1", "1"]


@pytest.mark.parametrize("wait", [False, True])
def test_timeouts_of_a_handlers_own_work_in_its_first_step(agent: Agent, wait: bool) -> None:
    number = agent.variable("txn.number", int)

    @agent.message("async", timeout=TIMEOUT)
    async def handle() -> Action:
        if wait:
            await asyncio.sleep(0)
        try:
            async with asyncio.timeout(0.01):
                await asyncio.Event().wait()
        except TimeoutError:
            async with asyncio.TaskGroup() as group:
                inner = group.create_task(asyncio.sleep(0, 7))
            return number.set(inner.result())
        return number.set(0)

    with Engine(agent) as engine:
        assert engine.call("async") == {"txn.number": 7}


@pytest.mark.parametrize("wait", [False, True])
@pytest.mark.parametrize("how", ["raises", "exits", "cancels itself", "is no action"])
def test_a_call_that_fails_in_any_step_costs_its_message(
    agent: Agent, wait: bool, how: str
) -> None:
    number = agent.variable("txn.number", int)

    @agent.message("async", fallback=number.set(-1))
    async def handle() -> Any:
        if wait:
            await asyncio.sleep(0)
        if how == "raises":
            raise ValueError("on purpose")
        if how == "exits":
            sys.exit("on purpose")
        if how == "cancels itself":
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            return number.set(1)
        return 7

    @agent.message("inline")
    def inline() -> Action:
        return number.set(2)

    with Engine(agent, raise_errors=False) as engine:
        reply = engine.notify([Message("async"), Message("inline"), Message("async")])
    assert [action.value for action in reply.actions] == [-1, 2, -1]
    assert reply.error is not None


def test_observers_see_a_message_after_the_ack_of_a_call_that_does_not_wait(agent: Agent) -> None:
    events: list[str] = []

    @agent.message("async")
    async def handle(wait: bool) -> None:
        events.append("handled")
        if wait:
            await asyncio.sleep(0)

    @agent.observe("async")
    def see(wait: bool) -> None:
        events.append(f"observed {wait}")

    async def use(runtime: Runtime, link: EngineLink) -> None:
        for wait in (False, True):
            argument = Argument.of("wait", wait)
            dispatch(runtime, link, encode_messages([Message("async", (argument,))]))
        await until(lambda: len(events) == 4)

    running(agent, use)
    assert sorted(events) == ["handled", "handled", "observed False", "observed True"]
    assert events.index("handled") < events.index("observed False")


def test_calls_that_end_in_one_round_are_acknowledged_together(agent: Agent) -> None:
    @agent.message("async")
    async def handle() -> None:
        await asyncio.sleep(0)

    class Batches(EngineLink):
        """A connection that notes how many ACKs come at once."""

        def __init__(self) -> None:
            super().__init__()
            self.sizes: list[int] = []

        def finish(self, frames: Sequence[PendingFrame]) -> None:
            self.sizes.append(len(frames))

    async def use(runtime: Runtime, unused: EngineLink) -> None:
        links = Batches(), Batches()
        for link in links:
            for _ in range(20):
                dispatch(runtime, link, encode_messages([Message("async")]))
        await until(lambda: all(link.sizes for link in links))
        assert [link.sizes for link in links] == [[20], [20]]

    running(agent, use)
