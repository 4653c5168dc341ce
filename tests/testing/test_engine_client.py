"""spoakit.testing.engine_client and agent_server: HAProxy's part, played over a real socket."""

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import pytest

from spoakit import Action, Agent, Argument, DataType, IPAddress, Message
from spoakit.exceptions import (
    AgentDisconnected,
    FrameIdNotFoundError,
    FrameTooBigError,
    InvalidFrameError,
    SpoakitError,
    StartupError,
    UnsupportedVersionError,
)
from spoakit.server.settings import Listen, ServerSettings
from spoakit.spop import (
    AgentHello,
    Disconnected,
    FrameFlag,
    FrameType,
    encode_frame,
    encode_ids,
    encode_messages,
)
from spoakit.testing import AgentServer, EngineClient
from spoakit.testing.pytest_plugin import ConnectEngine, ServeAgents
from tests.support.waiting import wait_until

agent = Agent("iprep")
score = agent.variable("sess.ip_score", DataType.UINT32)
text = agent.variable("txn.text", bytes)


@agent.message("check-client-ip")
def check(src: IPAddress, /) -> Action:
    return score.set(42 if src == IPv4Address("192.0.2.1") else None)


@agent.message("repeat")
async def repeat(text_: bytes, times: int = 1, delay: int = 0) -> Action:
    await asyncio.sleep(delay / 1000)
    return text.set(text_ * times)


@pytest.fixture(scope="module")
def server() -> Iterator[AgentServer]:
    with AgentServer(agent) as server:
        yield server


@pytest.fixture
def engine(server: AgentServer) -> Iterator[EngineClient]:
    with EngineClient(port=server.port) as engine:
        engine.hello()
        yield engine


# --- with an agent -------------------------------------------------------------------------


def test_a_call_sends_typed_arguments_and_returns_what_is_set(engine: EngineClient) -> None:
    reply = engine.call("check-client-ip", IPv4Address("192.0.2.1"))
    assert reply == {"sess.ip_score": 42}
    assert reply.actions[0].data_type is DataType.UINT32
    assert engine.call("check-client-ip", IPv6Address("::1")) == {"sess.ip_score": None}
    assert engine.call("repeat", (DataType.STRING, "ab"), times=2) == {"txn.text": b"abab"}
    assert engine.call("repeat", Argument.of("text_", b"\xff")) == {"txn.text": b"\xff"}


def test_the_handshake_says_what_it_is_told(server: AgentServer) -> None:
    with EngineClient(port=server.port) as engine:
        assert engine.agent is None
        answer = engine.hello(max_frame_size=1000, capabilities=["pipelining"], engine_id="a")
        assert answer == AgentHello(1000, frozenset({"pipelining", "fragmentation"}))
        assert engine.agent is answer
    with EngineClient(port=server.port) as engine:
        assert engine.hello(capabilities=()).capabilities == {"fragmentation"}


def test_a_refused_handshake_tells_status_and_reason(server: AgentServer) -> None:
    with EngineClient(port=server.port) as engine, pytest.raises(AgentDisconnected) as refused:
        engine.hello(versions=("1.0",))
    assert refused.value.status_code == 8
    assert refused.value.message == "the engine offers SPOP 1.0, not 2.0"
    assert str(refused.value) == f"the agent disconnected with status 8: {refused.value.message}"


def test_many_frames_may_be_in_flight_and_their_acks_asked_for_in_any_order(
    engine: EngineClient,
) -> None:
    frames = [
        Message("repeat", (Argument.of("text_", b"%d" % n), Argument.of("delay", n % 5)))
        for n in range(40)
    ]
    sent = [engine.notify(frame) for frame in frames[:20]]
    sent += engine.notify_each([frame] for frame in frames[20:])
    assert sent == [(1 + 2 * n, 1) for n in range(40)]
    for n in reversed(range(30)):
        assert engine.ack(sent[n]) == {"txn.text": b"%d" % n}
    left = dict(engine.next_ack() for _ in range(10))
    assert left.keys() == set(sent[30:])


