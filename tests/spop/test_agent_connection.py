"""`spoakit.spop.AgentConnection`: every rule, and every violation with its status code."""

import pytest

from spoakit.exceptions import StatusCode
from spoakit.spop import (
    Aborted,
    AgentConnection,
    AgentHello,
    AgentSettings,
    DataType,
    Disconnect,
    EngineHello,
    Event,
    Failed,
    FrameFlag,
    FrameType,
    HealthChecked,
    Notify,
    Opened,
    Scope,
    Skipped,
    State,
    VariableEncoder,
    decode_frame,
    encode_frame,
    encode_ids,
)

FRAGMENTATION = frozenset(("fragmentation",))
ONE, TWO = encode_ids(1, 1), encode_ids(2, 1)
MORE, FIN, ABORT = FrameFlag(0), FrameFlag.FIN, FrameFlag.FIN | FrameFlag.ABORT


def hello(offer: EngineHello) -> bytes:
    return encode_frame(FrameType.HAPROXY_HELLO, offer.encode())


def notify(payload: bytes = b"", ids: bytes = ONE, flags: FrameFlag = FIN) -> bytes:
    return encode_frame(FrameType.NOTIFY, payload, ids=ids, flags=flags)


def unset(payload: bytes = b"", ids: bytes = ONE, flags: FrameFlag = FIN) -> bytes:
    return encode_frame(FrameType.UNSET, payload, ids=ids, flags=flags)


def opened(settings: AgentSettings | None = None) -> AgentConnection:
    agent = AgentConnection(settings)
    agent.receive_data(hello(EngineHello(16380)))
    agent.events_received()
    agent.data_to_send()
    return agent


def answer(offer: EngineHello, settings: AgentSettings | None = None) -> AgentHello:
    """Return what an agent answers to a HELLO."""
    agent = AgentConnection(settings)
    agent.receive_data(hello(offer))
    frame = decode_frame(agent.data_to_send()[4:])
    assert (frame.type, frame.flags, frame.ids) == (FrameType.AGENT_HELLO, FIN, b"\0\0")
    return AgentHello.decode(frame.payload, offer)


def simple(events: list[Event]) -> list[object]:
    """Return events as what can be compared."""
    return [(event.ids, event.payload) if isinstance(event, Notify) else event for event in events]


def failed_with(agent: AgentConnection) -> StatusCode:
    *_, event = agent.events_received()
    assert isinstance(event, Failed)
    assert agent.state is State.CLOSING
    return event.error.status_code


# --- the handshake ---------------------------------------------------------------------


def test_a_hello_opens_the_connection() -> None:
    offer = EngineHello(16380, capabilities=frozenset(("pipelining",)), engine_id="id")
    agent = AgentConnection()
    assert (agent.state, agent.engine, agent.max_frame_size) == (State.HELLO, None, 256)
    agent.receive_data(hello(offer))
    reply = AgentHello(16380, frozenset(("fragmentation", "pipelining")))
    assert agent.events_received() == [Opened(offer, reply)]
    assert (agent.state, agent.engine, agent.max_frame_size) == (State.OPEN, offer, 16380)


def test_an_agent_takes_the_engines_size_up_to_a_mebibyte_unless_told_otherwise() -> None:
    settings = AgentSettings()
    assert settings.max_frame_size is None
    assert (settings.frame_size_cap, settings.reassembled_size) == (1 << 20, 4 << 20)
    assert settings.capabilities == {"fragmentation", "pipelining"}


@pytest.mark.parametrize(
    ("offered", "wanted", "cap", "agreed"),
    [
        (16380, None, 1 << 20, 16380),
        (16380, 1024, 1 << 20, 1024),
        (16380, 32768, 1 << 20, 16380),
        (2 << 20, None, 1 << 20, 1 << 20),
        (2**32 - 1, 8 << 20, 4 << 20, 4 << 20),
        (256, None, 1 << 20, 256),
    ],
)
def test_the_least_frame_size_is_agreed(
    offered: int, wanted: int | None, cap: int, agreed: int
) -> None:
    settings = AgentSettings(max_frame_size=wanted, frame_size_cap=cap)
    assert answer(EngineHello(offered), settings).max_frame_size == agreed


