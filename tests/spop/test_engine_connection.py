"""`spoakit.spop.EngineConnection` holds an agent to what HAProxy holds it to."""

import pytest

from spoakit.exceptions import FrameTooBigError, SpoakitError, StatusCode
from spoakit.spop import (
    Aborted,
    Acknowledged,
    AgentConnection,
    AgentHello,
    AgentSettings,
    Argument,
    DataType,
    EngineConnection,
    EngineHello,
    Failed,
    FrameFlag,
    FrameType,
    Message,
    Notify,
    Opened,
    Scope,
    Skipped,
    State,
    VariableEncoder,
    decode_frame,
    decode_messages,
    encode_frame,
    encode_ids,
)

OFFER = EngineHello(16380, capabilities=frozenset(("pipelining",)))
ANSWER = AgentHello(1024, frozenset(("fragmentation", "pipelining")))
VARIABLE = VariableEncoder(Scope.TXN, "x", DataType.UINT32)


def agent_hello(answer: AgentHello = ANSWER) -> bytes:
    return encode_frame(FrameType.AGENT_HELLO, answer.encode())


def ack(payload: bytes = b"", stream_id: int = 1, flags: FrameFlag = FrameFlag.FIN) -> bytes:
    return encode_frame(FrameType.ACK, payload, ids=encode_ids(stream_id, 1), flags=flags)


def opened(answer: AgentHello = ANSWER) -> EngineConnection:
    engine = EngineConnection(OFFER)
    engine.send_hello()
    engine.data_to_send()
    engine.receive_data(agent_hello(answer))
    assert engine.events_received() == [Opened(OFFER, answer)]
    return engine


def failed_with(engine: EngineConnection) -> StatusCode:
    *_, event = engine.events_received()
    assert isinstance(event, Failed)
    assert engine.state is State.CLOSING
    return event.error.status_code


def frames(data: bytes) -> list[tuple[int, FrameFlag, bytes, bytes]]:
    """Take frames apart."""
    found = []
    while data:
        end = 4 + int.from_bytes(data[:4], "big")
        frame = decode_frame(data[4:end])
        found.append((frame.type, frame.flags, frame.ids, frame.payload))
        data = data[end:]
    return found


# --- the handshake ---------------------------------------------------------------------


def test_a_hello_is_one_whole_frame_without_ids() -> None:
    engine = EngineConnection(OFFER)
    engine.send_hello()
    ((kind, flags, ids, payload),) = frames(engine.data_to_send())
    assert (kind, flags, ids) == (FrameType.HAPROXY_HELLO, FrameFlag.FIN, b"\0\0")
    assert EngineHello.decode(payload) == OFFER


def test_a_health_check_ends_with_the_answer() -> None:
    agent, engine = AgentConnection(), EngineConnection(EngineHello(16380, healthcheck=True))
    engine.send_hello()
    agent.receive_data(engine.data_to_send())
    engine.receive_data(agent.data_to_send())
    (event,) = engine.events_received()
    assert isinstance(event, Opened)
    assert event.agent.max_frame_size == 256
    assert engine.is_closing


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (AgentHello(1024, version="1.0"), StatusCode.BAD_VERSION),
        (AgentHello(255), StatusCode.BAD_FRAME_SIZE),
        (AgentHello(16381), StatusCode.BAD_FRAME_SIZE),
    ],
)
def test_an_answer_that_was_not_offered_fails(answer: AgentHello, code: StatusCode) -> None:
    engine = EngineConnection(OFFER)
    engine.receive_data(agent_hello(answer))
    assert failed_with(engine) is code
    assert engine.agent is None


def test_an_answer_must_be_one_whole_frame_without_ids() -> None:
    engine = EngineConnection(OFFER)
    engine.receive_data(encode_frame(FrameType.AGENT_HELLO, ANSWER.encode(), flags=FrameFlag(0)))
    assert failed_with(engine) is StatusCode.NO_FRAGMENTATION
    engine = EngineConnection(OFFER)
    engine.receive_data(encode_frame(FrameType.AGENT_HELLO, ANSWER.encode(), ids=encode_ids(1, 0)))
    assert failed_with(engine) is StatusCode.INVALID


