"""One connection to an engine, over real sockets: flow, limits, bad input, ends."""

import asyncio
import gc
import logging
import socket
import time
import tracemalloc
import weakref
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any, Protocol

import pytest

from spoakit import Action, Agent, Argument, Context, DataType, Message
from spoakit.exceptions import AgentDisconnected
from spoakit.logs import forget_throttled
from spoakit.server.protocol import Phase, SpopProtocol
from spoakit.server.settings import Limits, Listen, LoopName, ServerSettings
from spoakit.spop import (
    Disconnect,
    Disconnected,
    EngineHello,
    FrameFlag,
    FrameType,
    decode_actions,
    encode_frame,
    encode_ids,
    encode_messages,
    encode_value,
    encode_varint,
)
from spoakit.testing import AgentServer, EngineClient
from spoakit.testing.agent_server import DEFAULT_SETTINGS
from spoakit.testing.pytest_plugin import ConnectEngine, ServeAgents
from tests.support.waiting import TIMEOUT, wait_until


class Subject:
    """An agent with a handler of each kind, and what has become of its calls."""

    def __init__(self) -> None:
        self.agent = Agent("subject")
        self.gates: defaultdict[int, asyncio.Event] = defaultdict(asyncio.Event)
        self.started: list[int] = []
        self.cancelled: list[int] = []
        self.observed: list[int] = []
        number = self.agent.variable("txn.number", int)
        text = self.agent.variable("txn.text", str)

        @self.agent.message("echo", fallback=number.set(-1))
        def echo(n: int) -> Action:
            return number.set(n)

        @self.agent.message("repeat")
        def repeat(word: str, times: int = 1) -> Action:
            return text.set(word * times)

        @self.agent.message("wait", timeout=TIMEOUT, fallback=number.set(-1))
        async def wait(n: int) -> Action:
            self.started.append(n)
            try:
                await self.gates[n].wait()
            except asyncio.CancelledError:
                self.cancelled.append(n)
                raise
            return number.set(n)

        @self.agent.message("repeat-later")
        async def repeat_later(word: str, times: int) -> Action:
            await asyncio.sleep(0)
            return text.set(word * times)

        @self.agent.observe("observe")
        def observe(n: int) -> None:
            self.observed.append(n)


@pytest.fixture
def subject() -> Subject:
    return Subject()


