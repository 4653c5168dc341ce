"""spoakit.agent._dispatch_cy: from a NOTIFY to its handlers and their actions."""

import asyncio
import re
import time
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import pytest

from spoakit import (
    Action,
    Actions,
    Agent,
    Argument,
    Context,
    DataType,
    Headers,
    IPAddress,
    MaxFrameSize,
    Message,
    PerFrame,
)
from spoakit.agent import _dispatch_cy
from spoakit.agent._dispatch_cy import MAX_OUTGOING, MAX_PLANS
from spoakit.agent.runtime import Runtime
from spoakit.exceptions import InvalidFrameError
from spoakit.logs import forget_throttled
from spoakit.spop import (
    Aborted,
    FrameType,
    decode_actions,
    decode_frame,
    encode_frame,
    encode_messages,
)
from spoakit.testing import Engine
from tests.support.agent_frames import EngineLink, notify, raw_notify

SRC = IPv4Address("192.0.2.1")


@pytest.fixture
def agent() -> Agent:
    return Agent("agent")


# --- frames --------------------------------------------------------------------------------


def dispatching(agent: Agent, use: Callable[[Runtime], None]) -> None:
    async def live() -> None:
        runtime = Runtime([agent])
        await runtime.start()
        use(runtime)
        await runtime.aclose()

    asyncio.run(live())


@pytest.fixture
def echoing(agent: Agent) -> Agent:
    number = agent.variable("txn.number", int)

    @agent.message("echo")
    def echo(n: int) -> Action:
        return number.set(n)

    return agent


def echo(n: int) -> Message:
    return Message("echo", (Argument.of("n", n),))


def test_frames_are_answered_together_up_to_an_event_that_is_none(echoing: Agent) -> None:
    def use(runtime: Runtime) -> None:
        link = EngineLink()
        events = [notify(1, echo(7)), notify(2), notify(3, echo(8), echo(9)), Aborted(b""), None]
        assert runtime.dispatcher.dispatch(events, 1, link) == 3
        acks = [(stream, [each.value for each in actions]) for stream, actions in link.acks()]
        assert acks == [(2, []), (3, [8, 9])]

    dispatching(echoing, use)


@pytest.mark.parametrize(
    "payload", [b"\x04echo", b"\x04echo\x01\x01n", b"\x04echo\x01\x01n\x0f", b"\xff", b"\x04ech"]
)
def test_a_frame_that_cannot_be_read_leaves_the_acks_of_those_before(
    echoing: Agent, payload: bytes
) -> None:
    def use(runtime: Runtime) -> None:
        link = EngineLink()
        with pytest.raises(InvalidFrameError):
            runtime.dispatcher.dispatch([notify(1, echo(7)), raw_notify(2, payload)], 0, link)
        assert [stream for stream, _ in link.acks()] == [1]

    dispatching(echoing, use)


def test_frames_like_the_last_one_and_others_are_answered_in_their_order(
    echoing: Agent, caplog: pytest.LogCaptureFixture
) -> None:
    @echoing.message("fail")
    def fail(n: int) -> None:
        raise ValueError(n)

    def use(runtime: Runtime) -> None:
        link = EngineLink()
        sent = [
            echo(0),
            echo(1),
            Message("fail", echo(2).arguments),
            echo(3),
            Message("no"),
            echo(5),
        ]
        events = [notify(stream, message) for stream, message in enumerate(sent)]
        for _ in range(2):
            assert runtime.dispatcher.dispatch(events, 0, link) == 6
            acks = [(stream, [each.value for each in actions]) for stream, actions in link.acks()]
            assert acks == [(0, [0]), (1, [1]), (2, []), (3, [3]), (4, []), (5, [5])]
            link.outgoing.clear()
        assert runtime.dispatcher.frames == 12
        assert runtime.dispatcher.routes[b"echo"][0].calls == 8

    dispatching(echoing, use)


def test_it_stops_where_much_is_to_be_sent(agent: Agent) -> None:
    page = agent.variable("txn.page", bytes)

    @agent.message("page")
    def handle() -> Action:
        return page.set(bytes(16000))

    def use(runtime: Runtime) -> None:
        link = EngineLink()
        events = [notify(1, Message("page"))] * 100
        handled = runtime.dispatcher.dispatch(events, 0, link)
        assert MAX_OUTGOING < len(link.outgoing) < MAX_OUTGOING + 16380
        assert len(link.acks()) == handled
        assert runtime.dispatcher.dispatch(events, 100 - handled, link) > 100 - handled

    dispatching(agent, use)


def test_an_ack_is_as_long_as_agreed_and_no_longer(agent: Agent) -> None:
    page = agent.variable("txn.page", bytes)

    @agent.message("page")
    def handle(size: int) -> Action:
        return page.set(bytes(size))

    def use(runtime: Runtime) -> None:
        link = EngineLink(max_frame_size=256)
        # Type, flags, ids, SET-VAR, its count, scope, name, type and length take 17 bytes.
        for size in (240, 239):
            message = Message("page", (Argument.of("size", size),))
            runtime.dispatcher.dispatch([notify(1, message)], 0, link)
        assert [len(actions) for _, actions in link.acks()] == [0, 1]
        assert runtime.dispatcher.oversized == 1

    dispatching(agent, use)


