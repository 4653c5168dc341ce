"""Frames and ACKs of one connection to an engine, over real sockets."""

import logging
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from spoakit import Action, Agent, Argument, Context, DataType, Message
from spoakit.exceptions import AgentDisconnected
from spoakit.server.settings import Listen, ServerSettings
from spoakit.spop import FrameType, decode_actions, encode_messages
from spoakit.testing.agent_server import DEFAULT_SETTINGS
from spoakit.testing.pytest_plugin import ConnectEngine, ServeAgents
from tests.support.protocol_subject import (
    Serve,
    Subject,
    connected,
    connections,
    echo,
    notify_frame,
    open_gates,
    wait,
)
from tests.support.waiting import wait_until


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
