import asyncio
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
import uvloop

from spoakit.agent._deadlines_cy import Deadlines
from tests.support.waiting import until


@dataclass
class Call:
    deadline: float
    done: bool = False


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def loop(request: pytest.FixtureRequest) -> Iterator[asyncio.AbstractEventLoop]:
    loop: asyncio.AbstractEventLoop = request.param()
    yield loop
    loop.close()


def run_until(loop: asyncio.AbstractEventLoop, condition: Callable[[], bool]) -> None:
    loop.run_until_complete(until(condition))


def test_what_is_not_done_at_its_deadline_expires_once(loop: asyncio.AbstractEventLoop) -> None:
    expired: list[tuple[Call, float]] = []
    deadlines = Deadlines(loop, lambda call: expired.append((call, loop.time())))
    start = loop.time()
    calls = [Call(start + 0.010), Call(start + 0.020, done=True), Call(start + 0.030)]
    for call in calls:
        deadlines.add(call)
    run_until(loop, lambda: len(deadlines) == 0)
    assert [call for call, _ in expired] == [calls[0], calls[2]]
    for call, when in expired:
        assert -0.002 <= when - call.deadline < 1


def test_what_is_done_in_time_does_not_expire(loop: asyncio.AbstractEventLoop) -> None:
    expired: list[Call] = []
    deadlines = Deadlines(loop, expired.append)
    call = Call(loop.time() + 0.005)
    deadlines.add(call)
    call.done = True
    run_until(loop, lambda: len(deadlines) == 0)
    assert expired == []


def test_deadlines_that_come_out_of_order_expire_in_order(loop: asyncio.AbstractEventLoop) -> None:
    expired: list[Call] = []
    deadlines = Deadlines(loop, expired.append)
    start = loop.time()
    calls = [Call(start + index / 500) for index in range(20)]
    for call in random.Random(7).sample(calls, len(calls)):
        deadlines.add(call)
    run_until(loop, lambda: len(deadlines) == 0)
    assert expired == calls


def test_a_deadline_before_the_one_waited_for_is_kept(loop: asyncio.AbstractEventLoop) -> None:
    expired: list[Call] = []
    deadlines = Deadlines(loop, expired.append)
    late, early = Call(loop.time() + 3600), Call(loop.time() + 0.005)
    deadlines.add(late)
    deadlines.add(early)
    run_until(loop, lambda: bool(expired))
    assert expired == [early]
    deadlines.close()


def test_a_call_that_has_no_time_left_expires_at_once(loop: asyncio.AbstractEventLoop) -> None:
    expired: list[Call] = []
    deadlines = Deadlines(loop, expired.append)
    deadlines.add(Call(loop.time() - 1))
    assert expired == []
    run_until(loop, lambda: len(expired) == 1)


def test_calls_that_finish_are_forgotten(loop: asyncio.AbstractEventLoop) -> None:
    deadlines = Deadlines(loop, lambda call: None)
    slow = Call(loop.time() + 3600)
    deadlines.add(slow)
    for _ in range(10_000):
        call = Call(slow.deadline)
        deadlines.add(call)
        call.done = True
        assert len(deadlines) <= 66
    deadlines.close()


def test_at_most_as_many_finished_calls_are_kept_as_unfinished_and_64(
    loop: asyncio.AbstractEventLoop,
) -> None:
    deadlines = Deadlines(loop, lambda call: None)
    chance = random.Random(3)
    calls: list[Call] = []
    for _ in range(5_000):
        call = Call(loop.time() + 3600, done=chance.random() < 0.9)
        calls.append(call)
        deadlines.add(call)
    unfinished = sum(not call.done for call in calls)
    assert unfinished < len(deadlines) <= 2 * unfinished + 65
    deadlines.close()


def test_new_deadlines_are_kept_after_all_have_passed(loop: asyncio.AbstractEventLoop) -> None:
    expired: list[Call] = []
    deadlines = Deadlines(loop, expired.append)
    for _ in range(3):
        deadlines.add(Call(loop.time() + 0.002))
        run_until(loop, lambda: len(deadlines) == 0)
    assert len(expired) == 3


def test_calls_may_be_added_and_all_forgotten_while_one_expires(
    loop: asyncio.AbstractEventLoop,
) -> None:
    expired: list[Call] = []

    def expire(call: Call) -> None:
        expired.append(call)
        if len(expired) == 1:
            deadlines.add(Call(loop.time() + 0.002))
        else:
            deadlines.close()

    deadlines = Deadlines(loop, expire)
    deadlines.add(Call(loop.time() + 0.002))
    deadlines.add(Call(loop.time() + 3600))
    run_until(loop, lambda: len(expired) == 2)
    assert len(deadlines) == 0


def test_an_error_at_one_deadline_does_not_lose_the_next(loop: asyncio.AbstractEventLoop) -> None:
    expired: list[Call] = []
    errors: list[object] = []
    loop.set_exception_handler(lambda _, context: errors.append(context["exception"]))

    def expire(call: Call) -> None:
        expired.append(call)
        if len(expired) == 1:
            raise LookupError

    deadlines = Deadlines(loop, expire)
    now = loop.time()
    deadlines.add(Call(now))
    deadlines.add(Call(now))
    run_until(loop, lambda: len(expired) == 2)
    assert [type(error) for error in errors] == [LookupError]


def test_nothing_expires_after_close(loop: asyncio.AbstractEventLoop) -> None:
    expired: list[Call] = []
    deadlines = Deadlines(loop, expired.append)
    other = Deadlines(loop, expired.append)
    deadlines.add(Call(loop.time() + 0.002))
    later = Call(loop.time() + 0.010)
    other.add(later)
    deadlines.close()
    run_until(loop, lambda: bool(expired))
    assert expired == [later]
