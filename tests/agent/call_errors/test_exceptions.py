"""spoakit.agent.call_errors: any exception of a message's code costs that message alone."""

import asyncio
import dataclasses
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import pytest

from spoakit import Action, Agent, Argument, Message, PerFrame
from spoakit.exceptions import InvalidFrameError
from spoakit.server import Listen, ServerSettings
from spoakit.server.server_state import CALL_FAILURES
from spoakit.testing import AgentServer, Engine, EngineClient
from tests.support.ports import free_port

pytestmark = pytest.mark.slow

FRAMEWORK = "spoakit/agent/"


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
