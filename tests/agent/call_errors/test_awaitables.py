"""Awaitables that handlers return, and threads that do not start."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from spoakit import Action, Agent, Message
from spoakit.exceptions import RefusedError
from spoakit.server import Listen, ServerSettings
from spoakit.testing import AgentServer, Engine, EngineClient


class Lazy:
    """An awaitable that is not a coroutine."""

    def __init__(self, coroutine: Awaitable[Any]) -> None:
        self._coroutine = coroutine

    def __await__(self) -> Any:
        return self._coroutine.__await__()


@pytest.mark.parametrize("wrap", [Lazy, asyncio.ensure_future, lambda coroutine: coroutine])
def test_middleware_may_return_any_awaitable(wrap: Callable[[Any], Any]) -> None:
    def around(handler: Callable[..., Any], message: str) -> Callable[..., Any]:
        return lambda *args: wrap(handler(*args))

    agent = Agent("agent", middleware=[around])
    number = agent.variable("txn.number", int)

    @agent.message("message")
    async def handle(n: int) -> Action:
        await asyncio.sleep(0)
        return number.set(n)

    with Engine(agent) as engine:
        assert engine.call("message", n=5) == {"txn.number": 5}


def future_of_another_loop() -> "asyncio.Future[None]":
    loop = asyncio.new_event_loop()
    try:
        return loop.create_future()
    finally:
        loop.close()


class Unreasonable:
    """An awaitable that yields what no event loop knows."""

    def __await__(self) -> Iterator[int]:
        yield 5


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda: 5, TypeError),
        (lambda: None, TypeError),
        (future_of_another_loop, RuntimeError),
        (Unreasonable, RuntimeError),
    ],
)
def test_what_cannot_be_awaited_is_a_failure(
    make: Callable[[], object], kind: type[Exception]
) -> None:
    agent = Agent("agent", middleware=[lambda handler, message: lambda: make()])
    number = agent.variable("txn.number", int)

    @agent.message("message", fallback=number.set(-1))
    async def handle() -> None: ...

    with Engine(agent, raise_errors=False) as engine:
        reply = engine.call("message")
    assert reply == {"txn.number": -1}
    assert isinstance(reply.error, kind)


def test_a_handler_whose_task_is_cancelled_by_others_fails() -> None:
    agent = Agent("agent")
    number = agent.variable("txn.number", int)

    @agent.message("victim", fallback=number.set(-1))
    async def victim() -> None:
        await asyncio.Event().wait()

    @agent.message("cancel")
    def cancel() -> None:
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            if "_await_call" in repr(task):
                task.cancel()

    settings = ServerSettings(listen=Listen.at("127.0.0.1", 0))
    with (
        AgentServer(agent, settings=settings) as server,
        EngineClient(port=server.port) as engine,
    ):
        engine.hello()
        # In one read the task is cancelled before it begins, in two after.
        ids = engine.notify(Message("victim"))
        assert engine.call("cancel") == {}
        assert engine.ack(ids) == {"txn.number": -1}


def test_a_call_is_refused_where_no_thread_starts(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    agent = Agent("agent")
    number = agent.variable("txn.number", int)

    @agent.message("message", threaded=True, fallback=number.set(-1))
    def handle(n: int) -> Action:
        return number.set(n)

    def fail(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with Engine(agent, raise_errors=False) as engine:
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", fail)
            # More often than there are slots.
            for n in range(1100):
                reply = engine.call("message", n=n)
                assert reply == {"txn.number": -1}
            assert isinstance(reply.error, RefusedError)
        assert engine.call("message", n=1) == {"txn.number": 1}
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", fail)
            assert engine.call("message", n=2) == {"txn.number": 2}
    assert "no thread is free for handler" in caplog.text
    assert "its fallback is sent: can't start new thread" in caplog.text
