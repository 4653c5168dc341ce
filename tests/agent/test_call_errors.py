"""spoakit.agent.call_errors: whatever a message's code raises costs that message alone."""

import asyncio
import dataclasses
import logging
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, NoReturn

import pytest

from spoakit import Action, Agent, Argument, Message, PerFrame
from spoakit.agent.call_errors import throttle
from spoakit.exceptions import InvalidFrameError, RefusedError
from spoakit.logs import forget_throttled
from spoakit.server import Listen, ServerSettings
from spoakit.server.server_state import CALL_FAILURES
from spoakit.testing import AgentServer, Engine, EngineClient
from tests.support.agent_frames import bound_handler
from tests.support.ports import free_port

FRAMEWORK = "spoakit/agent/"


@pytest.fixture(autouse=True)
def _unthrottled() -> Iterator[None]:
    forget_throttled()
    yield
    forget_throttled()


@pytest.fixture
def _ignored_interrupts() -> Iterator[None]:
    """Ignore SIGINT, as workers do."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGINT, before)


@dataclasses.dataclass(frozen=True)
class FrozenError(Exception):
    """An exception whose attributes cannot be set."""

    reason: str = "frozen"


class MuteError(Exception):
    """An exception that cannot be shown."""

    def __str__(self) -> NoReturn:
        raise SystemExit(4)

    __repr__ = __str__


def hostile(name: str) -> BaseException:
    """Return an exception of which one attribute exits when it is asked for."""

    def leave(self: object) -> NoReturn:
        raise SystemExit(name)

    kind: type[Exception] = type("HostileError", (Exception,), {name: property(leave)})
    return kind("on purpose")


class OddType(type):
    def __getattribute__(cls, name: str) -> Any:
        if name in ("__qualname__", "__module__"):
            raise SystemExit(name)
        return super().__getattribute__(name)


class NamelessError(Exception, metaclass=OddType):
    """An exception whose class does not tell its name."""


ORDINARY: list[BaseException] = [
    ValueError("on purpose"),
    asyncio.CancelledError(),
    SystemExit(3),
    GeneratorExit(),
    KeyboardInterrupt(),
    StopIteration(1),
    StopAsyncIteration(),
    RecursionError(),
    MemoryError(),
    ExceptionGroup("several", [ValueError(1), ExceptionGroup("deeper", [OSError(2)])]),
    BaseExceptionGroup("several", [KeyboardInterrupt()]),
    InvalidFrameError("not the frame's fault"),
    FrozenError(),
    MuteError(),
    ValueError("\x00\n" + "x" * 100_000),
    type("LocalError", (BaseException,), {})(),
]
# By names, since pytest looks at the values of parameters.
ERRORS: dict[str, BaseException] = {
    **{f"{index}-{type(error).__name__}": error for index, error in enumerate(ORDINARY)},
    **{
        name: hostile(name)
        for name in ("__notes__", "__cause__", "__class__", "__traceback__", "__dict__")
    },
    "nameless": NamelessError(),
}


def failing_agent(error: BaseException) -> Agent:
    """Return an agent of whose messages all but "fine" fail, each in another way."""

    class PerFrameState:
        def __init__(self) -> None:
            raise error

    def around(handler: Callable[..., Any], message: str) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            raise error

        def call_lazily(*args: Any) -> Any:
            handler(*args).close()
            return Awaited()

        return {"middleware": call, "async-middleware": call, "awaited": call_lazily}.get(
            message, handler
        )

    class Awaited:
        def __await__(self) -> NoReturn:
            raise error

    class Actions(list[Action]):
        def __iter__(self) -> NoReturn:
            raise error

    agent = Agent("agent", middleware=[around])
    number = agent.variable("txn.number", int)
    fallback = number.set(-1)

    @agent.message("fine")
    def fine(n: int) -> Action:
        return number.set(n)

    @agent.message("slow", timeout=20.0)
    async def slow(n: int) -> Action:
        await release.wait()
        return number.set(n)

    release = asyncio.Event()

    @agent.message("release")
    def end_slow() -> None:
        release.set()

    @agent.message("inline", fallback=fallback)
    def inline() -> Action:
        raise error

    @agent.message("async", fallback=fallback)
    async def in_task() -> Action:
        await asyncio.sleep(0)
        raise error

    @agent.message("threaded", threaded=True, fallback=fallback)
    def in_thread() -> Action:
        raise error

    @agent.message("actions", fallback=fallback)
    def derived_actions() -> list[Action]:
        return Actions([fallback])

    @agent.message("async-actions", fallback=fallback)
    async def async_actions() -> list[Action]:
        return Actions([fallback])

    @agent.message("per-frame", fallback=fallback)
    def per_frame(state: PerFrame[PerFrameState], message: Message) -> None: ...

    @agent.message("async-per-frame", fallback=fallback)
    async def async_per_frame(state: PerFrame[PerFrameState]) -> None: ...

    @agent.message("middleware", fallback=fallback)
    def with_middleware() -> None: ...

    @agent.message("async-middleware", fallback=fallback)
    async def async_with_middleware() -> None: ...

    @agent.message("awaited", fallback=fallback)
    async def awaited() -> None: ...

    return agent


MESSAGES = [
    "inline",
    "async",
    "threaded",
    "actions",
    "async-actions",
    "per-frame",
    "async-per-frame",
    "middleware",
    "async-middleware",
    "awaited",
]


@pytest.mark.usefixtures("_ignored_interrupts")
@pytest.mark.parametrize("name", ERRORS)
def test_an_exception_costs_its_message_alone(name: str, caplog: pytest.LogCaptureFixture) -> None:
    settings = ServerSettings(listen=Listen.at("127.0.0.1", 0))
    failures = 0
    with (
        AgentServer(failing_agent(ERRORS[name]), settings=settings) as server,
        EngineClient(port=server.port) as engine,
    ):
        engine.hello()
        other = engine.notify(Message("slow", (Argument.of("n", 7),)))
        for message in MESSAGES:
            before, after = (Message("fine", (Argument.of("n", n),)) for n in (1, 2))
            # Alone (on the fast path when repeated), and between others of its frame.
            for _ in range(2):
                assert engine.call(message) == {"txn.number": -1}
            ids = engine.notify(before, Message(message), after)
            assert [action.value for action in engine.ack(ids).actions] == [1, -1, 2]
            failures += 3
        engine.call("release")
        assert engine.ack(other) == {"txn.number": 7}
        assert server.metrics.value(CALL_FAILURES.name) == failures
    lines = [record for record in caplog.records if record.name == "spoakit.agent"]
    assert lines
    for line in lines:
        assert line.levelname == "ERROR"
        assert "its fallback is sent" in line.getMessage()
        assert len(line.getMessage()) < 2000
        assert FRAMEWORK not in (line.exc_text or "")
    assert [record for record in caplog.records if record.name == "asyncio"] == []


@pytest.mark.usefixtures("_ignored_interrupts")
@pytest.mark.parametrize("name", ERRORS)
def test_an_observer_that_fails_disturbs_no_other_call(name: str) -> None:
    error = ERRORS[name]
    agent = Agent("agent")
    seen: list[str] = []

    class State:
        def __init__(self) -> None:
            raise error

    @agent.observe("message")
    def failing() -> None:
        raise error

    @agent.observe("message")
    def unbound(state: PerFrame[State]) -> None: ...

    @agent.observe("message")
    def fine() -> None:
        seen.append("fine")

    with Engine(agent, raise_errors=False) as engine:
        for _ in range(3):
            assert engine.notify([Message("message")] * 2) == {}
    assert seen == ["fine"] * 6


@pytest.mark.parametrize("message", MESSAGES)
def test_an_interrupt_ends_what_sigint_may_end(message: str) -> None:
    with Engine(failing_agent(KeyboardInterrupt())) as engine, pytest.raises(KeyboardInterrupt):
        engine.call(message)


INTERRUPTED = """
import asyncio, signal, sys, threading
from spoakit import Agent
from spoakit.log_output import configure_logging
from spoakit.server import Drain, Listen, ServerSettings, serve
from spoakit.server.event_loops import loop_factory
from spoakit.testing import EngineClient

