"""spoakit.server.server: one worker's server, from its resources to its drain."""

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace

import pytest

from spoakit import Action, Agent
from spoakit.exceptions import AgentDisconnected, ConfigurationError, StartupError
from spoakit.logs import forget_throttled
from spoakit.metrics.memory import SharedMetrics
from spoakit.metrics.snapshot import Snapshot
from spoakit.server import server as server_module
from spoakit.server.server import Server
from spoakit.server.server_state import CALL_FAILURES
from spoakit.server.settings import Drain, Limits, LoopName, ServerSettings
from spoakit.spop import Argument, Disconnected, Message
from spoakit.testing import AgentServer, EngineClient
from spoakit.testing.agent_server import DEFAULT_SETTINGS
from spoakit.testing.pytest_plugin import ConnectEngine, ServeAgents
from tests.support.waiting import TIMEOUT, until, wait_until

pytestmark = pytest.mark.slow


class Gate(asyncio.Event):
    """What the handlers of "wait" wait for."""


class Subject:
    """An agent with a resource that keeps a handler waiting, until it is told."""

    def __init__(self, name: str = "subject") -> None:
        self.agent = Agent(name)
        self.gate: Gate | None = None
        self.waiting = 0
        self.events: list[str] = []
        number = self.agent.variable("txn.number", int)

        @self.agent.resource
        async def gate() -> AsyncIterator[Gate]:
            self.events.append("up")
            self.gate = Gate()
            yield self.gate
            self.events.append("down")

        @self.agent.message(f"{name}-echo")
        def echo(n: int) -> Action:
            return number.set(n)

        @self.agent.message(f"{name}-fail", fallback=number.set(-1))
        def fail() -> Action:
            raise RuntimeError("on purpose")

        @self.agent.message(f"{name}-wait", timeout=TIMEOUT, fallback=number.set(-1))
        async def wait(n: int, gate: Gate) -> Action:
            self.waiting += 1
            await gate.wait()
            return number.set(n)

        @self.agent.message(f"{name}-late", timeout=0.01, fallback=number.set(-2))
        async def late(gate: Gate) -> None:
            await gate.wait()

        @self.agent.message(
            f"{name}-block", threaded=True, timeout=TIMEOUT, fallback=number.set(-3)
        )
        def block() -> Action:
            self.released.wait(TIMEOUT)
            return number.set(3)

        self.released = threading.Event()

    def open_gate(self) -> None:
        assert self.gate is not None
        self.gate.set()


@pytest.fixture
def subject() -> Subject:
    return Subject()


@pytest.fixture(autouse=True)
def _unthrottled() -> None:
    forget_throttled()


@pytest.fixture(params=["uvloop", "asyncio"])
def settings(request: pytest.FixtureRequest) -> ServerSettings:
    loop: LoopName = request.param
    return replace(DEFAULT_SETTINGS, loop=loop)


def message(name: str, n: int) -> Message:
    return Message(name, (Argument.of("n", n),))


def connected(server: AgentServer, connect: ConnectEngine) -> EngineClient:
    engine = connect(port=server.port, timeout=TIMEOUT)
    engine.hello()
    return engine


def connection_count(server: AgentServer) -> int:
    return server.call(lambda: server.server.connection_count)


# --- life ----------------------------------------------------------------------------------


def test_resources_are_up_while_it_serves(
    subject: Subject, settings: ServerSettings, connect_engine: ConnectEngine
) -> None:
    with AgentServer(subject.agent, settings=settings) as server:
        assert subject.events == ["up"]
        engine = connected(server, connect_engine)
        assert engine.call("subject-echo", 1) == {"txn.number": 1}
    assert subject.events == ["up", "down"]
    with pytest.raises(ConnectionRefusedError):
        connect_engine(port=server.port)


def test_a_resource_that_fails_is_a_startup_error_and_takes_the_others_down(
    subject: Subject,
) -> None:
    @subject.agent.resource
    async def broken() -> AsyncIterator[socket.socket]:
        raise OSError("no route to host")
        yield socket.socket()

    with pytest.raises(StartupError, match="no route to host"), AgentServer(subject.agent):
        pass
    assert subject.events == ["up", "down"]