# --- a frame that came alone ---------------------------------------------------------------


def frame(*messages: Message) -> bytes:
    return encode_frame(FrameType.NOTIFY, encode_messages(messages), ids=b"\x07\x01")


def answered(ack: bytes | None) -> list[Any] | None:
    """Take an ACK apart: its actions' values."""
    if ack is None:
        return None
    assert int.from_bytes(ack[:4], "big") == len(ack) - 4
    return [action.value for action in decode_actions(decode_frame(ack[4:]).payload)]


def test_a_frame_that_came_alone_is_answered_if_it_looks_like_the_last_one(echoing: Agent) -> None:
    def use(runtime: Runtime) -> None:
        dispatcher, link = runtime.dispatcher, EngineLink()
        assert dispatcher.try_single(frame(echo(1)), 0.0, link) is None
        dispatcher.dispatch([notify(1, echo(1))], 0, link)
        assert answered(dispatcher.try_single(frame(echo(2)), 0.0, link)) == [2]
        assert dispatcher.try_single(frame(echo(3), echo(4)), 0.0, link) is None
        assert dispatcher.try_single(frame(Message("other")), 0.0, link) is None
        assert dispatcher.try_single(frame(echo(5)) * 2, 0.0, link) is None
        assert answered(dispatcher.try_single(frame(echo(6)), 0.0, link)) == [6]
        assert dispatcher.frames == 3
        assert dispatcher.routes[b"echo"][0].calls == 3
        assert len(link.acks()) == 1

    dispatching(echoing, use)


def test_a_frame_that_came_alone_and_cannot_be_read_is_left_alone(echoing: Agent) -> None:
    def use(runtime: Runtime) -> None:
        dispatcher, link = runtime.dispatcher, EngineLink()
        dispatcher.dispatch([notify(1, echo(1))], 0, link)
        cut = encode_frame(FrameType.NOTIFY, b"\x04echo\x01\x01n\x04", ids=b"\x07\x01")
        assert dispatcher.try_single(cut, 0.0, link) is None
        assert dispatcher.frames == 1

    dispatching(echoing, use)


def test_the_ack_of_a_frame_that_came_alone_is_as_long_as_agreed(agent: Agent) -> None:
    page = agent.variable("txn.page", bytes)

    @agent.message("page")
    def handle(size: int) -> Action:
        return page.set(bytes(size))

    def use(runtime: Runtime) -> None:
        dispatcher, link = runtime.dispatcher, EngineLink(max_frame_size=256)
        small, fitting, large = (
            Message("page", (Argument.of("size", size),)) for size in (0, 239, 240)
        )
        dispatcher.dispatch([notify(1, small)], 0, link)
        assert answered(dispatcher.try_single(frame(fitting), 0.0, link)) == [bytes(239)]
        assert answered(dispatcher.try_single(frame(large), 0.0, link)) == []
        assert dispatcher.oversized == 1

    dispatching(agent, use)


def test_a_frame_that_came_alone_is_observed_after_its_ack(agent: Agent) -> None:
    seen: list[int] = []

    @agent.observe("see")
    def see(n: int) -> None:
        seen.append(n)

    def use(runtime: Runtime) -> None:
        dispatcher, link = runtime.dispatcher, EngineLink()
        first, second = (Message("see", (Argument.of("n", n),)) for n in (1, 2))
        dispatcher.dispatch([notify(1, first)], 0, link)
        assert answered(dispatcher.try_single(frame(second), 0.0, link)) == []
        assert seen == []

    dispatching(agent, use)
    assert seen == [1, 2]


# --- arguments -----------------------------------------------------------------------------


def test_every_kind_of_parameter_gets_its_value(agent: Agent) -> None:
    calls: list[tuple[Any, ...]] = []

    @agent.message("message")
    def handle(
        first: IPAddress,
        /,
        method: str,
        x_id: bytes,
        rest: int | None,
        absent: int = 5,
        *,
        context: Context,
        flag: bool,
        text: str | None = None,
    ) -> None:
        calls.append((first, method, x_id, rest, absent, context.message, flag, text))

    with Engine(agent) as engine:
        engine.call(
            "message",
            SRC,
            Argument.of("x-id", "7"),
            (DataType.INT32, -5),
            flag=True,
            method=b"caf\xe9",
            text=None,
        )
    assert calls == [(SRC, "caf\udce9", b"7", -5, 5, "message", True, None)]


def test_headers_come_lazily_from_binary_and_text(agent: Agent) -> None:
    hosts: list[Any] = []

    @agent.message("message")
    def handle(hdrs: Headers) -> None:
        hosts.append(hdrs.get("host"))

    with Engine(agent) as engine:
        engine.call("message", hdrs=b"\x04Host\x03a.b\x00\x00")
        engine.call("message", hdrs="Host: a.b\r\n\r\n")
    assert hosts == ["a.b", "a.b"]