def test_several_messages_go_in_one_frame(engine: EngineClient) -> None:
    one, two = (Message("repeat", (Argument.of("text_", each),)) for each in (b"1", b"2"))
    reply = engine.ack(engine.notify(one, two))
    assert [action.value for action in reply.actions] == [b"1", b"2"]
    assert engine.ack(engine.notify()) == {}


def test_payloads_go_in_fragments_where_too_large_or_asked_for(engine: EngineClient) -> None:
    assert engine.call("repeat", "", padding=bytes(50_000)) == {"txn.text": b""}
    message = Message("repeat", (Argument.of("text_", b"abc"),))
    for size in (1, 3, 10_000):
        assert engine.ack(engine.notify(message, fragment_size=size)) == {"txn.text": b"abc"}
    engine.abort(message)
    assert engine.call("repeat", "d") == {"txn.text": b"d"}


def test_a_health_check_is_answered_and_closed(server: AgentServer) -> None:
    with EngineClient(port=server.port) as engine:
        assert engine.check_health().max_frame_size == 256
        engine.wait_for_close()


def test_a_disconnect_returns_the_agents_and_keeps_acks(engine: EngineClient) -> None:
    slow = engine.notify(
        Message("repeat", (Argument.of("text_", b"slow"), Argument.of("delay", 20)))
    )
    assert engine.disconnect(42, "bye") == Disconnected(42, "bye")
    assert engine.ack(slow) == {"txn.text": b"slow"}
    with pytest.raises(ConnectionAbortedError, match="closed the connection without a DISCONNECT"):
        engine.next_ack()
    engine.wait_for_close()


def test_bytes_can_be_sent_and_frames_read_as_they_are(engine: EngineClient) -> None:
    payload = encode_messages([Message("repeat", (Argument.of("text_", b"x"),))])
    engine.send_raw(encode_frame(FrameType.NOTIFY, payload, ids=encode_ids(1000, 2000)))
    frame = engine.read_frame()
    assert (frame.type, frame.stream_id, frame.frame_id) == (FrameType.ACK, 1000, 2000)
    assert frame.flags is FrameFlag.FIN
    engine.send_raw(b"\0\0\0\0")
    assert engine.read_frame().type == FrameType.AGENT_DISCONNECT
    engine.wait_for_close()


def test_what_spop_cannot_send_is_refused(engine: EngineClient) -> None:
    with pytest.raises(TypeError, match=r"argument 'load' must be a bool, int"):
        engine.call("repeat", load=0.5)  # type: ignore[arg-type]
    assert engine.call("repeat", "still fine") == {"txn.text": b"still fine"}


def test_unix_sockets_and_ipv6_work_too(
    serve_agents: ServeAgents, connect_engine: ConnectEngine, tmp_path: Path
) -> None:
    path = str(tmp_path / "s")
    on_path = serve_agents(agent, settings=ServerSettings(listen=Listen.at(unix=path)))
    on_ipv6 = serve_agents(agent, settings=ServerSettings(listen=Listen.at("::1", 0)))
    assert on_path.port == 0
    for engine in (connect_engine(unix=path), connect_engine("::1", on_ipv6.port)):
        engine.hello()
        assert engine.call("repeat", "x") == {"txn.text": b"x"}
    with pytest.raises(FileNotFoundError):
        connect_engine(unix=str(tmp_path / "none"))


# --- with an agent that does not behave ----------------------------------------------------

HELLO = AgentHello(16380, frozenset({"fragmentation"}))


def hello_frame(hello: AgentHello = HELLO) -> bytes:
    return encode_frame(FrameType.AGENT_HELLO, hello.encode())


