"""spoakit.agent.observer_batching: when observers are called."""

import asyncio
from collections.abc import Awaitable, Callable
from itertools import pairwise

import pytest

from spoakit import Agent, Argument, Message
from spoakit.agent._dispatch_cy import OBSERVER_BATCH
from spoakit.agent.runtime import Runtime
from tests.support.agent_frames import EngineLink, notify
from tests.support.waiting import until

# What waits for so long waits longer than a test takes, or than anything else in it.
NEVER = 60.0
SOON = 0.2

Send = Callable[..., None]
Scenario = Callable[[Send, list[int], Runtime], Awaitable[None]]


def seen_in(scenario: Scenario, *max_delay: float) -> list[int]:
    """Run a scenario with what sends numbers, each in a message; return those that were seen.

    Args:
        scenario: what is done.
        max_delay: for each agent the time that its observer's calls may wait.
    """
    seen: list[int] = []
    agents = [Agent(f"agent-{index}") for index in range(len(max_delay))]
    for index, agent in enumerate(agents):

        @agent.observe(f"see-{index}", max_delay=max_delay[index])
        def see(n: int) -> None:
            seen.append(n)
            if n < 0:
                raise RuntimeError("on purpose")

    async def main() -> None:
        runtime = Runtime(agents)
        await runtime.start()

        def send(*numbers: int, to: int = 0) -> None:
            messages = [Message(f"see-{to}", (Argument.of("n", n),)) for n in numbers]
            link = EngineLink()
            runtime.dispatcher.dispatch([notify(1, message) for message in messages], 0, link)
            assert len(link.acks()) == len(numbers)

        await scenario(send, seen, runtime)
        await runtime.aclose()

    asyncio.run(main())
    return seen


async def next_round() -> None:
    await asyncio.sleep(0)


def numbers(count: int) -> list[int]:
    return list(range(count))


async def _one_by_one(send: Send, seen: list[int], runtime: Runtime) -> None:
    for number in range(10):
        send(number)
        assert seen == numbers(number)
        await next_round()
        assert seen == numbers(number + 1)


def test_a_call_waits_for_its_ack_only_if_no_time_is_given() -> None:
    assert seen_in(_one_by_one, 0.0) == numbers(10)


@pytest.mark.parametrize("max_delay", [(NEVER, 0.0), (0.0, NEVER)])
def test_the_shortest_time_holds_for_all(max_delay: tuple[float, float]) -> None:
    assert seen_in(_one_by_one, *max_delay) == numbers(10)


async def _quiet(send: Send, seen: list[int], runtime: Runtime) -> None:
    send(0)
    await next_round()
    assert seen == numbers(1)
    await asyncio.sleep(0.02)
    send(1)
    await next_round()
    assert seen == numbers(2)


def test_a_call_after_a_quiet_time_is_made_at_once() -> None:
    assert seen_in(_quiet, 0.01) == numbers(2)


async def _follow(send: Send, seen: list[int], runtime: Runtime) -> None:
    send(0)
    await next_round()
    for number in range(1, 10):
        send(number)
        await next_round()
    assert seen == numbers(1)
    await until(lambda: len(seen) == 10)


def test_those_that_follow_wait_and_are_made_in_order() -> None:
    assert seen_in(_follow, SOON) == numbers(10)


async def _take_turns(send: Send, seen: list[int], runtime: Runtime) -> None:
    send(0)
    await next_round()
    send(*range(1, 10))
    rounds = [len(seen)]
    while len(seen) < 11:
        await next_round()
        if len(seen) == 5 and rounds[-1] == 1:
            send(10)
        rounds.append(len(seen))
    assert {after - before for before, after in pairwise(rounds)} <= {0, 2, 4}


def test_others_have_their_turn_while_gathered_calls_are_made() -> None:
    assert seen_in(_take_turns, SOON) == numbers(11)


async def _many(send: Send, seen: list[int], runtime: Runtime) -> None:
    send(0)
    await next_round()
    for number in range(1, OBSERVER_BATCH):
        send(number)
        await next_round()
    assert seen == numbers(1)
    send(OBSERVER_BATCH)
    await next_round()
    assert seen == numbers(OBSERVER_BATCH + 1)
    send(*range(OBSERVER_BATCH + 1, 5 * OBSERVER_BATCH))
    await next_round()
    assert seen == numbers(5 * OBSERVER_BATCH)


def test_many_do_not_wait() -> None:
    assert seen_in(_many, NEVER) == numbers(5 * OBSERVER_BATCH)


async def _end(send: Send, seen: list[int], runtime: Runtime) -> None:
    send(0)
    await next_round()
    send(1, 2)


def test_what_waits_at_the_end_is_made() -> None:
    assert seen_in(_end, NEVER) == numbers(3)


async def _ask(send: Send, seen: list[int], runtime: Runtime) -> None:
    send(0)
    await next_round()
    send(1, 2, 3)
    assert runtime.dispatcher.run_observers(2)
    assert seen == numbers(3)
    assert not runtime.dispatcher.run_observers()
    assert seen == numbers(4)
    send(*range(4, 10))
    await until(lambda: len(seen) == 10)


def test_what_is_asked_for_is_made_at_once() -> None:
    assert seen_in(_ask, SOON) == numbers(10)


async def _fail(send: Send, seen: list[int], runtime: Runtime) -> None:
    send(0)
    await next_round()
    send(1, -2, 3)
    await until(lambda: len(seen) == 4)


def test_a_call_that_fails_costs_no_other(caplog: pytest.LogCaptureFixture) -> None:
    assert seen_in(_fail, SOON) == [0, 1, -2, 3]
    assert "RuntimeError: on purpose" in caplog.text
