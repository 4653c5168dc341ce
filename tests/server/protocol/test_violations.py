"""Bad input: it ends its own connection, with a status and a reason."""

import gc
import logging
import tracemalloc
import weakref
from collections.abc import Iterator
from functools import partial

import pytest

from spoakit import Argument, DataType, Message
from spoakit.exceptions import AgentDisconnected
from spoakit.server.protocol import Phase, SpopProtocol
from spoakit.server.settings import LoopName
from spoakit.spop import (
    Disconnected,
    EngineHello,
    FrameFlag,
    FrameType,
    encode_frame,
    encode_messages,
    encode_varint,
)
from spoakit.testing import AgentServer, EngineClient
from spoakit.testing.pytest_plugin import ConnectEngine
from tests.support.protocol_subject import (
    Serve,
    Subject,
    connected,
    connections,
    echo,
    item,
    notify_frame,
    open_gates,
    settings,
    wait,
    wait_until_connections,
)
from tests.support.waiting import wait_until


def hello_frame(payload: bytes, flags: FrameFlag = FrameFlag.FIN) -> bytes:
    return encode_frame(FrameType.HAPROXY_HELLO, payload, flags=flags)


VERSIONS = item(b"supported-versions", DataType.STRING, "2.0")
SIZE = item(b"max-frame-size", DataType.UINT32, 16380)
CAPABILITIES = item(b"capabilities", DataType.STRING, "")
HELLO = EngineHello(16380).encode()
ENDLESS = b"\xff" * 30

BEFORE_HELLO = {
    "an HTTP request": (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", 3, "an HTTP request"),
    "a TLS handshake": (b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03", 3, "a TLS handshake"),
    "garbage": (bytes(range(255, 100, -1)), 3, "a frame of 4294901244 bytes"),
    "a frame of no bytes": (b"\0\0\0\0", 4, "a frame with a length of 0"),
    "a frame without flags": (b"\0\0\0\x02\x01\0", 4, "too short for its flags"),
    "a HELLO of a megabyte": (b"\0\x10\0\0" + b"\x01", 3, "exceeds the limit"),
    "a NOTIFY before HELLO": (notify_frame(b""), 4, "NOTIFY is not allowed in state HELLO"),
    "a HELLO without versions": (hello_frame(SIZE + CAPABILITIES), 5, "no supported-versions"),
    "a HELLO without a size": (hello_frame(VERSIONS + CAPABILITIES), 6, "no max-frame-size"),
    "a HELLO without capabilities": (hello_frame(VERSIONS + SIZE), 7, "no capabilities"),
    "a HELLO for 1.0": (hello_frame(EngineHello(16380, ("1.0",)).encode()), 8, "offers SPOP 1.0"),
    "a HELLO with a small size": (hello_frame(EngineHello(255).encode()), 9, "at least 256"),
    "a HELLO in fragments": (hello_frame(HELLO, FrameFlag(0)), 10, "must not be fragmented"),
    "a HELLO cut short": (hello_frame(HELLO[:-1]), 4, "byte"),
    "an endless varint in HELLO": (hello_frame(HELLO + ENDLESS), 4, "exceeds 64 bits"),
    "an unknown type in HELLO": (hello_frame(HELLO + b"\x01x\x0f"), 4, "unknown data type 15"),
    "65 items in HELLO": (
        hello_frame(HELLO + b"".join(item(b"%d" % n, DataType.NULL, None) for n in range(65))),
        4,
        "the limit of 64 items",
    ),
}
NAME = b"\x04echo"
CUT = b"\x05echo"
AFTER_HELLO = {
    "a second HELLO": (hello_frame(HELLO), 4, "HAPROXY-HELLO is not allowed in state OPEN"),
    "a frame of no bytes": (b"\0\0\0\0", 4, "a frame with a length of 0"),
    "a frame over the cap": (b"\0\x10\0\x01" + b"\x03", 3, "1048577 bytes exceeds the limit"),
    "an ACK": (encode_frame(FrameType.ACK, b""), 4, "ACK is not allowed in state OPEN"),
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
    "a fragment of nothing": (encode_frame(FrameType.UNSET, b"", ids=b"\1\1"), 12, "without"),
    "fragments of two frames": (
        notify_frame(b"", b"\1\1", FrameFlag(0)) + notify_frame(b"", b"\3\1", FrameFlag(0)),
        11,
        "between the fragments of another",
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