@pytest.mark.parametrize(
    ("offered", "own", "announced"),
    [
        (set(), {"pipelining"}, set()),
        ({"pipelining"}, {"pipelining"}, {"pipelining"}),
        ({"pipelining", "async"}, {"pipelining"}, {"pipelining"}),
        ({"pipelining", "async"}, {"pipelining", "async"}, {"pipelining", "async"}),
        ({"pipelining"}, {"async"}, set()),
        ({"pipelining"}, set(), set()),
        ({"future"}, {"future"}, set()),
    ],
)
def test_fragmentation_is_announced_always_and_the_rest_if_both_have_it(
    offered: set[str], own: set[str], announced: set[str]
) -> None:
    settings = AgentSettings(capabilities=frozenset(own))
    offer = EngineHello(16380, capabilities=frozenset(offered))
    assert answer(offer, settings).capabilities == announced | FRAGMENTATION


def test_a_health_check_is_answered_with_256_bytes_and_ends() -> None:
    offer = EngineHello(16380, healthcheck=True)
    assert answer(offer).max_frame_size == 256
    agent = AgentConnection()
    agent.receive_data(hello(offer) + notify())
    assert agent.events_received() == [HealthChecked(refused=False)]
    assert agent.state is State.CLOSING
    assert agent.engine is None


def test_a_health_check_is_refused_by_an_agent_that_leaves() -> None:
    agent = AgentConnection()
    agent.refuse_health_checks = True
    agent.receive_data(hello(EngineHello(16380, healthcheck=True)))
    assert agent.events_received() == [HealthChecked(refused=True)]
    frame = decode_frame(agent.data_to_send()[4:])
    assert frame.type == FrameType.AGENT_DISCONNECT
    assert Disconnect.decode(frame.payload).status_code == StatusCode.NORMAL
    assert agent.is_closing


def test_an_agent_that_leaves_still_serves_engines_that_come() -> None:
    agent = AgentConnection()
    agent.refuse_health_checks = True
    agent.receive_data(hello(EngineHello(16380)))
    assert agent.state is State.OPEN


def test_a_hello_in_fragments_is_not_supported() -> None:
    agent = AgentConnection()
    agent.receive_data(
        encode_frame(FrameType.HAPROXY_HELLO, EngineHello(16380).encode(), flags=MORE)
    )
    assert failed_with(agent) is StatusCode.NO_FRAGMENTATION


def test_a_hello_with_ids_is_invalid() -> None:
    for ids in (encode_ids(1, 0), encode_ids(0, 1)):
        agent = AgentConnection()
        agent.receive_data(
            encode_frame(FrameType.HAPROXY_HELLO, EngineHello(16380).encode(), ids=ids)
        )
        assert failed_with(agent) is StatusCode.INVALID


@pytest.mark.parametrize(
    ("offer", "code"),
    [
        (EngineHello(16380, versions=("1.0",)), StatusCode.BAD_VERSION),
        (EngineHello(16380, versions=()), StatusCode.BAD_VERSION),
        (EngineHello(255), StatusCode.BAD_FRAME_SIZE),
        (EngineHello(255, healthcheck=True), StatusCode.BAD_FRAME_SIZE),
    ],
)
def test_a_hello_that_cannot_be_agreed_to_fails(offer: EngineHello, code: StatusCode) -> None:
    agent = AgentConnection()
    agent.receive_data(hello(offer))
    assert failed_with(agent) is code
    assert agent.data_to_send() == b""


