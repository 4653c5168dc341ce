"""spoakit.agent._dispatch_cy: arguments, and shapes of messages."""

from ipaddress import IPv4Address, IPv6Address
from typing import Any

import pytest

from spoakit import Action, Agent, Argument, Context, DataType, Headers, IPAddress, Message
from spoakit.agent._dispatch_cy import MAX_PLANS
from spoakit.testing import Engine
from tests.support.dispatching import echo

SRC = IPv4Address("192.0.2.1")


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
    assert "has no parameters for: 'surplus'" in caplog.text


def test_a_handler_that_takes_the_message_takes_all_its_arguments(
    agent: Agent, caplog: pytest.LogCaptureFixture
) -> None:
    @agent.message("message")
    def handle(message: Message) -> None:
        pass

    with Engine(agent) as engine:
        engine.call("message", 1, surplus=b"x")
    assert "has no parameters for" not in caplog.text


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
    assert caplog.text.count("argument 'n' must be INT32 or") == 1


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
    assert caplog.text.count("has no handler;") == 1


def test_long_names_are_cut_in_logs(echoing: Agent, caplog: pytest.LogCaptureFixture) -> None:
    many = tuple(Argument.of(f"{n}-" + "y" * 1000, 1) for n in range(20))
    with Engine(echoing, raise_errors=False) as engine:
        engine.notify([Message("x" * 100_000), Message("echo", (*echo(1).arguments, *many))])
    unknown, extra = caplog.messages
    assert f"message '{'x' * 80}'... from" in unknown
    assert extra.endswith(f"'15-{'y' * 77}'... and 4 more")
