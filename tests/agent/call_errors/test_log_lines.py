"""Log lines of failed calls: once each, with their place."""

import logging
import re
from typing import Any, NoReturn

import pytest

from spoakit import Agent
from spoakit.agent.call_errors import throttle
from spoakit.logs import forget_throttled
from spoakit.server import Listen, ServerSettings
from spoakit.testing import AgentServer, Engine, EngineClient
from tests.support.agent_frames import bound_handler


def fail_here(kind: str) -> NoReturn:
    local = "a secret of the caller"
    if kind == "value":
        raise ValueError(f"no value: {len(local)}")
    raise KeyError(kind)


def erring_agent() -> Agent:
    agent = Agent("agent")
    number = agent.variable("txn.number", int)

    @agent.message("one", fallback=number.set(-1))
    def one(kind: str) -> None:
        fail_here(kind)

    @agent.message("two")
    async def two(kind: str) -> None:
        fail_here(kind)

    @agent.message("nothing")
    def nothing() -> Any:
        return 5

    @agent.observe("seen")
    def see(kind: str) -> None:
        fail_here(kind)

    return agent


def test_each_fault_of_a_handler_is_logged_once_with_its_place(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with Engine(erring_agent(), raise_errors=False) as engine:
        for _ in range(5):
            for kind in ("value", "key"):
                engine.call("one", kind=kind)
    first = fail_here.__code__.co_firstlineno
    name = "call_errors.test_log_lines.erring_agent.<locals>.one"
    assert [message.rpartition("handler ")[2] for message in caplog.messages] == [
        f"tests.agent.{name} failed at test_log_lines.py:{first + 3}, its fallback is sent: "
        "ValueError: no value: 22",
        f"tests.agent.{name} failed at test_log_lines.py:{first + 4}, its fallback is sent: "
        "KeyError: 'key'",
    ]
    caplog.clear()
    throttle.flush(final=True)
    for message, kind in zip(caplog.messages, ("ValueError", "KeyError"), strict=True):
        assert re.search(rf"{kind}: .* \(and 3 more like it in the last .*second", message)
    for record in caplog.records:
        assert record.exc_text is not None
        assert "in fail_here" in record.exc_text


@pytest.mark.parametrize("message", ["one", "two", "seen"])
def test_a_traceback_goes_from_the_handler_to_the_place(
    message: str, caplog: pytest.LogCaptureFixture
) -> None:
    with Engine(erring_agent(), raise_errors=False) as engine:
        engine.call(message, kind="value")
    [record] = caplog.records
    assert record.exc_text is not None
    lines = record.exc_text.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[-1] == "ValueError: no value: 22"
    frames = [line for line in lines if line.startswith("  File")]
    assert [frame.rpartition(" in ")[2] for frame in frames] == [
        {"one": "one", "two": "two", "seen": "see"}[message],
        "fail_here",
    ]


def test_a_fallback_is_only_spoken_of_where_there_is_one(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with Engine(erring_agent(), raise_errors=False) as engine:
        for message in ("one", "two", "seen"):
            engine.call(message, kind="value")
            forget_throttled()
            engine.call(message)
        engine.call("nothing")
    told = [message.partition(":")[0] + message for message in caplog.messages]
    sent = ["its fallback is sent" in message for message in told]
    unset = ["nothing is set" in message for message in told]
    assert sent == [True, True, False, False, False, False, False]
    assert unset == [False, False, True, True, False, False, True]


def test_a_failure_keeps_nothing_alive(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)  # or caplog would
    agent = Agent("agent")
    error = ValueError("a constant")

    @agent.message("message")
    def handle() -> None:
        raise error

    settings = ServerSettings(listen=Listen.at("127.0.0.1", 0))
    with (
        AgentServer(agent, settings=settings) as server,
        EngineClient(port=server.port) as engine,
    ):
        engine.hello()
        for _ in range(3):
            engine.call("message")
        assert error.__traceback__ is None


def test_a_deep_recursion_is_logged_within_limits(caplog: pytest.LogCaptureFixture) -> None:
    agent = Agent("agent")

    def recurse(n: int) -> int:
        return recurse(n + 1) + 1

    @agent.message("message")
    def handle() -> None:
        recurse(0)

    with Engine(agent, raise_errors=False) as engine:
        engine.call("message")
    [record] = caplog.records
    assert record.exc_text is not None
    assert "Previous line repeated 17 more times" in record.exc_text
    assert "RecursionError" in record.getMessage()


def test_an_error_callback_that_raises_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    agent = erring_agent()
    handler = next(each for each in agent.handlers if each.message == "one")

    def fail(error: BaseException) -> None:
        raise OSError("the callback's own")

    bound = bound_handler(handler, handler.function, fail)
    bound.errors.record_failure(ValueError("on purpose"))
    assert bound.errors.failures == 1
    assert caplog.messages[1] == "on_error failed, called with ValueError"