def test_agents_that_do_not_go_together_are_refused_before_anything_starts() -> None:
    with pytest.raises(ConfigurationError, match="two agents have the name"):
        AgentServer(Subject().agent, Subject().agent)


def test_several_agents_share_a_port(
    settings: ServerSettings, serve_agents: ServeAgents, connect_engine: ConnectEngine
) -> None:
    one, two = Subject("one"), Subject("two")
    engine = connected(serve_agents(one.agent, two.agent, settings=settings), connect_engine)
    ids = engine.notify(message("two-echo", 2), message("one-echo", 1))
    assert [action.value for action in engine.ack(ids).actions] == [2, 1]


def test_each_adopted_connection_is_told_closed_once(subject: Subject) -> None:
    closed = 0

    def on_closed() -> None:
        nonlocal closed
        closed += 1

    async def live() -> None:
        counters = SharedMetrics(1)
        server = Server([subject.agent], DEFAULT_SETTINGS, counters.worker(0))
        server.on_closed = on_closed
        ends = [socket.socketpair() for _ in range(4)]
        await server.start()
        for ours, _ in ends:
            ours.setblocking(False)
            server.adopt(ours)
        assert server.connection_count == 4
        await asyncio.sleep(0)
        ends[0][1].close()
        await until(lambda: closed >= 1)
        # Two end with the server, one of which it has not begun to serve.
        late = socket.socketpair()
        late[0].setblocking(False)
        server.adopt(late[0])
        await server.aclose()
        assert (closed, server.connection_count) == (5, 0)
        assert Snapshot.take(counters).value("spoakit_connections") == 0
        after = socket.socketpair()
        server.adopt(after[0])
        await until(lambda: closed >= 6)
        for _, theirs in [*ends, late, after]:
            theirs.close()

    asyncio.run(asyncio.wait_for(live(), TIMEOUT))


def test_what_happened_is_counted(
    subject: Subject, settings: ServerSettings, connect_engine: ConnectEngine
) -> None:
    with AgentServer(subject.agent, settings=settings) as server:
        engine = connected(server, connect_engine)
        assert server.metrics.value("spoakit_connections") == 1
        engine.notify_each(
            [
                [message("subject-echo", 1), message("subject-echo", 2)],
                [Message("subject-echo")],
                [Message("subject-fail")],
                [Message("subject-late")],
                [Message("nobody's")],
                [],
            ]
        )
        for _ in range(6):
            engine.next_ack()
        connect_engine(port=server.port).check_health()
        connected(server, connect_engine).disconnect(3, "too big")
        connect_engine(port=server.port).send_raw(b"\0\0\0\0")
        wait_until(lambda: server.metrics.value("spoakit_protocol_errors_total") == 1)
    counted = server.metrics
    totals = {
        family.name.removeprefix("spoakit_"): sum(series.values())
        for family, series in counted.values.items()
        if any(series.values()) and family.name.startswith("spoakit_")
    }
    totals.pop("throttled_lines_total", 0)
    assert totals.pop("received_bytes_total") > 300
    assert totals.pop("sent_bytes_total") > 200
    assert totals == {
        "frames_total": 6,
        "messages_total": 5,
        "calls_total": 4,
        "call_failures_total": 3,
        "unknown_messages_total": 1,
        "health_checks_total": 1,
        "disconnects_total": 1,
        "protocol_errors_total": 1,
        "connections_accepted_total": 4,
    }
    failures = counted.values[CALL_FAILURES]
    assert failures == {
        ("subject-echo", "mismatch"): 1,
        ("subject-fail", "exception"): 1,
        ("subject-late", "deadline"): 1,
    }
    assert counted.value("spoakit_messages_total", message="subject-echo") == 3
    assert counted.value("spoakit_calls_total", message="subject-late", kind="async") == 1
    assert counted.value("spoakit_disconnects_total", status=3) == 1
    assert counted.value("spoakit_protocol_errors_total", status=4, error="invalid_frame") == 1
    assert counted.distribution("spoakit_handler_seconds", message="subject-echo").count == 2
    assert counted.distribution("spoakit_ack_seconds", message="subject-echo").quantile(0.5) < 1


# --- failures of handlers ------------------------------------------------------------------