@contextmanager
def playing(*answers: bytes) -> Iterator[EngineClient]:
    """Give a client whose agent sends these bytes, one for each thing it gets, and closes."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def play() -> None:
            peer, _ = listener.accept()
            with peer:
                for answer in answers:
                    peer.recv(65536)
                    peer.sendall(answer)
                    if not answer:
                        return
                peer.recv(65536)

        thread = threading.Thread(target=play)
        thread.start()
        with EngineClient(port=listener.getsockname()[1], timeout=0.1) as client:
            yield client
        thread.join(5)
        assert not thread.is_alive()


def test_an_agent_that_is_silent_is_a_timeout() -> None:
    with playing() as engine, pytest.raises(TimeoutError, match=r"sent nothing for 0\.1 s"):
        engine._receive_frame()
    with playing(hello_frame()) as engine:
        engine.hello()
        with pytest.raises(TimeoutError, match=r"did not close within 0\.1 s"):
            engine.wait_for_close()


@pytest.mark.parametrize(
    ("answer", "error", "reason"),
    [
        (b"", ConnectionAbortedError, "closed the connection without a DISCONNECT"),
        (b"\0\0", TimeoutError, "sent nothing"),
        (b"\xff\xff\xff\xff", FrameTooBigError, "frame of 4294967295 bytes"),
        (encode_frame(FrameType.ACK, b""), InvalidFrameError, "ACK is not allowed in state HELLO"),
        (hello_frame(AgentHello(256, version="3.0")), UnsupportedVersionError, "3.0"),
    ],
)
def test_a_bad_answer_to_the_hello_is_told(
    answer: bytes, error: type[Exception], reason: str
) -> None:
    with playing(answer) as engine, pytest.raises(error, match=reason):
        engine.hello()


@pytest.mark.parametrize(
    ("answer", "error", "reason"),
    [
        (b"", ConnectionAbortedError, "without a DISCONNECT"),
        (b"\0\0\0\x09", TimeoutError, "sent nothing"),
        (encode_frame(FrameType.ACK, b"", ids=b"\5\1"), FrameIdNotFoundError, "not in flight"),
        (encode_frame(FrameType.ACK, b"\x09", ids=b"\1\1"), InvalidFrameError, "ends within"),
        (encode_frame(FrameType.ACK, bytes(17000), ids=b"\1\1"), FrameTooBigError, "17007 bytes"),
    ],
)
def test_a_bad_ack_is_told(answer: bytes, error: type[Exception], reason: str) -> None:
    with playing(hello_frame(), answer) as engine:
        engine.hello()
        with pytest.raises(error, match=reason):
            engine.call("message")


def test_a_payload_too_large_for_an_agent_without_fragments_is_refused() -> None:
    with playing(hello_frame(AgentHello(256))) as engine:
        engine.hello()
        with pytest.raises(FrameTooBigError, match="a payload of"):
            engine.call("message", bytes(300))


# --- AgentServer ---------------------------------------------------------------------------


def test_a_server_that_cannot_start_says_why() -> None:
    broken = Agent("broken")

    @broken.resource
    async def never() -> AsyncIterator[socket.socket]:
        raise OSError("no route to host")
        yield socket.socket()

    @broken.observe("message")
    def see(resource: socket.socket) -> None: ...

    with pytest.raises(StartupError, match="no route to host"), AgentServer(broken):
        pass
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = Listen.at("127.0.0.1", taken.getsockname()[1])
        with (
            pytest.raises(StartupError, match="in use"),
            AgentServer(agent, settings=ServerSettings(listen=listen)),
        ):
            pass


def test_a_server_runs_in_a_thread_that_ends_with_it() -> None:
    before = threading.active_count()
    with AgentServer(agent) as server:
        ident: Callable[[], int] = threading.get_ident
        assert server.call(ident) != ident()
        assert server.run(asyncio.sleep(0, "done")) == "done"
        assert server.metrics.value("spoakit_connections") == 0
    assert threading.active_count() == before


def test_a_reset_is_seen_by_the_agent_at_once(server: AgentServer) -> None:
    engine = EngineClient(port=server.port)
    engine.hello()
    engine.reset()
    wait_until(lambda: server.call(lambda: not server.server.connection_count))
    engine.close()


@pytest.mark.parametrize(
    "send",
    [
        lambda engine: engine.notify(Message("where-am-i")),
        lambda engine: engine.notify_each([[], []]),
        lambda engine: engine.call("where-am-i"),
        lambda engine: engine.abort(Message("where-am-i")),
    ],
)
def test_frames_before_the_handshake_are_refused_and_what_to_do_is_said(
    server: AgentServer, send: Callable[[EngineClient], object]
) -> None:
    with EngineClient(port=server.port) as engine:
        with pytest.raises(SpoakitError, match=r"the handshake is not done: call hello\(\) before"):
            send(engine)
        assert engine.hello().version == "2.0"
