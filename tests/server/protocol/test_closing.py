"""Ends of a connection: DISCONNECT, EOF and loss, and health checks."""

import pytest

from spoakit import Argument, DataType, Message
from spoakit.spop import Disconnect, Disconnected, FrameType, encode_frame, encode_messages
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
    wait,
    wait_until_connections,
)
from tests.support.waiting import wait_until


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
    assert "disconnected with status 3: frame is too big" in caplog.text


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