@pytest.mark.parametrize(
    ("payload", "code"),
    [
        (b"", StatusCode.NO_VERSION),
        (b"\x12supported-versions\x08\x032.0", StatusCode.NO_FRAME_SIZE),
        (
            b"\x12supported-versions\x08\x032.0\x0emax-frame-size\x03\xf0\x04",
            StatusCode.NO_CAPABILITIES,
        ),
        (b"\x12supported-versions\x08\x042.0", StatusCode.INVALID),
    ],
)
def test_a_hello_that_lacks_something_fails(payload: bytes, code: StatusCode) -> None:
    agent = AgentConnection()
    agent.receive_data(encode_frame(FrameType.HAPROXY_HELLO, payload))
    assert failed_with(agent) is code


@pytest.mark.parametrize(
    "kind", [0, 3, 101, 102, 103, 42], ids=["unset", "notify", "hello", "disconnect", "ack", "42"]
)
def test_only_a_hello_or_a_disconnect_can_come_first(kind: int) -> None:
    agent = AgentConnection()
    agent.receive_data(b"\0\0\0\x07" + bytes((kind,)) + b"\0\0\0\x01\x01\x01")
    assert failed_with(agent) is StatusCode.INVALID


@pytest.mark.parametrize("kind", [1, 101, 102, 103], ids=["hello", "agent", "disconnect", "ack"])
def test_these_frames_cannot_come_once_it_is_open(kind: int) -> None:
    agent = opened()
    agent.receive_data(b"\0\0\0\x07" + bytes((kind,)) + b"\0\0\0\x01\x00\x00")
    assert failed_with(agent) is StatusCode.INVALID


def test_a_second_hello_is_invalid() -> None:
    agent = opened()
    agent.receive_data(hello(EngineHello(16380)))
    *_, event = agent.events_received()
    assert isinstance(event, Failed)
    assert str(event.error) == "HAPROXY-HELLO is not allowed in state OPEN"


def test_frames_of_unknown_types_are_skipped() -> None:
    agent = opened()
    agent.receive_data(b"\0\0\0\x09\x2a\0\0\0\x01\x01\x01??" + notify(b"after"))
    assert simple(agent.events_received()) == [Skipped(42), (ONE, b"after")]


# --- NOTIFYs ---------------------------------------------------------------------------


def test_stream_id_0_is_legal_and_ids_come_back_as_they_were() -> None:
    agent = opened()
    for ids in (encode_ids(0, 0), encode_ids(0, 1), encode_ids(2**64 - 1, 240)):
        agent.receive_data(notify(ids=ids))
        (event,) = agent.events_received()
        assert isinstance(event, Notify)
        assert agent.send_ack(event)
        frame = decode_frame(agent.data_to_send()[4:])
        assert (frame.type, frame.flags, frame.ids) == (FrameType.ACK, FIN, ids)


def test_frames_before_a_violation_are_still_handed_on() -> None:
    agent = opened()
    agent.receive_data(notify(b"one") + notify(b"two", TWO) + hello(EngineHello(16380)))
    *good, failed = agent.events_received()
    assert simple(good) == [(ONE, b"one"), (TWO, b"two")]
    assert isinstance(failed, Failed)


def test_reserved_flags_do_not_matter() -> None:
    agent = opened()
    agent.receive_data(b"\0\0\0\x08\x03\xff\xff\xff\xfd\x01\x01?")
    assert simple(agent.events_received()) == [(ONE, b"?")]


def test_acks_may_be_sent_in_any_order() -> None:
    agent = opened()
    agent.receive_data(notify() + notify(ids=TWO))
    first, second = agent.events_received()
    assert isinstance(first, Notify)
    assert isinstance(second, Notify)
    agent.send_ack(second)
    agent.send_ack(first)
    data = agent.data_to_send()
    assert decode_frame(data[4:11]).ids == TWO
    assert decode_frame(data[15:]).ids == ONE


def test_an_ack_that_exceeds_the_agreed_size_goes_empty() -> None:
    agent = opened(AgentSettings(max_frame_size=256))
    variable = VariableEncoder(Scope.TXN, "x", DataType.STRING)
    agent.receive_data(notify())
    (event,) = agent.events_received()
    assert isinstance(event, Notify)
    assert agent.send_ack(event, [variable.set("x" * 200)])
    agent.data_to_send()
    assert not agent.send_ack(event, [variable.set("x" * 250)])
    frame = decode_frame(agent.data_to_send()[4:])
    assert (frame.type, frame.ids, frame.payload) == (FrameType.ACK, ONE, b"")


