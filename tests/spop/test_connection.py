"""What both ends of a connection have in common: framing, buffers, the end."""

import pytest

from spoakit.exceptions import FrameTooBigError, InvalidFrameError, StatusCode
from spoakit.spop import (
    AgentConnection,
    AgentHello,
    AgentSettings,
    Disconnect,
    Disconnected,
    EngineConnection,
    EngineHello,
    Event,
    Failed,
    FrameFlag,
    FrameType,
    Message,
    Notify,
    Opened,
    State,
    decode_frame,
    encode_frame,
    encode_ids,
)
from spoakit.spop.connection import Connection

HELLO = encode_frame(FrameType.HAPROXY_HELLO, EngineHello(16380).encode())
NOTIFY = encode_frame(FrameType.NOTIFY, b"", ids=encode_ids(1, 1))


def ends() -> tuple[AgentConnection, EngineConnection]:
    """Return both ends of a connection that is open."""
    agent, engine = AgentConnection(), EngineConnection(EngineHello(16380))
    engine.send_hello()
    agent.receive_data(engine.data_to_send())
    engine.receive_data(agent.data_to_send())
    for end in (agent, engine):
        assert [type(event) for event in end.events_received()] == [Opened]
        assert end.state is State.OPEN
    return agent, engine


def failure(connection: Connection) -> Failed:
    """Return the failure that ended a connection."""
    *_, event = connection.events_received()
    assert isinstance(event, Failed)
    assert connection.is_closing
    return event


# --- both ends together ----------------------------------------------------------------


def test_a_message_goes_one_way_and_its_answer_the_other() -> None:
    agent, engine = ends()
    engine.send_notify([Message("m")], stream_id=240)
    agent.receive_data(engine.data_to_send())
    (notify,) = agent.events_received()
    assert isinstance(notify, Notify)
    assert agent.send_ack(notify)
    engine.receive_data(agent.data_to_send())
    assert len(engine.events_received()) == 1


def test_what_is_taken_is_not_given_again() -> None:
    agent = AgentConnection()
    agent.receive_data(HELLO)
    assert agent.events_received()
    assert agent.events_received() == []
    assert agent.data_to_send()
    assert agent.data_to_send() == b""


def test_acks_can_be_appended_to_the_same_buffer_for_the_connections_whole_life() -> None:
    agent, _ = ends()
    outgoing = agent.outgoing
    agent.outgoing += b"ack"
    assert agent.data_to_send() == b"ack"
    assert agent.outgoing is outgoing
    assert outgoing == b""


def test_both_ends_can_say_why_they_leave() -> None:
    agent, engine = ends()
    engine.send_disconnect(StatusCode.TIMEOUT, "idle")
    agent.receive_data(engine.data_to_send())
    assert agent.events_received() == [Disconnected(2, "idle")]
    # The agent repeats it (SPOE.txt 3.2.9).
    agent.send_disconnect(2, "idle")
    assert decode_frame(bytes(agent.outgoing[4:])).type == FrameType.AGENT_DISCONNECT
    assert agent.is_closing
    assert engine.is_closing


def test_an_agent_can_leave_by_itself() -> None:
    agent, engine = ends()
    agent.send_disconnect(StatusCode.NORMAL, "stopping")
    engine.receive_data(agent.data_to_send())
    assert engine.events_received() == [Disconnected(0, "stopping")]
    assert engine.is_closing


def test_a_disconnect_whose_list_cannot_be_read_is_invalid() -> None:
    for end in ends():
        kind = (
            FrameType.HAPROXY_DISCONNECT
            if isinstance(end, AgentConnection)
            else FrameType.AGENT_DISCONNECT
        )
        end.receive_data(encode_frame(kind, b"\x05half"))
        assert isinstance(failure(end).error, InvalidFrameError)


def test_a_disconnect_can_come_in_place_of_a_hello() -> None:
    agent, engine = AgentConnection(), EngineConnection(EngineHello(16380))
    payload = Disconnect(8, "no").encode()
    agent.receive_data(encode_frame(FrameType.HAPROXY_DISCONNECT, payload))
    engine.receive_data(encode_frame(FrameType.AGENT_DISCONNECT, payload))
    for end in (agent, engine):
        assert end.events_received() == [Disconnected(8, "no")]
        assert end.is_closing


# --- frames in pieces ------------------------------------------------------------------


def test_many_frames_can_come_at_once() -> None:
    agent = AgentConnection()
    agent.receive_data(HELLO + NOTIFY * 3)
    kinds = [type(event) for event in agent.events_received()]
    assert kinds == [Opened, Notify, Notify, Notify]


def test_frames_can_come_byte_by_byte() -> None:
    agent = AgentConnection()
    events: list[Event] = []
    for byte in HELLO + NOTIFY:
        agent.receive_data(bytes((byte,)))
        events += agent.events_received()
    assert [type(event) for event in events] == [Opened, Notify]


def test_no_bytes_are_no_event() -> None:
    agent = AgentConnection()
    agent.receive_data(b"")
    agent.receive_data(HELLO[:10])
    agent.receive_data(b"")
    assert agent.events_received() == []
    agent.receive_data(HELLO[10:])
    assert len(agent.events_received()) == 1


# --- the end ---------------------------------------------------------------------------


def test_eof_between_frames_is_normal() -> None:
    for end in (*ends(), AgentConnection()):
        end.receive_eof()
        assert end.events_received() == []
        assert end.is_closing