def test_a_late_or_failing_handler_costs_its_message_alone(
    subject: Subject,
    settings: ServerSettings,
    serve_agents: ServeAgents,
    connect_engine: ConnectEngine,
) -> None:
    engine = connected(serve_agents(subject.agent, settings=settings), connect_engine)
    ids = engine.notify(
        message("subject-echo", 1),
        Message("subject-late"),
        message("subject-echo", 2),
        Message("subject-fail"),
        message("subject-echo", 3),
    )
    assert [action.value for action in engine.ack(ids).actions] == [1, -2, 2, -1, 3]


def test_where_all_threads_are_taken_the_fallback_is_answered_at_once(
    subject: Subject,
    serve_agents: ServeAgents,
    connect_engine: ConnectEngine,
    caplog: pytest.LogCaptureFixture,
) -> None:
    limits = Limits(in_flight=2000)
    server = serve_agents(subject.agent, settings=replace(DEFAULT_SETTINGS, limits=limits))
    engine = connected(server, connect_engine)
    sent = engine.notify_each([[Message("subject-block")]] * 1100)
    # 32 run, 1,024 wait for a thread.
    for ids in sent[1056:]:
        assert engine.ack(ids) == {"txn.number": -3}
    assert "no thread is free for handler" in caplog.text
    subject.released.set()
    for ids in sent[:1056]:
        assert engine.ack(ids) == {"txn.number": 3}
    assert engine.call("subject-block") == {"txn.number": 3}


# --- leaving -------------------------------------------------------------------------------


def test_health_checks_can_be_refused_while_service_goes_on(
    subject: Subject,
    settings: ServerSettings,
    serve_agents: ServeAgents,
    connect_engine: ConnectEngine,
) -> None:
    server = serve_agents(subject.agent, settings=settings)
    engine = connected(server, connect_engine)
    early = connect_engine(port=server.port)
    wait_until(lambda: connection_count(server) == 2)
    server.call(server.server.refuse_health_checks)
    for check in (early, connect_engine(port=server.port)):
        with pytest.raises(AgentDisconnected, match="the agent is stopping") as refused:
            check.check_health()
        assert refused.value.status_code == 0
        check.wait_for_close()
    assert engine.call("subject-echo", 1) == {"txn.number": 1}
    assert connected(server, connect_engine).call("subject-echo", 2) == {"txn.number": 2}


@contextlib.contextmanager
def draining(server: AgentServer, timeout: float) -> Iterator[Callable[[], bool]]:
    """Drain a server meanwhile; give what tells whether it is done."""
    drain = asyncio.run_coroutine_threadsafe(server.server.drain(timeout), server._loop)
    yield drain.done
    drain.result(TIMEOUT)


def test_a_drain_closes_what_is_quiet_and_waits_for_what_is_busy(
    subject: Subject,
    settings: ServerSettings,
    serve_agents: ServeAgents,
    connect_engine: ConnectEngine,
) -> None:
    server = serve_agents(subject.agent, settings=settings)
    busy, quiet = connected(server, connect_engine), connected(server, connect_engine)
    new = connect_engine(port=server.port)
    ids = busy.notify(message("subject-wait", 1))
    wait_until(lambda: subject.waiting == 1)
    with draining(server, TIMEOUT) as is_done:
        for engine in (quiet, new):
            assert engine.wait_for_disconnect() == Disconnected(0, "the agent is stopping")
            engine.wait_for_close()
        wait_until(lambda: connection_count(server) == 1)
        assert busy.call("subject-echo", 2) == {"txn.number": 2}
        assert not is_done()
        server.call(subject.open_gate)
        assert busy.ack(ids) == {"txn.number": 1}
        assert busy.wait_for_disconnect() == Disconnected(0, "the agent is stopping")
        busy.wait_for_close()
    assert connection_count(server) == 0


def test_a_drain_lets_an_engine_that_goes_on_sending_go_on_to_its_bound(
    subject: Subject,
    settings: ServerSettings,
    serve_agents: ServeAgents,
    connect_engine: ConnectEngine,
) -> None:
    server = serve_agents(subject.agent, settings=settings)
    engine = connected(server, connect_engine)
    answered = 0

    def call_forever() -> None:
        nonlocal answered
        while answered < 1_000_000:
            assert engine.call("subject-echo", answered) == {"txn.number": answered}
            answered += 1

    start = time.monotonic()
    with draining(server, 0.4), pytest.raises((AgentDisconnected, OSError)):
        call_forever()
    assert 0.4 <= time.monotonic() - start < 2
    assert answered > 10


