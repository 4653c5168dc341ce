"""spoakit.agent._dispatch_cy: calls of handlers, and observers."""

import asyncio
import re
import time
from collections.abc import Callable
from typing import Any

import pytest

from spoakit import (
    Action,
    Actions,
    Agent,
    Argument,
    Context,
    DataType,
    MaxFrameSize,
    Message,
    PerFrame,
)
from spoakit.agent import _dispatch_cy
from spoakit.agent.runtime import Runtime
from spoakit.logs import forget_throttled
from spoakit.testing import Engine
from tests.support.agent_frames import EngineLink, notify
from tests.support.dispatching import answered, dispatching, echo, frame


@pytest.mark.parametrize("answer", [{"txn.number": 1}, "text", 1, [None], (1,)])
def test_what_are_no_actions_is_an_error_and_the_fallback(agent: Agent, answer: Any) -> None:
    number = agent.variable("txn.number", int)

    @agent.message("message", fallback=number.set(-1))
    def handle() -> Actions:
        return answer  # type: ignore[no-any-return]

    with Engine(agent, raise_errors=False) as engine:
        reply = engine.call("message")
        assert isinstance(reply.error, TypeError)
        assert reply == {"txn.number": -1}


def test_tuples_lists_one_action_and_none_are_actions(agent: Agent) -> None:
    number, text = agent.variable("txn.number", int), agent.variable("txn.text", str)
    answers: list[Actions] = [None, (), [], number.set(1), (number.set(1), text.set("a"))]

    @agent.message("message")
    def handle(n: int) -> Actions:
        return answers[n]

    with Engine(agent) as engine:
        replies = [engine.call("message", n) for n in range(len(answers))]
    assert replies == [{}, {}, {}, {"txn.number": 1}, {"txn.number": 1, "txn.text": "a"}]


class Tally:
    """What messages of one frame share."""

    count = 0


def test_what_is_per_frame_ends_with_the_frame(agent: Agent) -> None:
    number = agent.variable("txn.number", int)

    @agent.message("message")
    def handle(*, tally: PerFrame[Tally]) -> Action:
        tally.count += 1
        return number.set(tally.count)

    with Engine(agent) as engine:
        for _ in range(2):
            reply = engine.notify([Message("message")] * 3)
            assert [action.value for action in reply.actions] == [1, 2, 3]


def test_the_context_and_the_message_are_those_of_the_call(agent: Agent) -> None:
    seen: list[tuple[Context, Message]] = []

    @agent.message("message")
    def handle(context: Context, message: Message, n: int) -> None:
        seen.append((context, message))

    sent = Message("message", (Argument("n", DataType.UINT32, 5), Argument.of("x", b"\xff")))

    def use(runtime: Runtime) -> None:
        runtime.dispatcher.dispatch([notify(3, sent), notify(4, sent)], 0, EngineLink())

    dispatching(agent, use)
    assert seen == [
        (Context("message", None, "192.0.2.9:1234", stream, 1, 0.0, None), sent)
        for stream in (3, 4)
    ]


def test_the_agreed_frame_size_is_that_of_the_connection_on_each_path(agent: Agent) -> None:
    seen: list[tuple[int, int, int]] = []

    @agent.message("message")
    def handle(first: MaxFrameSize, n: int, second: MaxFrameSize) -> None:
        seen.append((first, n, second))

    def sent(number: int) -> Message:
        return Message("message", (Argument.of("n", number),))

    def use(runtime: Runtime) -> None:
        dispatcher = runtime.dispatcher
        small, large = EngineLink(1000), EngineLink(2000)
        dispatcher.dispatch([notify(1, sent(0), sent(1))], 0, small)
        dispatcher.dispatch([notify(1, sent(2)), notify(2, sent(3))], 0, large)
        dispatcher.dispatch([notify(1, sent(4)), notify(2, sent(5))], 0, small)
        for number, link in ((6, large), (7, small)):
            assert answered(dispatcher.try_single(frame(sent(number)), 0.0, link)) == []

    dispatching(agent, use)
    sizes = (1000, 1000, 2000, 2000, 1000, 1000, 2000, 1000)
    assert seen == [(size, number, size) for number, size in enumerate(sizes)]