@pytest.mark.parametrize("kind", [0, 1, 2, 3, 103, 42])
def test_only_a_hello_or_a_disconnect_can_come_first(kind: int) -> None:
    engine = EngineConnection(OFFER)
    engine.receive_data(b"\0\0\0\x07" + bytes((kind,)) + b"\0\0\0\x01\x00\x00")
    assert failed_with(engine) is StatusCode.INVALID


@pytest.mark.parametrize("kind", [0, 1, 2, 3, 101])
def test_these_frames_cannot_come_once_it_is_open(kind: int) -> None:
    engine = opened()
    engine.receive_data(b"\0\0\0\x07" + bytes((kind,)) + b"\0\0\0\x01\x00\x00")
    assert failed_with(engine) is StatusCode.INVALID


def test_frames_of_unknown_types_are_skipped() -> None:
    engine = opened()
    engine.receive_data(b"\0\0\0\x07\x2a\0\0\0\x01\x01\x01")
    assert engine.events_received() == [Skipped(42)]
    assert engine.state is State.OPEN


# --- NOTIFYs and ACKs ------------------------------------------------------------------


def test_an_ack_brings_the_actions_for_its_notify() -> None:
    agent, engine = AgentConnection(), EngineConnection(OFFER)
    engine.send_hello()
    agent.receive_data(engine.data_to_send())
    engine.receive_data(agent.data_to_send())
    agent.events_received(), engine.events_received()
    sent = [Message("m", (Argument.of("n", 7),))]
    for stream_id in (0, 300):
        engine.send_notify(sent, stream_id=stream_id, frame_id=2)
    agent.receive_data(engine.data_to_send())
    actions = (VARIABLE.set(7), VARIABLE.set(None))
    for event in reversed(agent.events_received()):
        assert isinstance(event, Notify)
        assert decode_messages(event) == sent
        assert agent.send_ack(event, actions)
    engine.receive_data(agent.data_to_send())
    assert engine.events_received() == [
        Acknowledged(300, 2, actions),
        Acknowledged(0, 2, actions),
    ]


def test_an_ack_for_what_is_not_in_flight_has_no_frame_id() -> None:
    engine = opened()
    engine.send_notify([], stream_id=1)
    engine.receive_data(ack(stream_id=2))
    assert failed_with(engine) is StatusCode.NO_FRAME_ID


def test_a_second_ack_has_no_frame_id() -> None:
    engine = opened()
    engine.send_notify([], stream_id=1)
    engine.receive_data(ack() + ack())
    assert failed_with(engine) is StatusCode.NO_FRAME_ID


def test_an_ack_in_fragments_is_not_supported() -> None:
    engine = opened()
    engine.send_notify([], stream_id=1)
    engine.receive_data(ack(flags=FrameFlag(0)))
    assert failed_with(engine) is StatusCode.NO_FRAGMENTATION


def test_an_ack_must_not_exceed_the_agreed_size() -> None:
    engine = opened()
    engine.send_notify([], stream_id=1)
    action = b"\x01\x03\x02\x01x\x08"
    size = 1024 - 7 - len(action) - 2
    head = (size - 240) >> 4
    fitting = action + bytes((0xF0 | size & 15, head)) + b"x" * size
    engine.receive_data(ack(fitting))
    assert [type(event) for event in engine.events_received()] == [Acknowledged]
    engine.send_notify([], stream_id=1)
    engine.receive_data(ack(fitting + b"\x02\x02\x02\x01x"))
    assert failed_with(engine) is StatusCode.TOO_BIG