def test_shapes_may_change_from_frame_to_frame(agent: Agent) -> None:
    kind = agent.variable("txn.kind", str)

    @agent.message("message")
    def handle(src: IPAddress | None, n: int = 0) -> Action:
        return kind.set(f"{src} {n}")

    six = IPv6Address("2001:db8::1")
    with Engine(agent) as engine:
        for _ in range(3):
            assert engine.call("message", src=SRC) == {"txn.kind": "192.0.2.1 0"}
            assert engine.call("message", src=six) == {"txn.kind": "2001:db8::1 0"}
            assert engine.call("message", src=None, n=1) == {"txn.kind": "None 1"}
            assert engine.call("message", n=2, src=SRC) == {"txn.kind": "192.0.2.1 2"}
            assert engine.call("message") == {"txn.kind": "None 0"}


def test_more_shapes_than_are_kept_are_still_understood(agent: Agent) -> None:
    number = agent.variable("txn.number", int)

    @agent.message("message")
    def handle(n: int) -> Action:
        return number.set(n)

    with Engine(agent) as engine:
        for turn in range(2):
            for shape in range(3 * MAX_PLANS):
                extra = {f"extra{shape}": turn}
                assert engine.call("message", n=shape, **extra) == {"txn.number": shape}


def test_an_argument_nobody_takes_is_told_once(
    echoing: Agent, caplog: pytest.LogCaptureFixture
) -> None:
    with Engine(echoing) as engine:
        for n in range(3):
            assert engine.call("echo", n=n, surplus=b"\xff") == {"txn.number": n}
    assert caplog.text.count("arguments that handler") == 1
    assert "does not take: 'surplus'" in caplog.text


def test_a_handler_that_takes_the_message_takes_all_its_arguments(
    agent: Agent, caplog: pytest.LogCaptureFixture
) -> None:
    @agent.message("message")
    def handle(message: Message) -> None:
        pass

    with Engine(agent) as engine:
        engine.call("message", 1, surplus=b"x")
    assert "does not take" not in caplog.text


def test_a_mismatch_is_never_called_however_often_it_comes(
    agent: Agent, caplog: pytest.LogCaptureFixture
) -> None:
    number = agent.variable("txn.number", int)
    calls: list[int] = []

    @agent.message("message", fallback=number.set(-1))
    def handle(n: int = 0) -> Action:
        calls.append(n)
        return number.set(n)

    with Engine(agent, raise_errors=False) as engine:
        for _ in range(2):
            assert engine.call("message", n=1) == {"txn.number": 1}
            for _ in range(3):
                assert engine.call("message", n="1") == {"txn.number": -1}
    assert calls == [1, 1]
    assert caplog.text.count("argument 'n' is STRING, not INT32 or") == 1


def test_the_shape_of_another_handlers_message_is_not_mistaken(agent: Agent) -> None:
    name = agent.variable("txn.name", str)

    @agent.message("one")
    def one(n: int) -> Action:
        return name.set(f"one {n}")

    @agent.message("two")
    def two(n: int) -> Action:
        return name.set(f"two {n}")

    with Engine(agent) as engine:
        for n in range(3):
            assert engine.call("one", n=n) == {"txn.name": f"one {n}"}
            assert engine.call("two", n=n) == {"txn.name": f"two {n}"}
            both = [Message(each, (Argument.of("n", n),)) for each in ("one", "two", "one")]
            values = [action.value for action in engine.notify(both).actions]
            assert values == [f"one {n}", f"two {n}", f"one {n}"]


def test_an_unknown_message_is_told_once_and_its_neighbours_are_answered(
    echoing: Agent, caplog: pytest.LogCaptureFixture
) -> None:
    with Engine(echoing, raise_errors=False) as engine:
        for n in range(2):
            unknown = Message("no\nsuch", (Argument.of("", SRC),))
            assert engine.notify([unknown, echo(n), unknown]) == {"txn.number": n}
    assert caplog.text.count("has no handler here") == 1


def test_long_names_are_cut_in_logs(echoing: Agent, caplog: pytest.LogCaptureFixture) -> None:
    many = tuple(Argument.of(f"{n}-" + "y" * 1000, 1) for n in range(20))
    with Engine(echoing, raise_errors=False) as engine:
        engine.notify([Message("x" * 100_000), Message("echo", (*echo(1).arguments, *many))])
    unknown, extra = caplog.messages
    assert f"message '{'x' * 80}'... from" in unknown
    assert extra.endswith(f"'15-{'y' * 77}'... and 4 more")


# --- calls ---------------------------------------------------------------------------------


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
    assert re.search(r"handle_slow took \d+ ms .*: make it async def, or threaded=True", told)


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
                r"handle_async took \d+ ms on the event loop, .*asyncio.to_thread", told
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
    assert "on the event loop for 5 calls, and everything waited" in caplog.text


# --- observers -----------------------------------------------------------------------------


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
    assert re.search(
        r"failing failed at test_dispatch\.py:\d+: RuntimeError: on purpose", caplog.text
    )
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