def test_middleware_stands_around_handlers_with_arguments_in_their_order() -> None:
    calls: list[tuple[str, tuple[Any, ...]]] = []

    def logged(handler: Callable[..., Any], name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            calls.append((name, (*args, kwargs)))
            return handler(*args, **kwargs)

        return call

    agent = Agent("middleware", middleware=[logged])
    number = agent.variable("txn.number", int)

    @agent.message("message")
    def handle(a: int, *, b: int) -> Action:
        return number.set(a - b)

    with Engine(agent) as engine:
        assert engine.call("message", b=2, a=5) == {"txn.number": 3}
    assert calls == [("message", (5, {"b": 2}))]


def test_a_slow_handler_is_told_and_a_quick_one_is_not(
    agent: Agent, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()  # in all other tests it is not told

    @agent.message("slow")
    def handle_slow() -> None:
        time.sleep(0.012)

    @agent.message("quick")
    def handle_quick() -> None: ...

    @agent.message("async")
    async def handle_async() -> None:
        await asyncio.sleep(0.02)

    with Engine(agent) as engine:
        for _ in range(20):
            engine.notify([Message("async"), Message("quick")])
            if not caplog.messages:
                break
            # A busy machine can make anything slow, but not each time.
            caplog.clear()
            forget_throttled()
        else:
            pytest.fail("what is quick is told of each time")
        engine.notify([Message("slow")])
    [told] = caplog.messages
    assert re.search(
        r"handle_slow blocked the event loop for \d+ ms; make it async def, or threaded=True", told
    )


@pytest.mark.parametrize("waits", [False, True])
def test_what_an_async_handler_does_before_it_waits_is_told_if_it_is_slow(
    agent: Agent, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, waits: bool
) -> None:
    monkeypatch.undo()

    @agent.message("async")
    async def handle_async() -> None:
        time.sleep(0.012)
        if waits:
            await asyncio.sleep(0)

    with Engine(agent) as engine:
        for _ in range(2):  # the second time its shape is known
            engine.notify([Message("async")])
            [told] = caplog.messages
            assert re.search(
                r"handle_async blocked the event loop for \d+ ms; .*asyncio.to_thread", told
            )
            caplog.clear()
            forget_throttled()


def test_calls_in_a_row_that_are_slow_together_are_told(
    agent: Agent, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    now = 0.0
    monkeypatch.setattr(_dispatch_cy, "monotonic", lambda: now)

    @agent.message("message")
    def handle() -> None:
        nonlocal now
        now += 0.004

    def use(runtime: Runtime) -> None:
        link = EngineLink()
        frames = [notify(stream, Message("message")) for stream in range(6)]
        runtime.dispatcher.dispatch(frames, 0, link)
        assert len(link.acks()) == 6

    dispatching(agent, use)
    assert "ms in 5 calls; make it" in caplog.text


def test_observers_and_handlers_of_a_message_all_see_all_frames(agent: Agent) -> None:
    number = agent.variable("txn.number", int)
    seen: list[tuple[str, int]] = []

    @agent.observe("both")
    def first(n: int) -> None:
        seen.append(("first", n))

    @agent.message("both")
    def handle(n: int) -> Action:
        return number.set(n)

    @agent.observe("both")
    def second(n: int) -> None:
        seen.append(("second", n))

    @agent.observe("alone")
    def alone(n: int) -> None:
        seen.append(("alone", n))

    with Engine(agent) as engine:
        for n in range(3):
            assert engine.call("both", n=n) == {"txn.number": n}
        for n in range(3):
            assert engine.call("alone", n=n) == {}
    assert seen == [
        *((name, n) for n in range(3) for name in ("first", "second")),
        *(("alone", n) for n in range(3)),
    ]


def test_an_observer_with_unfitting_arguments_or_an_error_disturbs_no_other(
    agent: Agent, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[int] = []

    @agent.observe("message")
    def picky(text: str) -> None:
        raise AssertionError("called without its argument")

    @agent.observe("message")
    def failing(n: int) -> None:
        raise RuntimeError("on purpose")

    @agent.observe("message")
    def fine(n: int) -> None:
        seen.append(n)

    with Engine(agent, raise_errors=False) as engine:
        for n in range(2):
            assert engine.call("message", n=n) == {}
    assert seen == [0, 1]
    assert re.search(r"failing failed at test_calls\.py:\d+: RuntimeError: on purpose", caplog.text)
    assert "fallback is sent: RuntimeError" not in caplog.text


def test_observers_run_after_all_frames_of_a_read(agent: Agent) -> None:
    order: list[str] = []

    @agent.message("message")
    def handle() -> None:
        order.append("handler")

    @agent.observe("message")
    def see() -> None:
        order.append("observer")

    def use(runtime: Runtime) -> None:
        link = EngineLink()
        runtime.dispatcher.dispatch([notify(1, Message("message"))] * 3, 0, link)
        assert len(link.acks()) == 3
        assert order == ["handler"] * 3

    dispatching(agent, use)
    assert order == ["handler"] * 3 + ["observer"] * 3


def test_what_goes_wrong_is_counted_by_handler(agent: Agent) -> None:
    @agent.message("message")
    def handle(n: int) -> None:
        raise RuntimeError("on purpose")

    def use(runtime: Runtime) -> None:
        link = EngineLink()
        events = [notify(1, Message("message")), notify(2, Message("message", echo(1).arguments))]
        runtime.dispatcher.dispatch(events * 2, 0, link)
        runtime.dispatcher.dispatch([notify(1, Message("unknown"))], 0, link)
        [bound] = runtime.dispatcher.routes[b"message"]
        assert bound.handler.message == "message"
        assert (bound.calls, bound.errors.failures, bound.errors.mismatches) == (2, 2, 2)
        assert (bound.errors.expired, bound.errors.refused) == (0, 0)
        assert runtime.dispatcher.unknown == 1

    dispatching(agent, use)