agent = Agent("agent")

@agent.message("inline")
def inline() -> None:
    raise KeyboardInterrupt

@agent.message("async")
async def in_task() -> None:
    raise KeyboardInterrupt

@agent.message("threaded", threaded=True)
def in_thread() -> None:
    raise KeyboardInterrupt

@agent.observe("observer")
def see() -> None:
    raise KeyboardInterrupt

# Shells start background jobs with SIGINT ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
loop, port, message = sys.argv[1:]

def call():
    while True:
        try:
            with EngineClient(port=int(port)) as engine:
                engine.hello()
                engine.call(message)
        except ConnectionError:
            pass

threading.Thread(target=call, daemon=True).start()
settings = ServerSettings(listen=Listen.at("127.0.0.1", int(port)), drain=Drain(timeout=0))
with asyncio.Runner(loop_factory=loop_factory(loop)) as runner:
    runner.run(serve([agent], settings))
"""


@pytest.mark.parametrize("message", ["inline", "async", "threaded", "observer"])
@pytest.mark.parametrize("loop", ["uvloop", "epoll"])
def test_an_interrupt_ends_serve(loop: str, message: str) -> None:
    command = [sys.executable, "-c", INTERRUPTED, loop, str(free_port()), message]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == -signal.SIGINT, done.stderr
    assert "KeyboardInterrupt" in done.stderr.splitlines()


# --- awaitables ----------------------------------------------------------------------------


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


# --- threads -------------------------------------------------------------------------------


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


# --- logs ----------------------------------------------------------------------------------


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
    name = "test_call_errors.erring_agent.<locals>.one"
    assert [message.rpartition("handler ")[2] for message in caplog.messages] == [
        f"tests.agent.{name} failed at test_call_errors.py:{first + 3}, its fallback is sent: "
        "ValueError: no value: 22",
        f"tests.agent.{name} failed at test_call_errors.py:{first + 4}, its fallback is sent: "
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


def test_an_answer_is_what_it_was_when_it_was_returned() -> None:
    agent = Agent("agent")
    number = agent.variable("txn.number", int)
    actions: list[Any] = []

    @agent.message("message")
    def handle(n: int) -> list[Any]:
        actions[:] = [number.set(n)] if n < 3 else [5]
        return actions

    settings = ServerSettings(listen=Listen.at("127.0.0.1", 0))
    with (
        AgentServer(agent, settings=settings) as server,
        EngineClient(port=server.port) as engine,
    ):
        engine.hello()
        for _ in range(2):
            ids = [engine.notify(Message("message", (Argument.of("n", n),))) for n in range(4)]
            replies = [engine.ack(each) for each in ids]
            assert replies == [*({"txn.number": n} for n in range(3)), {}]


# --- planning ------------------------------------------------------------------------------


def test_a_plan_that_cannot_be_made_costs_its_message_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    agent = Agent("agent")
    number = agent.variable("txn.number", int)
    seen: list[int] = []

    @agent.message("handled", fallback=number.set(-1))
    def handle(n: int) -> Action:
        return number.set(n)

    @agent.observe("observed")
    def see(n: int) -> None:
        seen.append(n)

    def fail(*arguments: object) -> None:
        raise LookupError("no plan")

    with Engine(agent, raise_errors=False) as engine:
        with monkeypatch.context() as patch:
            patch.setattr("spoakit.agent._dispatch_cy.bind_arguments", fail)
            for _ in range(2):
                assert engine.call("handled", n=1) == {"txn.number": -1}
                assert isinstance(engine.call("observed", n=1).error, LookupError)
        assert engine.call("handled", n=2) == {"txn.number": 2}
        assert engine.call("observed", n=3).error is None
    assert seen == [3]
