"""Limits of one connection: frames in flight, sizes, messages, frames in all, idle time."""

import asyncio
import socket
import time
from contextlib import suppress
from threading import Thread

import pytest

from spoakit import Argument, DataType, Message
from spoakit.server.protocol import SpopProtocol
from spoakit.spop import Disconnect, Disconnected, FrameType, encode_frame, encode_messages
from spoakit.testing.pytest_plugin import ConnectEngine
from tests.support.protocol_subject import (
    Serve,
    Subject,
    connected,
    connections,
    echo,
    notify_frame,
    open_gates,
    wait,
    wait_until_connections,
)
from tests.support.waiting import TIMEOUT, wait_until


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


MANY = "a NOTIFY exceeds the limit of 3 messages"


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
