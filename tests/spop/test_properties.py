"""What holds for all values, all streams and all ways to read them."""

from collections.abc import Callable, Iterable
from contextlib import suppress
from types import ModuleType
from typing import Any, TypeAlias

from hypothesis import assume, given
from hypothesis import strategies as st

from spoakit.exceptions import InvalidFrameError, ProtocolError
from spoakit.spop import (
    Action,
    AgentConnection,
    AgentHello,
    AgentSettings,
    DataType,
    Disconnect,
    EngineConnection,
    EngineHello,
    Failed,
    Message,
    Notify,
    _decode_cy,
    append_ack,
    decode_actions,
    decode_messages,
    encode_messages,
)
from tests.support.spop_strategies import (
    ACTIONS,
    AGENT_HELLOS,
    CUTS,
    ENGINE_HELLOS,
    MESSAGES,
    NUMBERS,
    TEXTS,
    TO_AGENT,
    TO_ENGINE,
    VALUES,
    cut,
)

# --- round trips -----------------------------------------------------------------------


@given(NUMBERS)
def test_varints_come_back(encoding: ModuleType, decoding: ModuleType, number: int) -> None:
    data = encoding.encode_varint(number)
    assert decoding.decode_varint(data) == (number, len(data))


@given(VALUES)
def test_values_come_back(
    encoding: ModuleType, decoding: ModuleType, typed: tuple[DataType, Any]
) -> None:
    data = encoding.encode_value(*typed)
    kind, value, end = decoding.decode_value(data)
    assert (kind, value, end) == (*typed, len(data))
    assert type(value) is type(typed[1])


@given(st.lists(MESSAGES, max_size=4))
def test_messages_come_back(messages: list[Message]) -> None:
    payload = encode_messages(messages)
    assert decode_messages(Notify(b"\0\0", payload, 0, len(payload))) == messages


@given(st.lists(ACTIONS, max_size=4))
def test_actions_come_back(actions: list[Action]) -> None:
    out = bytearray()
    assert append_ack(out, b"\0\0", actions, 1 << 20)
    assert decode_actions(bytes(out[11:])) == actions


@given(ENGINE_HELLOS)
def test_engines_hellos_come_back(hello: EngineHello) -> None:
    assert EngineHello.decode(hello.encode()) == hello


@given(AGENT_HELLOS)
def test_agents_hellos_come_back(hello: AgentHello) -> None:
    assert AgentHello.decode(hello.encode(), EngineHello(16380)) == hello


@given(st.integers(0, 2**32 - 1), TEXTS)
def test_disconnects_come_back_as_far_as_they_are_utf8(code: int, message: str) -> None:
    reason = Disconnect.decode(Disconnect(code, message).encode())
    assert reason.status_code == min(code, 99)
    assert message.encode("utf-8", "replace").startswith(reason.message.encode())


# --- messages by their shape -----------------------------------------------------------


@given(MESSAGES, st.data())
def test_a_reader_made_from_a_messages_shape_reads_it(
    decoding: ModuleType, message: Message, data: st.DataObject
) -> None:
    assume(all(len(each.name) < 2288 for each in message.arguments))
    payload = encode_messages([message])
    cursor = decoding.Cursor(payload, 0, len(payload))
    name, shape = cursor.message_shape()
    assert cursor.at_end()
    assert [kind for _, kind in shape] == [each.type for each in message.arguments]
    reading = decoding.Reading
    texts = (DataType.STRING, DataType.BINARY)
    readings = [
        data.draw(
            st.sampled_from(
                [reading.SKIP, reading.TEXT, reading.BYTES, reading.WRAPPED]
                if each.type in texts
                else [reading.SKIP, reading.VALUE]
            )
        )
        for each in message.arguments
    ]
    reader = decoding.ArgumentReader(
        name, shape, readings, range(len(shape)), lambda raw, binary: (raw, binary)
    )
    calls: list[list[Any]] = []
    frame = decoding.Notify(b"\0\0", payload, 0, len(payload))
    assert reader.parse_run([frame], 0, 1, [...] * len(shape), [], calls) == 1
    [values] = calls
    for each, how, value in zip(message.arguments, readings, values, strict=True):
        raw, text = each.value, each.value
        if isinstance(raw, str):
            raw = raw.encode("utf-8", "surrogateescape")
        elif isinstance(text, bytes):
            text = text.decode("utf-8", "surrogateescape")
        expected = {
            reading.SKIP: ...,
            reading.VALUE: each.value,
            reading.BYTES: raw,
            reading.TEXT: text,
            reading.WRAPPED: (raw, each.type is DataType.BINARY),
        }[how]
        assert value == expected


@given(MESSAGES, MESSAGES)
def test_a_reader_takes_no_other_shape(decoding: ModuleType, one: Message, other: Message) -> None:
    def shape(message: Message) -> tuple[str, list[tuple[str, DataType]]]:
        return message.name, [(each.name, each.type) for each in message.arguments]

    payload = encode_messages([one])
    name, known = decoding.Cursor(payload, 0, len(payload)).message_shape()
    skip = [decoding.Reading.SKIP] * len(known)
    reader = decoding.ArgumentReader(name, known, skip, [0] * len(known), tuple)
    payload = encode_messages([other])
    cursor = decoding.Cursor(payload, 0, len(payload))
    assert reader.parse(cursor, []) == (shape(one) == shape(other))


# --- arbitrary bytes -------------------------------------------------------------------

Outcome: TypeAlias = tuple[str, Any]


def outcome(function: Callable[[], Any]) -> Outcome:
    """Return what a function returns, or that it refuses the bytes."""
    try:
        return "returned", function()
    except InvalidFrameError as error:
        return "invalid", str(error)