def test_a_drain_ends_at_its_bound_whatever_handlers_do(
    subject: Subject, settings: ServerSettings, connect_engine: ConnectEngine
) -> None:
    bounded = replace(settings, drain=Drain(timeout=0.2))
    with AgentServer(subject.agent, settings=bounded) as server:
        engine = connected(server, connect_engine)
        engine.notify(message("subject-wait", 1))
        engine.notify(Message("subject-block"))
        wait_until(lambda: subject.waiting == 1)
        start = time.monotonic()
    assert 0.2 <= time.monotonic() - start < 2
    assert subject.events == ["up", "down"]
    with pytest.raises(OSError, match=r"reset|closed"):
        engine.next_ack()
    subject.released.set()


def test_a_connection_counts_once_while_it_is_adopted(settings: ServerSettings) -> None:
    async def scenario() -> None:
        server = Server([Subject().agent], settings, SharedMetrics(1).worker(0))
        await server.start()
        closed = asyncio.Event()
        server.on_closed = closed.set
        seen = set()
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        server.adopt(ours)
        for _ in range(10):
            seen.add(server.connection_count)
            await asyncio.sleep(0)
        theirs.close()
        await asyncio.wait_for(closed.wait(), 5)
        assert (seen, server.connection_count) == ({1}, 0)
        await server.aclose()

    asyncio.run(scenario())


AGED = Disconnected(0, "the connection has reached its age")


@pytest.fixture
def aging(settings: ServerSettings) -> ServerSettings:
    return replace(settings, limits=replace(settings.limits, connection_age=1.0))


def test_a_connection_that_has_reached_its_age_is_closed_when_it_is_quiet(
    subject: Subject,
    aging: ServerSettings,
    serve_agents: ServeAgents,
    connect_engine: ConnectEngine,
) -> None:
    server = serve_agents(subject.agent, settings=aging)
    begin = time.monotonic()
    quiet = connected(server, connect_engine)
    busy = connected(server, connect_engine)
    ids = busy.notify(message("subject-wait", 1))
    assert quiet.wait_for_disconnect() == AGED
    quiet.wait_for_close()
    assert time.monotonic() - begin >= 0.9
    assert busy.call("subject-echo", 2) == {"txn.number": 2}
    server.call(subject.open_gate)
    assert busy.ack(ids) == {"txn.number": 1}
    assert busy.wait_for_disconnect() == AGED
    busy.wait_for_close()
    wait_until(lambda: connection_count(server) == 0)
    assert server.metrics.value("spoakit_connections_retired_total") == 2
    assert connected(server, connect_engine).call("subject-echo", 3) == {"txn.number": 3}


def test_a_connection_that_is_never_quiet_is_closed_all_the_same(
    subject: Subject,
    aging: ServerSettings,
    serve_agents: ServeAgents,
    connect_engine: ConnectEngine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server_module, "_RETIREMENT", 0.3)
    server = serve_agents(subject.agent, settings=aging)
    engine = connected(server, connect_engine)
    engine.notify(message("subject-wait", 1))
    wait_until(lambda: subject.waiting == 1)
    # The connection ends with its last ACK, well after its age.
    server.call(lambda: asyncio.get_running_loop().call_later(3, subject.open_gate))
    with contextlib.suppress(AgentDisconnected, OSError):
        for number in range(1_000_000):
            assert engine.call("subject-echo", number) == {"txn.number": number}
    wait_until(lambda: connection_count(server) == 0)
    assert server.metrics.value("spoakit_connections_retired_total") == 1


def test_connections_reach_their_age_at_different_times(
    subject: Subject,
    aging: ServerSettings,
    serve_agents: ServeAgents,
    connect_engine: ConnectEngine,
) -> None:
    server = serve_agents(subject.agent, settings=aging)
    engines = [connected(server, connect_engine) for _ in range(10)]

    def ages() -> list[float]:
        assert server.server._state is not None
        connections = server.server._state.connections
        return [each.retire_at - (each.deadline - 10.0) for each in connections]

    found = server.call(ages)
    assert len(set(found)) == len(engines)
    assert all(0.9 <= age <= 1.1 for age in found)
