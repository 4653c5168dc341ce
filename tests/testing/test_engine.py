"""spoakit.testing.engine: handlers are called, and answer, as through HAProxy."""

import asyncio
import threading
from collections.abc import AsyncIterator
from ipaddress import IPv4Address, IPv6Address
from typing import Annotated, Any

import pytest

from spoakit import (
    Action,
    Actions,
    Agent,
    Argument,
    Context,
    DataType,
    Fetch,
    IPAddress,
    Message,
    PerFrame,
)
from spoakit.exceptions import (
    CallError,
    ConfigurationError,
    DeadlineError,
    MismatchError,
    SpoakitError,
    StartupError,
)
from spoakit.testing import Engine, Sendable

SRC = IPv4Address("192.0.2.1")

rate = Agent("rate")
allowed = rate.variable("txn.allowed", bool)
hits = rate.variable("sess.hits", int)


class Redis:
    """What the agent talks to in production."""

    async def incr(self, key: str) -> int:
        raise AssertionError("the real one was asked")


class FakeRedis(Redis):
    def __init__(self, value: int) -> None:
        self._value = value

    async def incr(self, key: str) -> int:
        await asyncio.sleep(0)
        assert key == "rl:192.0.2.1"
        return self._value


log: list[str] = []


@rate.resource
async def redis() -> AsyncIterator[Redis]:
    log.append("up")
    yield Redis()
    log.append("down")


@rate.message("rate", event="on-frontend-http-request", timeout=0.5, fallback=allowed.set(True))
async def limit(src: IPAddress, redis: Redis) -> Action:
    return allowed.set(await redis.incr(f"rl:{src}") <= 100)


def test_a_reply_equals_what_was_set() -> None:
    with Engine(rate, resources={Redis: FakeRedis(101)}) as engine:
        assert engine.call("rate", src=SRC) == {"txn.allowed": False}
    with Engine(rate, resources={Redis: FakeRedis(100)}) as engine:
        reply = engine.call("rate", src=SRC)
        assert reply == {"txn.allowed": True}
        assert reply.actions == (allowed.set(True),)
        assert reply.error is None
        assert repr(reply) == "Reply({'txn.allowed': True})"


def test_resources_live_as_long_as_the_engine_and_not_where_replaced() -> None:
    log.clear()
    with Engine(rate, resources={Redis: FakeRedis(1)}):
        assert log == []
    with Engine(rate):
        assert log == ["up"]
    assert log == ["up", "down"]


def test_an_engine_can_run_again_but_not_twice_at_once() -> None:
    engine = Engine(rate, resources={Redis: FakeRedis(1)})
    for _ in range(2):
        with engine:
            assert engine.call("rate", src=SRC) == {"txn.allowed": True}
            with pytest.raises(SpoakitError, match="already running"):
                engine.__enter__()
    with pytest.raises(SpoakitError, match="is not running: write"):
        engine.call("rate", src=SRC)


def test_an_object_for_what_is_no_resource_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="no agent has a resource of type"):
        Engine(rate, resources={int: 3})


def test_a_resource_that_fails_ends_the_start() -> None:
    agent = Agent("broken")

    @agent.resource
    async def never() -> AsyncIterator[Redis]:
        raise OSError("no route to host")
        yield Redis()

    @agent.observe("message")
    def see(redis: Redis) -> None: ...

    with pytest.raises(StartupError, match="no route to host"), Engine(agent):
        pass


def failing_at_its_end() -> Agent:
    agent = Agent("failing")

    @agent.resource
    async def first() -> AsyncIterator[Redis]:
        yield FakeRedis(1)
        raise OSError("first")

    @agent.resource
    async def second() -> AsyncIterator[dict[str, int]]:
        yield {}
        raise OSError("second")

    @agent.observe("message")
    def see(redis: Redis) -> None: ...

    return agent