def readings(decoding: ModuleType, data: bytes) -> Iterable[Outcome]:
    """Read bytes in all ways."""
    yield outcome(lambda: decoding.decode_varint(data))
    yield outcome(lambda: decoding.decode_value(data))
    yield outcome(lambda: decoding.Cursor(data, 0, len(data)).message_shape())
    yield outcome(lambda: decoding.Cursor(data, 0, len(data)).string())
    notifies: list[Any] = []
    yield outcome(lambda: decoding.split_notifies(data, 0, 100, notifies))
    yield "notifies", [(each.ids, each.payload) for each in notifies]


# Bytes that get further than any, for being counts, lengths, types and starts of varints.
SUSPECT = st.lists(
    st.sampled_from([0, 1, 2, 3, 8, 9, 0x11, 0x7F, 0x80, 0xEF, 0xF0, 0xFE, 0xFF]), max_size=30
).map(bytes)
HEADED = st.builds(
    lambda size, rest: bytes((0, 0, 0, size, 3, 0, 0, 0, 1)) + rest, st.integers(0, 20), SUSPECT
)


@given(st.one_of(st.binary(max_size=60), SUSPECT, HEADED))
def test_arbitrary_bytes_are_read_or_invalid_and_both_forms_agree(
    decoding: ModuleType, data: bytes
) -> None:
    assert list(readings(decoding, data)) == list(readings(_decode_cy, data))


@given(st.one_of(st.binary(max_size=60), SUSPECT))
def test_arbitrary_payloads_raise_documented_exceptions_only(data: bytes) -> None:
    for decode in (
        EngineHello.decode,
        lambda payload: AgentHello.decode(payload, EngineHello(16380)),
        Disconnect.decode,
        decode_actions,
        lambda payload: decode_messages(Notify(b"\0\0", payload, 0, len(payload))),
    ):
        with suppress(ProtocolError):
            decode(data)


# --- streams ---------------------------------------------------------------------------

CAP, REASSEMBLED = 400, 600
SETTINGS = AgentSettings(frame_size_cap=CAP, reassembled_size=REASSEMBLED)
HEADER = 4
HELLO_CAP = 4096

Connection: TypeAlias = AgentConnection | EngineConnection


def agent() -> AgentConnection:
    return AgentConnection(SETTINGS)


def engine() -> EngineConnection:
    """Return an engine that awaits the answers to two NOTIFYs."""
    connection = EngineConnection(EngineHello(16380), CAP)
    connection._awaited = {bytes((stream_id, 1)): (stream_id, 1) for stream_id in (1, 2)}
    return connection


def kept(connection: Connection) -> int:
    """Return how many received bytes a connection keeps, for frames that are not whole."""
    fragments = getattr(connection, "_fragments", None)
    return len(connection._incomplete) + len(fragments or b"")


def meaning(event: Any) -> Any:
    """Return an event as what can be compared."""
    if isinstance(event, Notify):
        return "notify", event.ids, event.payload
    if isinstance(event, Failed):
        # Its text may name an offset, which depends on the read.
        return "failed", event.error.status_code
    return event


def run(connection: Connection, reads: Iterable[bytes]) -> tuple[list[Any], bytes, bool]:
    """Have a connection receive a stream; return all that can be seen of it."""
    events: list[Any] = []
    for read in reads:
        connection.receive_data(read)
        events += connection.events_received()
        limit = HELLO_CAP if connection.state.value == "HELLO" else CAP
        assert kept(connection) < HEADER + limit + REASSEMBLED
        assert not connection.is_closing or not kept(connection)
    closing = connection.is_closing
    connection.receive_eof()
    events += connection.events_received()
    assert not kept(connection)
    for event in events[:-1]:
        assert not isinstance(event, Failed)
    return [meaning(event) for event in events], connection.data_to_send(), closing


@given(TO_AGENT, CUTS)
def test_however_a_stream_is_split_an_agent_understands_the_same(
    stream: bytes, sizes: list[int]
) -> None:
    assert run(agent(), [stream]) == run(agent(), cut(stream, sizes))


@given(TO_ENGINE, CUTS)
def test_however_a_stream_is_split_an_engine_understands_the_same(
    stream: bytes, sizes: list[int]
) -> None:
    assert run(engine(), [stream]) == run(engine(), cut(stream, sizes))


@given(TO_AGENT)
def test_the_rules_alone_understand_what_the_fast_path_does(stream: bytes) -> None:
    class Slow(AgentConnection):
        def _receive_fast(self, data: bytes, position: int) -> int:
            return position

    assert run(agent(), [stream]) == run(Slow(SETTINGS), [stream])


@given(st.lists(MESSAGES, max_size=3), st.lists(ACTIONS, max_size=3), CUTS)
def test_both_ends_understand_each_other(
    messages: list[Message], actions: list[Action], sizes: list[int]
) -> None:
    one, other = AgentConnection(), EngineConnection(EngineHello(300))
    other.send_hello()
    for read in cut(other.data_to_send(), sizes):
        one.receive_data(read)
    for read in cut(one.data_to_send(), sizes):
        other.receive_data(read)
    one.events_received(), other.events_received()
    other.send_notify(messages, stream_id=1)
    for read in cut(other.data_to_send(), sizes):
        one.receive_data(read)
    (notify,) = one.events_received()
    assert isinstance(notify, Notify)
    assert decode_messages(notify) == messages
    fits = one.send_ack(notify, actions)
    for read in cut(one.data_to_send(), sizes):
        other.receive_data(read)
    (acknowledged,) = other.events_received()
    assert not isinstance(acknowledged, Failed)
    assert getattr(acknowledged, "actions", None) == (tuple(actions) if fits else ())
