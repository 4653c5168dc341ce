"""spoakit.agent._suspension_cy: frames that wait for async and threaded handlers."""

import asyncio
import gc
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any

import pytest

from spoakit import Action, Agent, Argument, Context, Message, PerFrame
from spoakit.agent.handlers import DEFAULT_TIMEOUT
from spoakit.agent.runtime import Runtime
from spoakit.exceptions import DeadlineError, InvalidFrameError
from spoakit.spop import Notify, encode_messages
from spoakit.testing import Engine
from tests.support.suspending import EngineLink, dispatch, running
from tests.support.waiting import TIMEOUT, until


class Steps(list[str]):
    """What messages of one frame did, in order."""


def test_messages_of_a_frame_are_handled_one_after_the_other(agent: Agent) -> None:
    steps: list[str] = []

    @agent.message("async")
    async def handle_async(n: int, shared: PerFrame[Steps]) -> None:
        shared.append(f"async {n}")
        await asyncio.sleep(0.01 / n)
        steps.extend(shared)
        shared.clear()

    @agent.message("threaded", threaded=True)
    def handle_threaded(n: int, shared: PerFrame[Steps]) -> None:
        shared.append(f"threaded {n}")

    @agent.message("inline")
    def handle_inline(n: int, shared: PerFrame[Steps]) -> None:
        shared.append(f"inline {n}")

    names = ("inline", "async", "threaded", "inline", "async")
    with Engine(agent) as engine:
        engine.notify(
            Message(name, (Argument.of("n", n),)) for n, name in enumerate(names, start=1)
        )
    assert steps == [f"{name} {n}" for n, name in enumerate(names, start=1)]


def test_the_fallback_stands_in_for_a_late_answer_and_the_frame_goes_on(agent: Agent) -> None:
    number = agent.variable("txn.number", int)
    ends: list[str] = []

    @agent.message("late", timeout=0.01, fallback=number.set(-1))
    async def late() -> Action:
        try:
            await asyncio.Event().wait()
        finally:
            ends.append("cancelled")
        return number.set(1)

    @agent.message("next")
    async def go_on() -> Action:
        return number.set(2)

    with Engine(agent, raise_errors=False) as engine:
        reply = engine.notify([Message("late"), Message("next"), Message("late")])
    assert [action.value for action in reply.actions] == [-1, 2, -1]
    assert isinstance(reply.error, DeadlineError)
    assert ends == ["cancelled"] * 2


def test_an_answer_after_the_deadline_is_ignored(
    agent: Agent, blocked: threading.Event, caplog: pytest.LogCaptureFixture
) -> None:
    number = agent.variable("txn.number", int)
    ended = threading.Semaphore(0)

    @agent.message("stubborn", timeout=0.01, fallback=number.set(-1))
    async def stubborn() -> Action:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            ended.release()
        return number.set(1)

    @agent.message("failing", timeout=0.01, fallback=number.set(-1))
    async def fail_late() -> Action:
        try:
            await asyncio.Event().wait()
        finally:
            ended.release()
            raise RuntimeError("too late to matter")

    @agent.message("thread", timeout=0.01, threaded=True, fallback=number.set(-1))
    def block() -> Action:
        blocked.wait(TIMEOUT)
        ended.release()
        return number.set(1)

    with Engine(agent, raise_errors=False) as engine:
        for name in ("stubborn", "failing", "thread"):
            assert engine.call(name) == {"txn.number": -1}
        blocked.set()
        for _ in range(3):
            assert ended.acquire(timeout=TIMEOUT)
        assert engine.call("stubborn") == {"txn.number": -1}
    assert "too late" not in caplog.text
    assert len(caplog.messages) == 3


@pytest.mark.parametrize("before", ["inline", "waiting"])
def test_the_time_before_a_handler_counts_too(agent: Agent, before: str) -> None:
    number = agent.variable("txn.number", int)
    deadlines: list[float | None] = []

    @agent.message("inline")
    def inline() -> None:
        time.sleep(0.25)

    @agent.message("waiting")
    async def waiting() -> None:
        await asyncio.sleep(0.25)

    @agent.message("handled", timeout=0.2, fallback=number.set(-1))
    async def handled(context: Context) -> Action:
        assert context.deadline is not None
        deadlines.append(context.deadline - context.received)
        await asyncio.sleep(0.001)
        return number.set(1)

    with Engine(agent, raise_errors=False) as engine:
        reply = engine.notify([Message(before), Message("handled")])
        assert reply == {"txn.number": -1}
        assert isinstance(reply.error, DeadlineError)
        assert engine.call("handled") == {"txn.number": 1}
    assert deadlines == [pytest.approx(0.2), pytest.approx(0.2)]


def test_handlers_that_do_not_say_have_a_second(agent: Agent) -> None:
    contexts: list[Context] = []

    @agent.message("async")
    async def handle_async(context: Context) -> None:
        contexts.append(context)

    @agent.message("threaded", threaded=True)
    def handle_threaded(context: Context) -> None:
        contexts.append(context)

    with Engine(agent) as engine:
        engine.notify([Message("async"), Message("threaded")])
    for context in contexts:
        assert context.deadline == context.received + DEFAULT_TIMEOUT