def test_the_first_failure_of_resources_at_their_end_is_raised(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with pytest.raises(OSError, match="second"), Engine(failing_at_its_end()):
        pass
    assert caplog.text.count("failed while it stopped") == 2


def test_an_exception_of_the_block_comes_before_those_of_resources() -> None:
    with pytest.raises(KeyError, match="block"), Engine(failing_at_its_end()):
        raise KeyError("block")


def test_failures_at_the_end_are_only_logged_without_raise_errors(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with Engine(failing_at_its_end(), raise_errors=False):
        pass
    assert caplog.text.count("failed while it stopped") == 2


# --- arguments -----------------------------------------------------------------------------

wire = Agent("wire")


@wire.observe("anything")
def keep(message: Message) -> None:
    seen.append(message)


seen: list[Message] = []


def send(*args: Sendable, **kwargs: Sendable) -> Message:
    with Engine(wire) as engine:
        engine.call("anything", *args, **kwargs)
    return seen.pop()


@pytest.mark.parametrize(
    ("value", "data_type"),
    [
        (5, DataType.INT64),
        (-(2**63), DataType.INT64),
        (True, DataType.BOOL),
        ("text\udcff", DataType.STRING),
        (b"\x00\xff", DataType.BINARY),
        (SRC, DataType.IPV4),
        (IPv6Address("2001:db8::1"), DataType.IPV6),
        (None, DataType.NULL),
    ],
)
def test_values_go_in_the_types_haproxy_uses(value: Any, data_type: DataType) -> None:
    assert send(value, key=value) == Message(
        "anything", (Argument("", data_type, value), Argument("key", data_type, value))
    )


def test_other_types_and_names_can_be_asked_for() -> None:
    header = Argument("x-id", DataType.BINARY, b"7")
    sent = send((DataType.UINT32, 7), header, status=(DataType.INT32, -5), other=header)
    assert sent.arguments == (
        Argument("", DataType.UINT32, 7),
        header,
        Argument("status", DataType.INT32, -5),
        Argument("other", DataType.BINARY, b"7"),
    )


def test_a_message_may_have_an_argument_of_any_name() -> None:
    assert send(message="a", self="b").arguments == (
        Argument("message", DataType.STRING, "a"),
        Argument("self", DataType.STRING, "b"),
    )


def test_a_payload_over_the_frame_size_comes_in_fragments_and_whole() -> None:
    body = bytes(range(256)) * 300
    assert send(body=body).arguments == (Argument("body", DataType.BINARY, body),)


def test_what_spop_cannot_send_is_refused_by_name() -> None:
    with pytest.raises(TypeError, match=r"message 'anything': argument 'load' must be a bool, int"):
        send(load=0.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="out of the range of UINT32"):
        send((DataType.UINT32, -1))


# --- replies -------------------------------------------------------------------------------


def test_an_unset_variable_is_none_and_the_later_of_two_actions_counts() -> None:
    agent = Agent("unsetting")
    user = agent.variable("txn.user", str)
    score = agent.variable("proc.score", DataType.UINT32)

    @agent.message("message")
    def handle() -> Actions:
        return [user.set("anna"), score.set(7), user.set(None)]

    with Engine(agent) as engine:
        reply = engine.call("message")
    assert reply == {"txn.user": None, "proc.score": 7}
    assert [action.data_type for action in reply.actions] == [
        DataType.STRING,
        DataType.UINT32,
        DataType.NULL,
    ]


class Verdict:
    blocked_by = ""


def test_messages_of_one_frame_share_what_is_per_frame_and_answer_in_order() -> None:
    agent = Agent("waf")
    first, second = agent.variable("txn.first", str), agent.variable("txn.second", str)

    @agent.message("address")
    async def check_address(verdict: PerFrame[Verdict]) -> Action:
        await asyncio.sleep(0)
        verdict.blocked_by += "address"
        return first.set(verdict.blocked_by)

    @agent.message("path", threaded=True)
    def check_path(verdict: PerFrame[Verdict]) -> Action:
        verdict.blocked_by += ",path"
        return second.set(verdict.blocked_by)

    with Engine(agent) as engine:
        for _ in range(2):
            reply = engine.notify([Message("address"), Message("path")])
            assert list(reply.items()) == [("txn.first", "address"), ("txn.second", "address,path")]
        assert engine.notify([]) == {}


def test_the_context_tells_of_the_frame() -> None:
    agent = Agent("contextual")
    contexts: list[Context] = []

    @agent.observe("message")
    def see(context: Context) -> None:
        contexts.append(context)

    with Engine(agent) as engine:
        engine.call("message")
        engine.call("message")
    one, two = contexts
    assert (one.message, one.engine_id, one.frame_id) == ("message", "testing.Engine", 1)
    assert two.stream_id > one.stream_id
    assert two.received > one.received


def test_observers_have_run_and_after_the_handler() -> None:
    agent = Agent("observed")
    ran: list[str] = []

    @agent.observe("message")
    def see() -> None:
        ran.append("observer")

    @agent.message("message")
    async def handle() -> None:
        await asyncio.sleep(0.001)
        ran.append("handler")

    with Engine(agent) as engine:
        engine.call("message")
        assert ran == ["handler", "observer"]
        engine.call("message")
        assert ran == ["handler", "observer"] * 2


# --- errors --------------------------------------------------------------------------------


class Boom(Exception):
    pass


failing = Agent("failing")
verdict = failing.variable("txn.verdict", str)
FALLBACK = verdict.set("fallback")
released = threading.Event()


@failing.message("inline", fallback=FALLBACK)
def fail_inline(text: str) -> None:
    raise Boom(text)


@failing.message("async", fallback=FALLBACK)
async def fail_async(text: str) -> None:
    await asyncio.sleep(0)
    raise Boom(text)


@failing.message("threaded", fallback=FALLBACK, threaded=True)
def fail_threaded(text: str) -> None:
    raise Boom(text)


@failing.message("dict", fallback=FALLBACK)
def return_dict(text: str) -> Actions:
    return {"verdict": "text"}  # type: ignore[return-value]


@failing.message("late", fallback=FALLBACK, timeout=0.01)
async def hang(text: str) -> None:
    await asyncio.Event().wait()


@failing.message("late-thread", fallback=FALLBACK, timeout=0.01, threaded=True)
def hang_thread(text: str) -> None:
    released.wait(10)


FAILURES = [
    ("inline", Boom, "^why$"),
    ("async", Boom, "^why$"),
    ("threaded", Boom, "^why$"),
    ("dict", TypeError, "a handler must return actions, got {'verdict': 'text'}"),
    ("late", DeadlineError, r"hang did not finish within 0\.01 s"),
    ("late-thread", TimeoutError, "hang_thread did not finish"),
]


@pytest.mark.parametrize(("message", "kind", "text"), FAILURES)
def test_what_a_server_would_log_is_raised(message: str, kind: type[Exception], text: str) -> None:
    released.clear()
    with Engine(failing) as engine, pytest.raises(kind, match=text):
        engine.call(message, "why")
    released.set()


@pytest.mark.parametrize(("message", "kind", "text"), FAILURES)
def test_or_it_is_in_the_reply_beside_the_fallback(
    message: str, kind: type[Exception], text: str
) -> None:
    released.clear()
    with Engine(failing, raise_errors=False) as engine:
        reply = engine.call(message, "why")
        assert reply == {"txn.verdict": "fallback"}
        assert isinstance(reply.error, kind)
    released.set()


def test_arguments_that_do_not_fit_raise_with_their_name() -> None:
    with Engine(failing) as engine:
        with pytest.raises(MismatchError, match="argument 'text' is missing"):
            engine.call("inline")
        with pytest.raises(
            MismatchError, match="argument 'text' must be STRING or BINARY, got INT64"
        ):
            engine.call("async", 5)
        with pytest.raises(Boom):
            engine.call("inline", "after errors as before")


def test_one_failure_leaves_the_others_of_its_frame() -> None:
    with Engine(failing, raise_errors=False) as engine:
        text = (Argument.of("", "why"),)
        reply = engine.notify([Message("inline", text), Message("async", text)])
        assert reply.actions == (FALLBACK, FALLBACK)
        assert repr(reply).startswith("Reply({'txn.verdict': 'fallback'}, error=Boom(")


def test_what_an_observer_raises_is_raised() -> None:
    agent = Agent("observer")

    @agent.observe("message")
    def see() -> None:
        raise Boom

    with Engine(agent) as engine, pytest.raises(Boom):
        engine.call("message")


def test_a_message_that_nobody_takes_is_an_error() -> None:
    text = "agent 'failing' has no message 'inlin'; it has async, dict, inline"
    with Engine(failing) as engine, pytest.raises(CallError, match=text):
        engine.call("inlin")


@pytest.mark.parametrize("is_async", [False, True])
def test_an_answer_too_long_for_a_frame_is_an_error(is_async: bool) -> None:
    agent = Agent("long")
    page = agent.variable("txn.page", str)

    def handle() -> Action:
        return page.set("x" * 16380)

    async def handle_later() -> Action:
        return handle()

    agent.message("message")(handle_later if is_async else handle)
    with Engine(agent) as engine, pytest.raises(CallError, match="exceeds 16380 bytes"):
        engine.call("message")


def test_variables_that_haproxy_would_ignore_are_errors() -> None:
    agent = Agent("early")
    status, path = agent.variable("res.status", int), agent.variable("req.path", str)
    foreign = Agent("other").variable("txn.foreign", int)

    @agent.message("request", event="on-frontend-http-request")
    def on_request() -> Action:
        return status.set(1)

    @agent.message("response", event="on-http-response")
    def on_response(late: bool = False) -> Action:
        return path.set("/") if late else status.set(2)

    @agent.message("group", group="some-group")
    def in_group() -> Action:
        return status.set(3)

    @agent.message("foreign")
    def of_another() -> Action:
        return foreign.set(4)

    with Engine(agent) as engine:
        with pytest.raises(CallError, match=r"res.status INT64 1>.* on-frontend-http-request; use"):
            engine.call("request")
        with pytest.raises(CallError, match=r"req.path STRING '/'>: .* on-http-response; use txn"):
            engine.call("response", late=True)
        assert engine.call("response") == {"res.status": 2}
        assert engine.call("group") == {"res.status": 3}
        with pytest.raises(CallError, match=r"txn.foreign.*'early' does not declare the variable"):
            engine.call("foreign")


def test_a_handler_and_its_observers_all_see_every_frame() -> None:
    agent = Agent("both")
    count = agent.variable("sess.count", int)
    observed: list[int] = []

    @agent.message("message")
    def handle(n: Annotated[int, Fetch("int(1)")]) -> Action:
        return count.set(n)

    @agent.observe("message")
    def see(n: int) -> None:
        observed.append(n)

    with Engine(agent) as engine:
        for n in range(4):
            assert engine.call("message", n=n) == {"sess.count": n}
    assert observed == [0, 1, 2, 3]