# --- NOTIFYs in fragments --------------------------------------------------------------


def test_fragments_are_put_together() -> None:
    agent = opened()
    agent.receive_data(notify(b"one ", flags=MORE) + unset(b"two ", flags=MORE))
    assert agent.events_received() == []
    agent.receive_data(unset(b"three") + notify(b"whole", TWO))
    assert simple(agent.events_received()) == [(ONE, b"one two three"), (TWO, b"whole")]


def test_fragments_may_be_empty() -> None:
    agent = opened()
    agent.receive_data(notify(flags=MORE) + unset(flags=MORE) + unset())
    assert simple(agent.events_received()) == [(ONE, b"")]


def test_an_abort_drops_the_fragments() -> None:
    agent = opened()
    agent.receive_data(notify(b"one", flags=MORE) + unset(b"two", flags=ABORT) + notify(b"whole"))
    assert agent.events_received()[0] == Aborted(ONE)
    agent.receive_data(notify(b"new", flags=MORE) + unset())
    assert simple(agent.events_received()) == [(ONE, b"new")]


def test_a_notify_can_be_aborted_at_once() -> None:
    agent = opened()
    agent.receive_data(notify(b"one", flags=ABORT) + notify(b"two", TWO))
    assert simple(agent.events_received()) == [Aborted(ONE), (TWO, b"two")]


@pytest.mark.parametrize("flags", [MORE, FIN, ABORT])
def test_a_fragment_of_nothing_has_no_frame_id(flags: FrameFlag) -> None:
    agent = opened()
    agent.receive_data(notify() + unset(flags=flags))
    assert failed_with(agent) is StatusCode.NO_FRAME_ID


@pytest.mark.parametrize("flags", [MORE, FIN, ABORT])
@pytest.mark.parametrize("ids", [TWO, encode_ids(1, 2)])
def test_fragments_of_two_notifies_are_interlaced(flags: FrameFlag, ids: bytes) -> None:
    agent = opened()
    agent.receive_data(notify(flags=MORE) + unset(ids=ids, flags=flags))
    assert failed_with(agent) is StatusCode.INTERLACED


@pytest.mark.parametrize("flags", [MORE, FIN, ABORT])
@pytest.mark.parametrize("ids", [ONE, TWO])
def test_a_notify_within_fragments_is_interlaced(flags: FrameFlag, ids: bytes) -> None:
    agent = opened()
    agent.receive_data(notify(flags=MORE) + notify(ids=ids, flags=flags))
    assert failed_with(agent) is StatusCode.INTERLACED


def test_a_disconnect_can_come_within_fragments() -> None:
    agent = opened()
    reason = Disconnect(0, "").encode()
    agent.receive_data(notify(flags=MORE) + encode_frame(FrameType.HAPROXY_DISCONNECT, reason))
    assert agent.is_closing
    assert len(agent.events_received()) == 1


def test_fragments_together_have_a_limit() -> None:
    settings = AgentSettings(reassembled_size=1000)
    agent = opened(settings)
    agent.receive_data(notify(bytes(400), flags=MORE) + unset(bytes(600)))
    assert simple(agent.events_received()) == [(ONE, bytes(1000))]
    agent.receive_data(notify(bytes(400), flags=MORE) + unset(bytes(601), flags=MORE))
    assert failed_with(agent) is StatusCode.TOO_BIG
    assert agent._fragments is None


def test_each_fragment_has_the_cap_of_a_frame() -> None:
    agent = opened(AgentSettings(frame_size_cap=1000))
    agent.receive_data(notify(flags=MORE) + (1001).to_bytes(4, "big"))
    assert failed_with(agent) is StatusCode.TOO_BIG