def test_one_failure_costs_its_message_alone(agent: Agent) -> None:
    number = agent.variable("txn.number", int)

    def register(name: str, handle: Callable[[], Awaitable[Any]]) -> None:
        async def call() -> Action:
            return await handle()  # type: ignore[no-any-return]

        agent.message(name, fallback=number.set(-1))(call)

    async def fail() -> None:
        raise RuntimeError("on purpose")

    async def give_up() -> None:
        raise asyncio.CancelledError

    async def answer_nonsense() -> int:
        return 5

    async def answer() -> Action:
        return number.set(1)

    handlers = {"f": fail, "c": give_up, "n": answer_nonsense, "a": answer}
    for name, handle in handlers.items():
        register(name, handle)
    with Engine(agent, raise_errors=False) as engine:
        reply = engine.notify(map(Message, "afacana"))
    assert [action.value for action in reply.actions] == [1, -1, 1, -1, 1, -1, 1]


@pytest.mark.parametrize("error", [RuntimeError("on purpose"), StopIteration()])
def test_a_thread_that_fails_is_answered_with_the_fallback(
    agent: Agent, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    number = agent.variable("txn.number", int)

    @agent.message("message", threaded=True, fallback=number.set(-1))
    def handle() -> Action:
        raise error

    with Engine(agent, raise_errors=False) as engine:
        start = time.monotonic()
        assert engine.call("message") == {"txn.number": -1}
        assert time.monotonic() - start < DEFAULT_TIMEOUT
    line = handle.__code__.co_firstlineno + 2
    place = f"test_frames.py:{line}"
    summary = f"handle failed at {place}, its fallback is sent: {type(error).__name__}"
    assert summary in caplog.text


def test_a_mismatch_before_and_behind_what_waits_costs_its_message_alone(agent: Agent) -> None:
    number = agent.variable("txn.number", int)

    @agent.message("async", fallback=number.set(-1))
    async def handle(n: int) -> Action:
        return number.set(n)

    fits, fits_not = (Argument.of("n", 3),), (Argument.of("n", "3"),)
    with Engine(agent, raise_errors=False) as engine:
        reply = engine.notify(Message("async", each) for each in (fits_not, fits, fits_not))
    assert [action.value for action in reply.actions] == [-1, 3, -1]


user: ContextVar[str] = ContextVar("user", default="nobody")


def test_what_a_handler_sets_in_its_context_is_not_seen_by_later_messages(agent: Agent) -> None:
    seen: list[str] = []

    @agent.message("async")
    async def set_user(name: str) -> None:
        seen.append(user.get())
        user.set(name)
        await asyncio.sleep(0)
        assert user.get() == name

    @agent.message("inline")
    def look() -> None:
        seen.append(user.get())

    @agent.observe("observed")
    def observe() -> None:
        seen.append(user.get())

    async_message = Message("async", (Argument.of("name", "someone"),))
    with Engine(agent) as engine:
        engine.notify([async_message, Message("inline"), async_message, Message("observed")])
        engine.notify([async_message])
    assert seen == ["nobody"] * 5


def test_a_frame_that_turns_out_broken_behind_what_waits_fails_its_connection(
    agent: Agent,
) -> None:
    @agent.message("async")
    async def handle() -> None:
        await asyncio.sleep(0)

    async def use(runtime: Runtime, link: EngineLink) -> None:
        dispatch(runtime, link, encode_messages([Message("async")]) + b"\x07a")
        await until(lambda: link.failed)

    link = EngineLink()
    running(agent, lambda runtime, _: use(runtime, link))
    assert isinstance(link.failed[0], InvalidFrameError)
    assert link.finished == []


def test_a_cancelled_frame_answers_nothing_and_shows_observers_nothing(agent: Agent) -> None:
    ends: list[str] = []

    @agent.message("async")
    async def handle() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            ends.append("cancelled")
            raise

    @agent.observe("async")
    def see() -> None:
        ends.append("observed")

    async def use(runtime: Runtime, link: EngineLink) -> None:
        dispatch(runtime, link, encode_messages([Message("async")]))
        await asyncio.sleep(0)
        link.waiting[0].cancel()
        await until(lambda: ends)
        await asyncio.sleep(0)
        assert (link.finished, link.failed) == ([], [])

    running(agent, use)
    assert ends == ["cancelled"]


def test_a_frame_that_waits_does_not_keep_the_read_it_came_in(agent: Agent) -> None:
    @agent.message("async")
    async def handle() -> None:
        await asyncio.sleep(0)

    async def use(runtime: Runtime, link: EngineLink) -> None:
        payload = encode_messages([Message("async")])
        read = bytes(100_000) + payload
        notify = Notify(b"\1\1", read, 100_000, len(read))
        references = sys.getrefcount(read)
        runtime.dispatcher.dispatch([notify], 0, link)
        assert sys.getrefcount(read) == references - 1
        assert link.waiting != []
        assert notify.payload == b""
        assert link.waiting[0].size == len(payload)
        await until(lambda: link.finished)

    running(agent, use)


def test_an_ended_call_does_not_keep_its_frame(agent: Agent) -> None:
    @agent.message("async", timeout=TIMEOUT)
    async def handle() -> None:
        await asyncio.Event().wait()

    async def use(runtime: Runtime, link: EngineLink) -> None:
        payload = encode_messages([Message("async")])
        ids = bytes(range(1, 3))
        references = sys.getrefcount(ids)
        runtime.dispatcher.dispatch([Notify(ids, payload, 0, len(payload))], 0, link)
        await asyncio.sleep(0)
        assert sys.getrefcount(ids) > references
        frame = link.waiting.pop()
        frame.cancel()
        frame.cancel()
        del frame
        await asyncio.sleep(0.01)
        gc.collect()
        # Its deadline is still known.
        assert sys.getrefcount(ids) == references

    running(agent, use)