@pytest.mark.parametrize("size", [1, 3, 4, 10])
def test_eof_within_a_frame_is_told(size: int) -> None:
    agent, _ = ends()
    agent.receive_data(NOTIFY[:size])
    agent.receive_eof()
    assert f"within a frame, after {size} bytes" in str(failure(agent).error)
    agent.receive_eof()
    assert agent.events_received() == []


def test_acks_can_be_sent_after_the_peers_eof() -> None:
    agent, engine = ends()
    engine.send_notify([], stream_id=1)
    agent.receive_data(engine.data_to_send())
    agent.receive_eof()
    (notify,) = agent.events_received()
    assert isinstance(notify, Notify)
    assert agent.send_ack(notify)
    assert agent.data_to_send()


def test_nothing_is_read_after_the_end() -> None:
    agent, _ = ends()
    agent.receive_data(b"\0\0\0\0" + NOTIFY)
    failure(agent)
    agent.receive_data(NOTIFY)
    assert agent.events_received() == []


# --- lengths ---------------------------------------------------------------------------


def test_a_frame_of_zero_bytes_is_invalid() -> None:
    for end in (*ends(), AgentConnection()):
        end.receive_data(b"\0\0\0\0")
        assert isinstance(failure(end).error, InvalidFrameError)


@pytest.mark.parametrize("length", range(1, 7))
def test_a_frame_too_short_for_its_ids_is_invalid(length: int) -> None:
    for end in (*ends(), AgentConnection()):
        end.receive_data(length.to_bytes(4, "big") + NOTIFY[4 : 4 + length] + NOTIFY)
        assert isinstance(failure(end).error, InvalidFrameError)


def test_a_frame_over_the_cap_is_refused_before_it_is_read() -> None:
    agent = AgentConnection(AgentSettings(frame_size_cap=1000))
    agent.receive_data(HELLO + NOTIFY)
    agent.events_received()
    agent.receive_data((1001).to_bytes(4, "big"))
    error = failure(agent).error
    assert isinstance(error, FrameTooBigError)
    assert "1001 bytes exceeds the limit of 1000" in str(error)


def test_a_frame_of_the_cap_is_read_though_less_was_agreed() -> None:
    # HAProxy 3.1.0 may send more than agreed.
    agent = AgentConnection(AgentSettings(max_frame_size=256, frame_size_cap=1000))
    agent.receive_data(HELLO + encode_frame(FrameType.NOTIFY, bytes(993)))
    _, notify = agent.events_received()
    assert isinstance(notify, Notify)
    assert agent.max_frame_size == 256
    assert len(notify.payload) == 993


def test_a_hello_is_capped_lower_than_other_frames() -> None:
    for end in (AgentConnection(), EngineConnection(EngineHello(16380))):
        end.receive_data((4097).to_bytes(4, "big"))
        assert isinstance(failure(end).error, FrameTooBigError)
    agent = AgentConnection()
    agent.receive_data((4096).to_bytes(4, "big"))
    assert agent.events_received() == []


@pytest.mark.parametrize(
    "start",
    [
        b"GET / HTTP/1.1\r\nHost: www.example.org\r\n\r\n",
        b"POST /form",
        b"HEAD /",
        b"OPTIONS *",
        b"CONNECT x:443",
        b"PRI * HTTP/2.0",
    ],
)
def test_http_is_known_for_what_it_is(start: bytes) -> None:
    agent = AgentConnection()
    agent.receive_data(start)
    error = failure(agent).error
    assert error.status_code is StatusCode.TOO_BIG
    assert "an HTTP request" in str(error)


def test_tls_is_known_for_what_it_is() -> None:
    agent = AgentConnection()
    agent.receive_data(bytes.fromhex("16030102000100"))
    assert "a TLS handshake" in str(failure(agent).error)


def test_on_an_open_connection_the_same_bytes_are_a_length() -> None:
    agent, _ = ends()
    agent.receive_data(b"GET / HTTP/1.1\r\n\r\n")
    assert "a frame of 1195725856 bytes" in str(failure(agent).error)


# --- what an unfinished frame keeps ----------------------------------------------------


@pytest.mark.parametrize("end", ["fail", "disconnect", "peer's disconnect", "eof"])
def test_a_connection_that_ends_keeps_nothing_it_received(end: str) -> None:
    agent, _ = ends()
    first = encode_frame(FrameType.NOTIFY, bytes(1000), ids=encode_ids(1, 1), flags=FrameFlag(0))
    agent.receive_data(first + NOTIFY[:5] if end in ("disconnect", "eof") else first)
    if end == "fail":
        agent.receive_data(b"\0\0\0\0")
    elif end == "disconnect":
        agent.send_disconnect(0, "")
    elif end == "eof":
        agent.receive_eof()
    else:
        payload = Disconnect(0, "").encode()
        agent.receive_data(encode_frame(FrameType.HAPROXY_DISCONNECT, payload))
    assert agent.is_closing
    assert not agent._incomplete
    assert agent._fragments is None


def test_an_agent_hello_is_what_opens_an_engine() -> None:
    engine = EngineConnection(EngineHello(16380))
    answer = AgentHello(300, frozenset(("fragmentation",)))
    engine.receive_data(encode_frame(FrameType.AGENT_HELLO, answer.encode()))
    assert engine.events_received() == [Opened(EngineHello(16380), answer)]
    assert (engine.agent, engine.max_frame_size) == (answer, 300)