@pytest.fixture(autouse=True)
def _unthrottled(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    forget_throttled()
    with caplog.at_level(logging.INFO):
        yield


def settings(loop: LoopName, **limits: Any) -> ServerSettings:
    return replace(DEFAULT_SETTINGS, limits=Limits(**limits), loop=loop)


class Serve(Protocol):
    """Serves an agent with these limits, until the test is over."""

    def __call__(self, agent: Agent, **limits: Any) -> AgentServer: ...


@pytest.fixture(scope="module", params=["uvloop", "asyncio"])
def loop(request: pytest.FixtureRequest) -> LoopName:
    name: LoopName = request.param
    return name


@pytest.fixture
def serve(serve_agents: ServeAgents, loop: LoopName) -> Serve:
    return lambda agent, **limits: serve_agents(agent, settings=settings(loop, **limits))


def echo(n: int) -> Message:
    return Message("echo", (Argument("n", DataType.INT64, n),))


def wait(n: int) -> Message:
    return Message("wait", (Argument("n", DataType.INT64, n),))


def connections(server: AgentServer) -> list[SpopProtocol]:
    state = server.server._state
    assert state is not None
    return server.call(list, state.connections)


def wait_until_connections(server: AgentServer, count: int) -> None:
    wait_until(lambda: server.call(lambda: server.server.connection_count) == count)


def open_gates(server: AgentServer, subject: Subject, *numbers: int) -> None:
    def open_all() -> None:
        for n in numbers:
            subject.gates[n].set()

    server.call(open_all)


def connected(server: AgentServer, connect: ConnectEngine, **hello: Any) -> EngineClient:
    engine = connect(port=server.port, timeout=TIMEOUT)
    engine.hello(**hello)
    return engine


# --- frames and ACKs -----------------------------------------------------------------------


class Recorder:
    """A transport whose writes are kept."""

    def __init__(self, transport: asyncio.Transport, writes: list[bytes]) -> None:
        self._transport = transport
        self._writes = writes

    def write(self, data: bytes) -> None:
        self._writes.append(data)
        self._transport.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


@pytest.fixture
def writes(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """All that the server writes from now on, write by write."""
    written: list[bytes] = []

    class Recorded(SpopProtocol):
        def connection_made(self, transport: Any) -> None:
            super().connection_made(Recorder(transport, written))

    monkeypatch.setattr("spoakit.server.server.SpopProtocol", Recorded)
    return written


def test_frames_of_one_read_are_acknowledged_in_one_write(
    subject: Subject, serve: Serve, connect_engine: ConnectEngine, writes: list[bytes]
) -> None:
    engine = connected(serve(subject.agent), connect_engine)
    del writes[:]
    sent = engine.notify_each([echo(n)] for n in range(50))
    assert [engine.ack(ids) for ids in sent] == [{"txn.number": n} for n in range(50)]
    assert len(writes) == 1


def test_async_handlers_that_end_together_are_acknowledged_in_one_write(
    subject: Subject, serve: Serve, connect_engine: ConnectEngine, writes: list[bytes]
) -> None:
    server = serve(subject.agent)
    engine = connected(server, connect_engine)
    sent = engine.notify_each([wait(n)] for n in range(20))
    wait_until(lambda: len(subject.started) == 20)
    del writes[:]
    open_gates(server, subject, *range(20))
    assert [engine.ack(ids) for ids in sent] == [{"txn.number": n} for n in range(20)]
    assert len(writes) == 1


def test_observers_run_after_the_acks_are_written(
    subject: Subject, serve: Serve, connect_engine: ConnectEngine, writes: list[bytes]
) -> None:
    observed_after: list[int] = []

    @subject.agent.observe("wait")
    def observe_late(n: int) -> None:
        observed_after.append(len(writes))

    @subject.agent.observe("echo")
    def observe_at_once(n: int) -> None:
        observed_after.append(len(writes))

    server = serve(subject.agent)
    engine = connected(server, connect_engine)
    del writes[:]
    engine.call("echo", 1)
    engine.call("echo", 1)
    wait_until(lambda: observed_after == [1, 2])
    # A frame whose ACK takes time, with a message that takes none before it.
    ids = engine.notify(echo(1), wait(2))
    wait_until(lambda: subject.started == [2])
    assert observed_after == [1, 2]
    open_gates(server, subject, 2)
    engine.ack(ids)
    wait_until(lambda: observed_after == [1, 2, 3, 3])


def test_a_frame_is_answered_at_once_as_long_as_none_waits(
    subject: Subject, serve: Serve, connect_engine: ConnectEngine
) -> None:
    server = serve(subject.agent)
    engine = connected(server, connect_engine)
    (connection,) = connections(server)
    for n in range(3):
        assert engine.call("echo", n) == {"txn.number": n}
        assert connection.is_fast_path_open
    waiting = engine.notify(wait(1))
    wait_until(lambda: subject.started == [1])
    for n in range(3):
        assert engine.call("echo", n) == {"txn.number": n}
        assert not connection.is_fast_path_open
    open_gates(server, subject, 1)
    assert engine.ack(waiting) == {"txn.number": 1}
    for n in range(3):
        assert engine.call("echo", n) == {"txn.number": n}
    wait_until(lambda: connection.is_fast_path_open)


def test_a_frame_behind_the_beginning_of_another_is_no_frame_yet(
    subject: Subject, serve: Serve, connect_engine: ConnectEngine
) -> None:
    server = serve(subject.agent)
    engine = connected(server, connect_engine)
    (connection,) = connections(server)
    assert engine.call("echo", 1) == {"txn.number": 1}
    inner = notify_frame(encode_messages([echo(2)]))
    blob = Argument("blob", DataType.BINARY, inner)
    outer = notify_frame(encode_messages([Message("nobody", (blob,)), echo(3)]))
    start = outer.index(inner)
    engine.send_raw(outer[:start])
    wait_until(lambda: not connection.is_fast_path_open)
    engine.send_raw(inner)
    engine.send_raw(outer[start + len(inner) :])
    ack = engine.read_frame()
    assert [action.value for action in decode_actions(ack.payload)] == [3]


def test_nothing_is_answered_behind_the_disconnect(
    subject: Subject, serve: Serve, connect_engine: ConnectEngine
) -> None:
    server = serve(subject.agent)
    engine = connected(server, connect_engine)
    (connection,) = connections(server)
    assert engine.call("echo", 1) == {"txn.number": 1}
    server.call(connection.leave, "the agent is stopping")
    assert not connection.is_fast_path_open
    engine.send_raw(notify_frame(encode_messages([echo(2)])))
    with pytest.raises(AgentDisconnected):
        engine.next_ack()


def test_acks_of_async_handlers_come_as_they_finish(
    subject: Subject, serve: Serve, connect_engine: ConnectEngine
) -> None:
    server = serve(subject.agent)
    engine = connected(server, connect_engine)
    sent = [engine.notify(wait(n)) for n in range(3)]
    for n in (2, 0, 1):
        open_gates(server, subject, n)
        ids, reply = engine.next_ack()
        assert ids == sent[n]
        assert reply == {"txn.number": n}
    assert engine.call("echo", 7) == {"txn.number": 7}


def test_a_frame_larger_than_agreed_comes_in_fragments(
    subject: Subject, serve: Serve, connect_engine: ConnectEngine
) -> None:
    engine = connected(serve(subject.agent), connect_engine, max_frame_size=512)
    assert engine.agent is not None
    assert engine.agent.max_frame_size == 512
    assert engine.call("repeat", "", padding="x" * 100_000) == {"txn.text": ""}
    ids = engine.notify(echo(5), echo(6), fragment_size=1)
    assert engine.ack(ids).actions[1].value == 6


def test_an_aborted_frame_leaves_no_trace(
    subject: Subject, serve: Serve, connect_engine: ConnectEngine
) -> None:
    engine = connected(serve(subject.agent), connect_engine)
    engine.abort(echo(1), Message("observe", (Argument("n", DataType.INT64, 1),)))
    assert engine.call("echo", 2) == {"txn.number": 2}
    assert subject.observed == []


@pytest.mark.parametrize("message", ["repeat", "repeat-later"])
def test_an_ack_that_does_not_fit_goes_without_its_actions(
    subject: Subject,
    serve: Serve,
    connect_engine: ConnectEngine,
    caplog: pytest.LogCaptureFixture,
    message: str,
) -> None:
    engine = connected(serve(subject.agent), connect_engine, max_frame_size=1024)
    assert engine.call(message, "x", 1100) == {}
    assert "exceeded the agreed 1024 bytes" in caplog.text
    assert engine.call(message, "x", 900) == {"txn.text": "x" * 900}


def test_a_frame_that_comes_byte_by_byte_is_a_frame(
    subject: Subject, serve: Serve, connect_engine: ConnectEngine
) -> None:
    engine = connected(serve(subject.agent), connect_engine)
    frame = notify_frame(encode_messages([echo(3), echo(4)]))
    for byte in frame:
        engine.send_raw(bytes((byte,)))
    ack = engine.read_frame()
    assert (ack.type, ack.stream_id, ack.frame_id) == (FrameType.ACK, 77, 5)


def test_strings_are_bytes_and_need_not_be_utf_8(
    subject: Subject, serve: Serve, connect_engine: ConnectEngine
) -> None:
    engine = connected(serve(subject.agent), connect_engine)
    reply = engine.call("repeat", (DataType.BINARY, b"caf\xe9\x00\xff"))
    assert reply == {"txn.text": "caf\udce9\x00\udcff"}


@pytest.mark.parametrize("value", [None, "five", b"5", True])
def test_arguments_that_do_not_fit_cost_the_message_alone(
    subject: Subject,
    serve: Serve,
    connect_engine: ConnectEngine,
    caplog: pytest.LogCaptureFixture,
    value: str | bytes | bool | None,
) -> None:
    server = serve(subject.agent)
    engine = connected(server, connect_engine)
    for _ in range(3):
        ids = engine.notify(Message("echo", (Argument.of("n", value),)), echo(9))
        assert [action.value for action in engine.ack(ids).actions] == [-1, 9]
    assert caplog.text.count("cannot be called, its fallback is sent") == 1


# --- limits --------------------------------------------------------------------------------


def test_frames_over_the_in_flight_limit_wait_and_none_is_lost(
    subject: Subject, serve: Serve, connect_engine: ConnectEngine
) -> None:
    server = serve(subject.agent, in_flight=4)
    engine = connected(server, connect_engine)
    engine.ack(engine.notify(echo(0)))
    assert server.metrics.value("spoakit_backpressure_total") == 0
    count = 3000
    sent = engine.notify_each([wait(n), echo(n)] for n in range(count))
    wait_until(lambda: len(subject.started) == 4)
    open_gates(server, subject, 3)
    assert engine.next_ack()[0] == sent[3]
    wait_until(lambda: len(subject.started) == 5)
    server.run(asyncio.sleep(0))
    assert subject.started == [0, 1, 2, 3, 4]
    assert server.metrics.value("spoakit_backpressure_total") >= 1
    open_gates(server, subject, *range(count))
    for n, ids in enumerate(sent):
        if n != 3:
            assert engine.ack(ids) == {"txn.number": n}
    assert sorted(subject.started) == list(range(count))


def test_frames_that_wait_hold_a_bounded_size(
    subject: Subject, serve: Serve, connect_engine: ConnectEngine
) -> None:
    server = serve(subject.agent)
    engine = connected(server, connect_engine, max_frame_size=1 << 20)
    padding = Argument("padding", DataType.BINARY, bytes(1_000_000))
    messages = [Message("wait", (*wait(n).arguments, padding)) for n in range(40)]
    sending = Thread(target=engine.notify_each, args=([[each] for each in messages],))
    sending.start()
    wait_until(lambda: len(subject.started) == 5)
    time.sleep(0.1)
    assert len(subject.started) == 5
    open_gates(server, subject, *range(40))
    for _ in messages:
        engine.next_ack()
    sending.join()
    assert len(subject.started) == 40


def test_a_connection_that_sends_without_end_takes_turns_with_others(
    subject: Subject,
    serve: Serve,
    connect_engine: ConnectEngine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reads: list[str] = []

    class Recorded(SpopProtocol):
        def data_received(self, data: bytes) -> None:
            if reads:
                reads.append(str(self.engine_id))
            super().data_received(data)
            if self.engine_id == "greedy":
                time.sleep(0.02)  # its data gathers in the kernel
                if len(data) > 200_000 and not reads:
                    reads.append("greedy")
                    modest.notify(echo(1))

    server = serve(subject.agent)
    monkeypatch.setattr("spoakit.server.server.SpopProtocol", Recorded)
    modest = connected(server, connect_engine, engine_id="modest")
    greedy = connected(server, connect_engine, engine_id="greedy")
    frames = notify_frame(b"") * 4_000_000

    def send() -> None:
        with suppress(OSError):
            greedy.send_raw(frames)

    sending = Thread(target=send)
    sending.start()
    assert modest.next_ack()[1] == {"txn.number": 1}
    greedy._socket.shutdown(socket.SHUT_RDWR)
    sending.join()
    assert reads.index("modest") < 5


def test_what_needs_no_waiting_keeps_its_turn_behind_the_in_flight_limit(
    subject: Subject, serve: Serve, connect_engine: ConnectEngine
) -> None:
    server = serve(subject.agent, in_flight=1)
    engine = connected(server, connect_engine)
    first, second = engine.notify_each([[wait(0)], [echo(1)]])
    open_gates(server, subject, 0)
    assert engine.next_ack()[0] == first
    assert engine.next_ack()[0] == second


def test_an_engine_that_does_not_read_is_not_read_either(
    subject: Subject, serve: Serve, connect_engine: ConnectEngine
) -> None:
    server = serve(subject.agent)
    engine = connected(server, connect_engine)
    [connection] = connections(server)
    engine._socket.settimeout(0.2)
    message = Message("repeat", (Argument.of("word", "x" * 400), Argument.of("times", 40)))
    frames = 0
    try:
        # What is in one read alone asks for 10 MB.
        while frames < 100_000:
            engine.notify_each([[message]] * 500)
            frames += 500
    except TimeoutError:
        pass
    assert frames < 100_000
    wait_until(lambda: connection._is_write_paused)
    assert server.call(connection._transport.get_write_buffer_size) < 1_000_000
    # The last batch went in part; what went is answered, once it is read.
    engine._socket.settimeout(TIMEOUT)
    for _ in range(frames):
        _, reply = engine.next_ack()
        assert len(str(reply["txn.text"])) == 16000
    assert not connection._is_write_paused


def test_a_connection_that_says_nothing_is_closed_with_status_2(
    subject: Subject,
    serve: Serve,
    connect_engine: ConnectEngine,
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = serve(subject.agent, hello_timeout=0.1)
    silent, slow = connect_engine(port=server.port), connect_engine(port=server.port)
    slow.send_raw(b"\0\0")
    idle = connected(server, connect_engine)
    for engine in (silent, slow):
        assert engine.wait_for_disconnect() == Disconnected(2, "no HELLO within 0.1 s")
        engine.wait_for_close()
    wait_until_connections(server, 1)
    assert idle.call("echo", 1) == {"txn.number": 1}
    assert caplog.text.count("ended with status 2: no HELLO within 0.1 s") == 1
    assert server.metrics.value("spoakit_protocol_errors_total", status=2, error="timed_out") == 2


MANY = "a NOTIFY of more than 3 messages, which is the limit"


@pytest.mark.parametrize(
    ("messages", "called"),
    [
        ([echo(n) for n in range(4)], []),
        ([Message("nobody")] * 4, []),
        ([Message("")] * 4, []),
        ([Message("observe", echo(n).arguments) for n in range(4)], []),
        ([wait(0), wait(0), wait(0), wait(0)], [0, 0, 0]),
        ([echo(0), wait(0), echo(1), echo(2)], [0]),
        ([wait(0), echo(1), echo(2), wait(3)], [0]),
    ],
    ids=["inline", "unknown", "nameless", "observed", "async", "async second", "async last"],
)
def test_a_frame_of_more_messages_than_allowed_ends_its_connection(
    subject: Subject,
    serve: Serve,
    connect_engine: ConnectEngine,
    caplog: pytest.LogCaptureFixture,
    messages: list[Message],
    called: list[int],
) -> None:
    server = serve(subject.agent, messages=3)
    engine = connected(server, connect_engine)
    open_gates(server, subject, 0)
    sent = engine.notify(*messages[:3])
    engine.ack(sent)
    subject.started.clear()
    wait_until(lambda: len(subject.observed) in (0, 3))
    engine.notify(*messages)
    assert engine.wait_for_disconnect() == Disconnected(4, MANY)
    assert not engine._acks
    engine.wait_for_close()
    wait_until_connections(server, 0)
    # Observers are called behind the ACK, which there is not.
    assert subject.started == called
    assert len(subject.observed) <= 3
    errors = server.metrics
    assert errors.value("spoakit_protocol_errors_total", status=4, error="too_many_messages") == 1
    assert errors.value("spoakit_protocol_errors_total") == 1
    assert caplog.text.count(f"ended with status 4: {MANY}") == 1


def test_a_million_messages_in_a_frame_hold_up_nobody(
    subject: Subject, serve: Serve, connect_engine: ConnectEngine
) -> None:
    server = serve(subject.agent, frame_size_cap=4 << 20)
    engine = connected(server, connect_engine, max_frame_size=4 << 20)
    spent = server.call(time.thread_time)
    for payload in (b"\0\0" * 1_400_000, b"\1q\0" * 1_000_000):
        engine.send_raw(notify_frame(payload))
        assert engine.wait_for_disconnect().status_code == 4
        engine = connected(server, connect_engine, max_frame_size=4 << 20)
    assert server.call(time.thread_time) - spent < 0.5


ALL_HAD = Disconnected(0, "the connection has had its 3 frames")


def test_a_connection_is_closed_after_as_many_frames_as_it_may_have(
    subject: Subject, serve: Serve, connect_engine: ConnectEngine, caplog: pytest.LogCaptureFixture
) -> None:
    server = serve(subject.agent, frames=3)
    for _ in range(2):
        engine = connected(server, connect_engine)
        for n in range(3):
            assert engine.call("echo", n) == {"txn.number": n}
        assert engine.wait_for_disconnect() == ALL_HAD
        engine.wait_for_close()
    wait_until_connections(server, 0)
    assert caplog.text.count("WARNING") == 0


def test_frames_over_the_limit_that_came_with_the_last_are_answered_in_the_same_write(
    subject: Subject, serve: Serve, connect_engine: ConnectEngine, writes: list[bytes]
) -> None:
    engine = connected(serve(subject.agent, frames=3), connect_engine)
    del writes[:]
    sent = engine.notify_each([echo(n)] for n in range(5))
    assert engine.wait_for_disconnect() == ALL_HAD
    assert [engine.ack(ids) for ids in sent] == [{"txn.number": n} for n in range(5)]
    assert len(writes) == 1


def test_the_last_frame_is_counted_when_all_its_fragments_have_come(
    subject: Subject, serve: Serve, connect_engine: ConnectEngine
) -> None:
    engine = connected(serve(subject.agent, frames=3), connect_engine)
    engine.abort(echo(0))
    assert [engine.ack(engine.notify(echo(n), fragment_size=4)) for n in range(3)] == [
        {"txn.number": n} for n in range(3)
    ]
    assert engine.wait_for_disconnect() == ALL_HAD


def test_frames_that_wait_are_answered_before_the_connection_is_closed(
    subject: Subject, serve: Serve, connect_engine: ConnectEngine
) -> None:
    server = serve(subject.agent, frames=3, in_flight=2)
    engine = connected(server, connect_engine)
    sent = engine.notify_each([[wait(1)], [wait(2)], [wait(3)], [echo(4)]])
    wait_until(lambda: subject.started == [1, 2])
    # What comes after the limit is not read any more.
    engine.notify(echo(5))
    open_gates(server, subject, 2, 1)
    wait_until(lambda: subject.started == [1, 2, 3])
    open_gates(server, subject, 3)
    assert engine.wait_for_disconnect() == ALL_HAD
    assert [engine.ack(ids) for ids in sent] == [{"txn.number": n} for n in (1, 2, 3, 4)]
    engine.wait_for_close()
    wait_until_connections(server, 0)


def test_the_engines_own_reason_prevails_over_the_limit(
    subject: Subject, serve: Serve, connect_engine: ConnectEngine
) -> None:
    server = serve(subject.agent, frames=1)
    engine = connected(server, connect_engine)
    payload = Disconnect(42, "bye").encode()
    engine.send_raw(
        notify_frame(encode_messages([echo(1)]))
        + encode_frame(FrameType.HAPROXY_DISCONNECT, payload)
    )
    assert engine.read_frame().type == FrameType.ACK
    assert engine.wait_for_disconnect() == Disconnected(42, "bye")
    wait_until_connections(server, 0)


# --- bad input -----------------------------------------------------------------------------


def notify_frame(
    payload: bytes, ids: bytes = encode_ids(77, 5), flags: FrameFlag = FrameFlag.FIN
) -> bytes:
    return encode_frame(FrameType.NOTIFY, payload, ids=ids, flags=flags)


def hello_frame(payload: bytes, flags: FrameFlag = FrameFlag.FIN) -> bytes:
    return encode_frame(FrameType.HAPROXY_HELLO, payload, flags=flags)


def item(name: bytes, data_type: DataType, value: Any) -> bytes:
    return bytes((len(name),)) + name + encode_value(data_type, value)


VERSIONS = item(b"supported-versions", DataType.STRING, "2.0")
SIZE = item(b"max-frame-size", DataType.UINT32, 16380)
CAPABILITIES = item(b"capabilities", DataType.STRING, "")
HELLO = EngineHello(16380).encode()
ENDLESS = b"\xff" * 30

BEFORE_HELLO = {
    "an HTTP request": (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", 3, "an HTTP request"),
    "a TLS handshake": (b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03", 3, "a TLS handshake"),
    "garbage": (bytes(range(255, 100, -1)), 3, "a frame of 4294901244 bytes"),
    "a frame of no bytes": (b"\0\0\0\0", 4, "a frame of zero bytes"),
    "a frame without flags": (b"\0\0\0\x02\x01\0", 4, "no room for its flags"),
    "a HELLO of a megabyte": (b"\0\x10\0\0" + b"\x01", 3, "over the limit"),
    "a NOTIFY before HELLO": (notify_frame(b""), 4, "NOTIFY in state HELLO"),
    "a HELLO without versions": (hello_frame(SIZE + CAPABILITIES), 5, "no supported-versions"),
    "a HELLO without a size": (hello_frame(VERSIONS + CAPABILITIES), 6, "no max-frame-size"),
    "a HELLO without capabilities": (hello_frame(VERSIONS + SIZE), 7, "no capabilities"),
    "a HELLO for 1.0": (hello_frame(EngineHello(16380, ("1.0",)).encode()), 8, "offers SPOP 1.0"),
    "a HELLO with a small size": (hello_frame(EngineHello(255).encode()), 9, "255 bytes"),
    "a HELLO in fragments": (hello_frame(HELLO, FrameFlag(0)), 10, "in fragments"),
    "a HELLO cut short": (hello_frame(HELLO[:-1]), 4, "byte"),
    "an endless varint in HELLO": (hello_frame(HELLO + ENDLESS), 4, "exceeds 64 bits"),
    "an unknown type in HELLO": (hello_frame(HELLO + b"\x01x\x0f"), 4, "unknown data type 15"),
    "65 items in HELLO": (
        hello_frame(HELLO + b"".join(item(b"%d" % n, DataType.NULL, None) for n in range(65))),
        4,
        "more than 64 items",
    ),
}
NAME = b"\x04echo"
CUT = b"\x05echo"
AFTER_HELLO = {
    "a second HELLO": (hello_frame(HELLO), 4, "HAPROXY-HELLO in state OPEN"),
    "a frame of no bytes": (b"\0\0\0\0", 4, "a frame of zero bytes"),
    "a frame over the cap": (b"\0\x10\0\x01" + b"\x03", 3, "1048577 bytes, over the limit"),
    "an ACK": (encode_frame(FrameType.ACK, b""), 4, "ACK in state OPEN"),
    "an endless stream id": (notify_frame(b"", ENDLESS), 4, "exceeds 64 bits"),
    "a name longer than the frame": (notify_frame(b"\x05echo"), 4, "claims 5 bytes"),
    "a name of 2**64 bytes": (notify_frame(encode_varint(2**64 - 1)), 4, "claims 184467440737"),
    "more arguments than there are": (notify_frame(NAME + b"\xff\x01n\x04\x05"), 4, "byte"),
    "a message without its count": (notify_frame(NAME), 4, "ends within a field"),
    "an unknown type": (notify_frame(NAME + b"\x01\x01n\x0f"), 4, "unknown data type 15"),
    "a cut address": (notify_frame(NAME + b"\x01\x01n\x06\x7f\0\0"), 4, "byte"),
    "an endless integer": (notify_frame(NAME + b"\x01\x01n\x04" + ENDLESS), 4, "64 bits"),
    "a bad message for an async handler": (
        notify_frame(b"\x04wait\x01\x01n\x08\x50"), 4, "byte"
    ),
    "a fragment of nothing": (encode_frame(FrameType.UNSET, b"", ids=b"\1\1"), 12, "not begun"),
    "fragments of two frames": (
        notify_frame(b"", b"\1\1", FrameFlag(0)) + notify_frame(b"", b"\3\1", FrameFlag(0)),
        11,
        "within the fragments of another",
    ),
    "fragments without end": (
        notify_frame(b"", b"\1\1", FrameFlag(0))
        + 40 * encode_frame(FrameType.UNSET, bytes(1000), ids=b"\1\1", flags=FrameFlag(0)),
        3,
        "exceeds the limit of 32768 bytes",
    ),
}  # fmt: skip
BAD = [
    *((name, b"", *case) for name, case in BEFORE_HELLO.items()),
    *((f"{name}, open", hello_frame(HELLO), *case) for name, case in AFTER_HELLO.items()),
]


@pytest.fixture(scope="module")
def shared(loop: LoopName) -> Iterator[tuple[AgentServer, Subject]]:
    """A server that has to endure all bad input, one after the other."""
    subject = Subject()
    with AgentServer(subject.agent, settings=settings(loop, reassembled_size=32768)) as server:
        yield server, subject


@pytest.mark.parametrize(("first", "bad", "code", "reason"), [c[1:] for c in BAD],
                         ids=[c[0] for c in BAD])  # fmt: skip
def test_bad_input_ends_its_connection_alone_with_status_and_reason(
    shared: tuple[AgentServer, Subject],
    connect_engine: ConnectEngine,
    caplog: pytest.LogCaptureFixture,
    first: bytes,
    bad: bytes,
    code: int,
    reason: str,
) -> None:
    server, subject = shared
    number = len(subject.started)
    too_big = server.metrics.value("spoakit_protocol_errors_total", status=3, error="frame_too_big")
    bystander = connected(server, connect_engine)
    pending = bystander.notify(wait(number))
    wait_until(lambda: number in subject.started)
    state = server.server._state
    assert state is not None
    server.call(state._throttle.forget)
    offender = connect_engine(port=server.port)
    peer = "{}:{}".format(*offender._socket.getsockname())
    offender.send_raw(first)
    if first:
        assert offender.read_frame().type == FrameType.AGENT_HELLO
    offender.send_raw(bad)
    disconnect = offender.wait_for_disconnect()
    assert disconnect.status_code == code
    assert reason in disconnect.message
    assert len(disconnect.message) <= 255
    offender.wait_for_close()
    lines = [each for each in caplog.messages if "ended with status" in each]
    assert len(lines) == 1
    assert lines[0].startswith(f"connection from {peer} ended with status {code}: ")
    assert reason in lines[0]
    now = server.metrics.value("spoakit_protocol_errors_total", status=3, error="frame_too_big")
    assert now == too_big + (code == 3)
    open_gates(server, subject, number)
    assert bystander.ack(pending) == {"txn.number": number}
    bystander.close()
    wait_until_connections(server, 0)
    assert connections(server) == []


def test_a_frame_of_an_unknown_type_is_passed_over(
    subject: Subject, serve: Serve, connect_engine: ConnectEngine
) -> None:
    engine = connected(serve(subject.agent), connect_engine)
    unknown = encode_frame(FrameType.NOTIFY, b"anything")
    engine.send_raw(unknown[:4] + b"\x4d" + unknown[5:])
    assert engine.call("echo", 1) == {"txn.number": 1}


def test_frames_before_a_bad_one_are_acknowledged_before_the_disconnect(
    subject: Subject, serve: Serve, connect_engine: ConnectEngine
) -> None:
    engine = connected(serve(subject.agent), connect_engine)
    good = notify_frame(encode_messages([echo(1)]))
    engine.send_raw(good + good + notify_frame(b"\x05echo") + good)
    types = [engine.read_frame().type for _ in range(3)]
    assert types == [FrameType.ACK, FrameType.ACK, FrameType.AGENT_DISCONNECT]
    engine.wait_for_close()


def test_nothing_is_handled_behind_a_frame_that_fails_while_it_is_suspended(
    subject: Subject, serve: Serve, connect_engine: ConnectEngine, caplog: pytest.LogCaptureFixture
) -> None:
    server = serve(subject.agent)
    engine = connected(server, connect_engine)
    # The first message cannot be called, so the frame gets on to the one that is cut at once.
    misfit = Message("wait", (Argument("n", DataType.STRING, "s"),))
    broken = notify_frame(encode_messages([misfit]) + b"\x05ab")
    good = notify_frame(encode_messages([echo(1), Message("observe", echo(7).arguments)]))
    engine.send_raw(good + broken + good + good)
    types = [engine.read_frame().type for _ in range(2)]
    assert types == [FrameType.ACK, FrameType.AGENT_DISCONNECT]
    engine.wait_for_close()
    wait_until_connections(server, 0)
    wait_until(lambda: subject.observed == [7])
    assert "Traceback" not in caplog.text
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_frames_in_flight_are_cancelled_by_a_violation(
    subject: Subject, serve: Serve, connect_engine: ConnectEngine
) -> None:
    server = serve(subject.agent)
    engine = connected(server, connect_engine)
    engine.notify(wait(1), wait(2))
    wait_until(lambda: subject.started == [1])
    engine.send_raw(notify_frame(CUT))
    assert engine.wait_for_disconnect().status_code == 4
    wait_until(lambda: subject.cancelled == [1])
    open_gates(server, subject, 1)
    engine.wait_for_close()
    wait_until_connections(server, 0)
    assert subject.started == [1]


def test_a_violation_in_the_backlog_comes_after_the_frames_before_it(
    subject: Subject, serve: Serve, connect_engine: ConnectEngine
) -> None:
    server = serve(subject.agent, in_flight=1)
    engine = connected(server, connect_engine)
    frames = [encode_messages([wait(1)]), encode_messages([echo(2)]), CUT]
    engine.send_raw(b"".join(notify_frame(each) for each in [*frames, frames[1]]))
    wait_until(lambda: subject.started == [1])
    open_gates(server, subject, 1)
    types = [engine.read_frame().type for _ in range(3)]
    assert types == [FrameType.ACK, FrameType.ACK, FrameType.AGENT_DISCONNECT]
    engine.wait_for_close()


def test_many_failures_of_a_kind_are_one_line(
    subject: Subject,
    serve: Serve,
    connect_engine: ConnectEngine,
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = serve(subject.agent)
    for _ in range(20):
        engine = connect_engine(port=server.port)
        engine.send_raw(b"GET / HTTP/1.0\r\n\r\n")
        with pytest.raises(AgentDisconnected, match="status 3: an HTTP request"):
            engine.ack((1, 1))
    assert caplog.text.count("an HTTP request") <= 2


def test_failures_of_different_kinds_have_a_line_each(
    subject: Subject,
    serve: Serve,
    connect_engine: ConnectEngine,
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = serve(subject.agent)
    for bad, code, reason in (BEFORE_HELLO["an HTTP request"], BEFORE_HELLO["a frame of no bytes"]):
        engine = connect_engine(port=server.port)
        engine.send_raw(bad)
        assert engine.wait_for_disconnect().status_code == code
        assert f"ended with status {code}: {reason}" in caplog.text


@pytest.mark.parametrize("at", [1, 3, 4, 8, 20])
def test_a_frame_cut_by_the_end_of_the_stream_is_told_with_status_1(
    subject: Subject,
    serve: Serve,
    connect_engine: ConnectEngine,
    caplog: pytest.LogCaptureFixture,
    at: int,
) -> None:
    server = serve(subject.agent)
    engine = connected(server, connect_engine)
    engine.send_raw(notify_frame(encode_messages([echo(1)]))[:at])
    engine.send_eof()
    disconnect = engine.wait_for_disconnect()
    assert disconnect == Disconnected(1, f"the connection ended within a frame, after {at} bytes")
    engine.wait_for_close()
    assert "ended with status 1: " in caplog.text
    wait_until_connections(server, 0)


def test_acks_are_sent_before_the_disconnect_for_a_frame_cut_by_the_end_of_the_stream(
    subject: Subject, serve: Serve, connect_engine: ConnectEngine
) -> None:
    server = serve(subject.agent)
    engine = connected(server, connect_engine)
    sent = engine.notify(wait(1))
    wait_until(lambda: subject.started == [1])
    engine.send_raw(b"\0\0\1")
    engine.send_eof()
    wait_until(lambda: connections(server)[0].phase is Phase.DRAINING)
    open_gates(server, subject, 1)
    assert engine.ack(sent) == {"txn.number": 1}
    assert engine.wait_for_disconnect().status_code == 1
    engine.wait_for_close()
    wait_until_connections(server, 0)


def test_a_reset_within_a_frame_disturbs_nobody_and_is_nothing_to_log(
    subject: Subject,
    serve: Serve,
    connect_engine: ConnectEngine,
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = serve(subject.agent)
    bystander = connected(server, connect_engine)
    for _ in range(20):
        engine = connected(server, connect_engine)
        engine.send_raw(notify_frame(encode_messages([echo(1)])) + b"\0\0\x01\0\x03")
        engine.reset()
    wait_until_connections(server, 1)
    assert bystander.call("echo", 5) == {"txn.number": 5}
    assert caplog.messages == []


def test_ended_connections_leave_no_memory_behind(
    subject: Subject, serve: Serve, connect_engine: ConnectEngine
) -> None:
    server = serve(subject.agent)

    def holds_much(connection: SpopProtocol) -> bool:
        return len(connection._connection._incomplete) > 400_000

    def misbehave(times: int) -> None:
        for n in range(times):
            with EngineClient(port=server.port) as engine:
                engine.hello()
                engine.notify(wait(n))
                if n % 3 == 0:
                    # Half a frame, and half of what is put together from fragments.
                    engine.send_raw(notify_frame(bytes(200_000), b"\1\1", FrameFlag(0)))
                    engine.send_raw(b"\0\x0f\0\0\0" + bytes(500_000))
                    [connection] = connections(server)
                    wait_until(partial(holds_much, connection))
                if n % 3 == 1:
                    engine.send_raw(notify_frame(b"\xff"))
                    engine.wait_for_disconnect()
                engine.reset()
            wait_until_connections(server, 0)

    misbehave(6)
    tracemalloc.start()
    try:
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        misbehave(40)
        gc.collect()
        # What the state still knows of them, until their HELLO would be due, is small.
        assert tracemalloc.get_traced_memory()[0] - before < 1_000_000
    finally:
        tracemalloc.stop()


def test_a_connection_is_forgotten_once_its_hello_would_have_been_due(
    subject: Subject, serve: Serve, connect_engine: ConnectEngine
) -> None:
    server = serve(subject.agent, hello_timeout=0.05)
    engine = connected(server, connect_engine)
    [connection] = connections(server)
    gone = weakref.ref(connection)
    del connection
    engine.close()
    wait_until(lambda: (gc.collect(), gone() is None)[1])


# --- ends ----------------------------------------------------------------------------------


def test_a_disconnect_is_answered_with_its_status_after_the_pending_acks(
    subject: Subject, serve: Serve, connect_engine: ConnectEngine
) -> None:
    server = serve(subject.agent)
    engine = connected(server, connect_engine)
    slow = engine.notify(wait(1))
    wait_until(lambda: subject.started == [1])
    disconnect = encode_frame(
        FrameType.HAPROXY_DISCONNECT,
        item(b"status-code", DataType.UINT32, 42) + item(b"message", DataType.STRING, "bye"),
    )
    engine.send_raw(notify_frame(encode_messages([echo(2)])) + disconnect)
    assert engine.read_frame().stream_id == 77
    open_gates(server, subject, 1)
    assert engine.ack(slow) == {"txn.number": 1}
    assert engine.wait_for_disconnect() == Disconnected(42, "bye")
    engine.wait_for_close()
    wait_until_connections(server, 0)


def test_a_status_above_99_is_repeated_as_99_and_nothing_behind_it_is_handled(
    subject: Subject, serve: Serve, connect_engine: ConnectEngine
) -> None:
    engine = connected(serve(subject.agent), connect_engine)
    reason = item(b"status-code", DataType.UINT32, 150) + item(b"message", DataType.STRING, "bye")
    observe = notify_frame(encode_messages([Message("observe", echo(7).arguments)]))
    engine.send_raw(encode_frame(FrameType.HAPROXY_DISCONNECT, reason) + observe)
    assert engine.wait_for_disconnect() == Disconnected(99, "bye")
    engine.wait_for_close()
    assert subject.observed == []


def test_a_disconnect_waits_for_acks_that_the_engine_is_slow_to_read(
    subject: Subject, serve: Serve, connect_engine: ConnectEngine
) -> None:
    server = serve(subject.agent)
    engine = connected(server, connect_engine)
    [connection] = connections(server)
    large = Message("repeat", (Argument.of("word", "x" * 10), Argument.of("times", 1600)))
    payload = Disconnect(0, "bye").encode()
    frames = [notify_frame(encode_messages([each])) for each in (wait(1), *[large] * 900)]
    engine.send_raw(b"".join(frames) + encode_frame(FrameType.HAPROXY_DISCONNECT, payload))
    wait_until(lambda: connection._is_write_paused)
    open_gates(server, subject, 1)
    wait_until(lambda: not len(connection.backlog))
    types = [engine.read_frame().type for _ in range(902)]
    assert types == [FrameType.ACK] * 901 + [FrameType.AGENT_DISCONNECT]


def test_a_disconnect_with_an_error_is_logged(
    subject: Subject,
    serve: Serve,
    connect_engine: ConnectEngine,
    caplog: pytest.LogCaptureFixture,
) -> None:
    engine = connected(serve(subject.agent), connect_engine)
    assert engine.disconnect(3, "frame is too big") == Disconnected(3, "frame is too big")
    assert "disconnects with status 3: frame is too big" in caplog.text


def test_what_is_pending_when_the_engine_stops_writing_is_still_answered(
    subject: Subject, serve: Serve, connect_engine: ConnectEngine
) -> None:
    server = serve(subject.agent)
    engine = connected(server, connect_engine)
    sent = engine.notify_each([[wait(1)], [wait(2)], [echo(3)]])
    engine.send_eof()
    assert engine.ack(sent[2]) == {"txn.number": 3}
    wait_until(lambda: subject.started == [1, 2])
    for n in (2, 1):
        open_gates(server, subject, n)
        assert engine.ack(sent[n - 1]) == {"txn.number": n}
    with pytest.raises(ConnectionAbortedError, match="without a DISCONNECT"):
        engine.ack((9, 9))
    wait_until_connections(server, 0)


def test_an_engine_that_closes_between_frames_is_nothing_to_log(
    subject: Subject,
    serve: Serve,
    connect_engine: ConnectEngine,
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = serve(subject.agent)
    connected(server, connect_engine).close()
    connected(server, connect_engine).reset()
    connect_engine(port=server.port).close()
    wait_until_connections(server, 0)
    assert caplog.messages == []


def test_handlers_of_a_lost_connection_are_cancelled(
    subject: Subject, serve: Serve, connect_engine: ConnectEngine
) -> None:
    server = serve(subject.agent)
    other = connected(server, connect_engine)
    kept = other.notify(wait(100))
    engine = connected(server, connect_engine)
    engine.notify_each([wait(n)] for n in range(10))
    wait_until(lambda: len(subject.started) == 11)
    engine.reset()
    wait_until(lambda: sorted(subject.cancelled) == list(range(10)))
    open_gates(server, subject, 100)
    assert other.ack(kept) == {"txn.number": 100}


def test_a_health_check_gets_a_hello_of_256_bytes_and_the_end(
    subject: Subject, serve: Serve, connect_engine: ConnectEngine
) -> None:
    server = serve(subject.agent)
    engine = connect_engine(port=server.port)
    answer = engine.check_health()
    assert (answer.version, answer.max_frame_size) == ("2.0", 256)
    engine.wait_for_close()
    wait_until_connections(server, 0)


def test_it_works_on_a_unix_socket_too(
    subject: Subject,
    serve_agents: ServeAgents,
    connect_engine: ConnectEngine,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = str(tmp_path / "s")
    serve_agents(subject.agent, settings=ServerSettings(listen=Listen.at(unix=path)))
    engine = connect_engine(unix=path)
    engine.hello()
    assert engine.call("echo", 1) == {"txn.number": 1}
    engine.send_raw(b"\0\0\0\0")
    assert engine.wait_for_disconnect().status_code == 4
    assert f"connection from {path} ended with status 4" in caplog.text


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "::", "unix"])
def test_a_context_has_the_address_of_the_engine(
    serve_agents: ServeAgents, connect_engine: ConnectEngine, tmp_path: Path, address: str
) -> None:
    agent = Agent("peers")
    peer = agent.variable("txn.peer", str)

    @agent.message("who")
    def who(context: Context) -> Action:
        return peer.set(context.peer)

    path = str(tmp_path / "s")
    listen = Listen.at(unix=path) if address == "unix" else Listen.at(address, 0)
    server = serve_agents(agent, settings=replace(DEFAULT_SETTINGS, listen=listen))
    if address == "unix":
        engine, expected = connect_engine(unix=path), path
    else:
        engine = connect_engine("127.0.0.1" if address == "::" else address, server.port)
        host, port = engine._socket.getsockname()[:2]
        expected = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    engine.hello()
    assert engine.call("who") == {"txn.peer": expected}


def test_each_frame_is_logged_where_debugging_is_on(
    subject: Subject,
    serve: Serve,
    connect_engine: ConnectEngine,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG, "spoakit.server")
    engine = connected(serve(subject.agent), connect_engine, engine_id="abc")
    engine.call("echo", n=1)
    assert "engine_id='abc'" in caplog.text
    assert "NOTIFY 1/1: echo(n=1)" in caplog.text
    assert "ACK 1/1: txn.number=1" in caplog.text
    engine.disconnect()
    wait_until(lambda: "AGENT-DISCONNECT with status 0: " in caplog.text)
    assert "HAPROXY-DISCONNECT with status 0: " in caplog.text
    assert "AGENT-HELLO" in caplog.text
    with socket.create_connection(engine._socket.getpeername()) as stranger:
        stranger.close()