def test_an_ack_that_cannot_be_read_is_invalid() -> None:
    engine = opened()
    engine.send_notify([], stream_id=1)
    engine.receive_data(ack(b"\x03\x03\x02\x01x\x11"))
    assert failed_with(engine) is StatusCode.INVALID


def test_ids_are_in_flight_once_and_free_after_the_ack() -> None:
    engine = opened()
    engine.send_notify([], stream_id=1)
    with pytest.raises(SpoakitError, match="stream 1, frame 1 is already in flight"):
        engine.send_notify([], stream_id=1)
    engine.send_notify([], stream_id=1, frame_id=2)
    engine.receive_data(ack())
    engine.send_notify([], stream_id=1)


def test_no_notify_can_be_sent_before_the_handshake_or_after_the_end() -> None:
    with pytest.raises(SpoakitError, match="in state OPEN, not HELLO"):
        EngineConnection(OFFER).send_notify([], stream_id=1)
    engine = opened()
    engine.send_disconnect(0, "")
    with pytest.raises(SpoakitError, match="not CLOSING"):
        engine.send_notify([], stream_id=1)


# --- fragments -------------------------------------------------------------------------

LARGE = [Message("m", (Argument.of("body", bytes(3000)),))]


def test_a_payload_that_does_not_fit_goes_in_fragments_that_do() -> None:
    engine = opened()
    engine.send_notify(LARGE, stream_id=1)
    data = engine.data_to_send()
    parts = frames(data)
    assert [kind for kind, *_ in parts] == [FrameType.NOTIFY, *[FrameType.UNSET] * 2]
    assert [FrameFlag.FIN in flags for _, flags, *_ in parts] == [False, False, True]
    assert {ids for _, _, ids, _ in parts} == {encode_ids(1, 1)}
    assert [7 + len(payload) for *_, payload in parts][:2] == [1024, 1024]
    agent = AgentConnection()
    agent.receive_data(encode_frame(FrameType.HAPROXY_HELLO, OFFER.encode()) + data)
    *_, event = agent.events_received()
    assert isinstance(event, Notify)
    assert decode_messages(event) == LARGE


def test_a_payload_that_fits_exactly_goes_whole() -> None:
    engine = opened()
    # 1024 with the frame's 7 and the message's 1 + 1 + 1 + 1 + 1 + 1 + 2.
    engine.send_notify([Message("m", (Argument.of("b", bytes(1024 - 15)),))], stream_id=1)
    ((_, _, _, payload),) = frames(engine.data_to_send())
    assert 7 + len(payload) == 1024


def test_fragments_may_be_asked_for() -> None:
    engine = opened()
    engine.send_notify([Message("abc")], stream_id=1, fragment_size=2)
    assert [payload for *_, payload in frames(engine.data_to_send())] == [b"\x03a", b"bc", b"\0"]
    engine.send_notify([], stream_id=2, fragment_size=2)
    assert [payload for *_, payload in frames(engine.data_to_send())] == [b""]


def test_an_agent_without_fragmentation_gets_no_fragments() -> None:
    engine = opened(AgentHello(1024))
    with pytest.raises(FrameTooBigError, match="a payload of 3012 bytes exceeds the agreed 1017"):
        engine.send_notify(LARGE, stream_id=1)
    assert engine.data_to_send() == b""
    engine.send_notify([], stream_id=1)


def test_fragments_can_be_given_up() -> None:
    engine = opened()
    engine.send_notify(LARGE, stream_id=1)
    first, *_ = frames(engine.data_to_send())
    agent = AgentConnection(AgentSettings())
    agent.receive_data(encode_frame(FrameType.HAPROXY_HELLO, OFFER.encode()))
    agent.events_received()
    kind, flags, ids, payload = first
    agent.receive_data(encode_frame(FrameType(kind), payload, ids=ids, flags=flags))
    engine.send_abort(stream_id=1)
    agent.receive_data(engine.data_to_send())
    assert agent.events_received() == [Aborted(encode_ids(1, 1))]
