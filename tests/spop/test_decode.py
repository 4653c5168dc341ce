"""`spoakit.spop._decode_cy`, in both forms."""

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address
from types import ModuleType
from typing import Any

import pytest

from spoakit.exceptions import InvalidFrameError, TooManyMessagesError
from spoakit.spop.constants import DataType, FrameFlag, FrameType
from spoakit.spop.frames import encode_frame
from tests.support.spop_values import VALUES, VARINTS

# --- varints ---------------------------------------------------------------------------


@pytest.mark.parametrize(("value", "encoded"), VARINTS)
def test_a_varint_has_one_byte_below_240_and_grows_seven_bits_a_byte(
    decoding: ModuleType, value: int, encoded: str
) -> None:
    data = bytes.fromhex(encoded)
    assert decoding.decode_varint(b"?" + data + b"?", 1) == (value, 1 + len(data))


@pytest.mark.parametrize("encoded", [encoded for _, encoded in VARINTS])
def test_a_varint_cut_short_is_invalid(decoding: ModuleType, encoded: str) -> None:
    data = bytes.fromhex(encoded)
    for size in range(len(data)):
        with pytest.raises(InvalidFrameError, match="ends within"):
            decoding.decode_varint(data[:size])


@pytest.mark.parametrize(
    "encoded",
    [
        "fff1fefefefefefefe0e",  # 2**64 - 1 + 16
        "fff0fefefefefefefe0f",  # 2**64 - 1 + 2**60
        "f0f1fefefefefefefe0e",  # 2**64
        "f0808080808080808010",
        "f080808080808080807f",
        "f08080808080808080808000",
        "ff" * 100,
    ],
)
def test_a_varint_beyond_64_bits_is_invalid(decoding: ModuleType, encoded: str) -> None:
    with pytest.raises(InvalidFrameError, match="exceeds 64 bits"):
        decoding.decode_varint(bytes.fromhex(encoded))


# --- values ----------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "value", "encoded"), VALUES)
def test_each_type_of_value_is_read(
    decoding: ModuleType, kind: DataType, value: Any, encoded: str
) -> None:
    data = bytes.fromhex(encoded)
    assert decoding.decode_value(b"?" + data + b"?", 1) == (kind, value, 1 + len(data))
    assert type(decoding.decode_value(data)[1]) is type(value)


@pytest.mark.parametrize("encoded", [encoded for _, _, encoded in VALUES])
def test_a_value_cut_short_is_invalid(decoding: ModuleType, encoded: str) -> None:
    data = bytes.fromhex(encoded)
    for size in range(len(data)):
        with pytest.raises(InvalidFrameError):
            decoding.decode_value(data[:size])
        # Bytes behind the cursor's end are not there.
        with pytest.raises(InvalidFrameError):
            decoding.Cursor(data, 0, size).value()


@pytest.mark.parametrize("kind", range(10, 16))
def test_an_unknown_type_is_invalid(decoding: ModuleType, kind: int) -> None:
    with pytest.raises(InvalidFrameError, match=f"unknown data type {kind}"):
        decoding.decode_value(bytes((kind, 0)))


def test_the_flags_of_a_type_matter_to_bool_alone(decoding: ModuleType) -> None:
    assert decoding.decode_value(b"\xf0") == (DataType.NULL, None, 1)
    assert decoding.decode_value(b"\xe1") == (DataType.BOOL, False, 1)
    assert decoding.decode_value(b"\xf3\x07") == (DataType.UINT32, 7, 2)


def test_an_int32_extended_to_32_bits_only_is_negative_too(decoding: ModuleType) -> None:
    # What a 32-bit -5 looks like to a peer that does not extend it to 64 bits.
    data = b"\x02" + bytes.fromhex("fbf0fefe7e")
    assert decoding.decode_value(data)[:2] == (DataType.INT32, -5)


def test_addresses_are_like_those_made_by_their_constructors(decoding: ModuleType) -> None:
    ipv6 = decoding.decode_value(b"\x07" + bytes(15) + b"\x01")[1]
    assert (str(ipv6), hash(ipv6), ipv6.scope_id) == ("::1", hash(IPv6Address("::1")), None)
    assert ipv6.is_loopback
    ipv4 = decoding.decode_value(b"\x06\x7f\x00\x00\x01")[1]
    assert (str(ipv4), hash(ipv4)) == ("127.0.0.1", hash(IPv4Address("127.0.0.1")))
    assert ipv4 in {IPv4Address("127.0.0.1")}


# --- cursors ---------------------------------------------------------------------------


@pytest.mark.parametrize("claim", ["05", "ff7f", "fff0fefefefefefefe06", "fff0fefefefefefefe0e"])
def test_a_string_that_claims_more_than_there_is_is_invalid(
    decoding: ModuleType, claim: str
) -> None:
    data = bytes.fromhex(claim) + b"abcd"
    with pytest.raises(InvalidFrameError, match="but only 4 are left"):
        decoding.Cursor(data, 0, len(data)).string()
    for kind in b"\x08\x09":
        with pytest.raises(InvalidFrameError):
            decoding.decode_value(bytes((kind,)) + data)


def test_a_cursor_ends_with_its_data_whatever_end_is_asked_for(decoding: ModuleType) -> None:
    cursor = decoding.Cursor(b"\x01", 0, 100)
    assert (cursor.byte(), cursor.at_end(), cursor.tell()) == (1, True, 1)
    with pytest.raises(InvalidFrameError, match="ends within a field at byte 1"):
        cursor.byte()


def test_a_name_is_looked_at_without_moving_on(decoding: ModuleType) -> None:
    cursor = decoding.Cursor(b"??\x03abc\x00", 2, 7)
    assert cursor.message_name() == b"abc"
    assert cursor.tell() == 2
    assert cursor.message_shape() == (b"abc", [])
    assert cursor.at_end()


def test_a_shape_has_the_names_and_types_and_no_values(decoding: ModuleType) -> None:
    data = b"\x01m" + bytes((len(VALUES),))
    for _, _, encoded in VALUES:
        data += b"\x01n" + bytes.fromhex(encoded)
    cursor = decoding.Cursor(data, 0, len(data))
    assert cursor.message_shape() == (b"m", [(b"n", kind) for kind, _, _ in VALUES])
    assert cursor.at_end()


@pytest.mark.parametrize("encoded", [encoded for _, _, encoded in VALUES])
def test_a_shape_cut_short_is_invalid(decoding: ModuleType, encoded: str) -> None:
    data = b"\x01m\x01\x01n" + bytes.fromhex(encoded)
    for size in range(len(data)):
        with pytest.raises(InvalidFrameError):
            decoding.Cursor(data, 0, size).message_shape()


def test_a_shape_with_an_unknown_type_is_invalid(decoding: ModuleType) -> None:
    with pytest.raises(InvalidFrameError, match="unknown data type 10"):
        decoding.Cursor(b"\x01m\x01\x01n\x0a", 0, 6).message_shape()


# --- NOTIFYs ---------------------------------------------------------------------------


def notify(payload: bytes = b"", ids: bytes = b"\x07\x01", flags: int = 1, kind: int = 3) -> bytes:
    frame = bytes((kind,)) + flags.to_bytes(4, "big") + ids + payload
    return len(frame).to_bytes(4, "big") + frame


def split(
    decoding: ModuleType, data: bytes, pos: int = 0, limit: int = 1000
) -> tuple[int, list[tuple[bytes, bytes]]]:
    notifies: list[Any] = []
    end = decoding.split_notifies(data, pos, limit, notifies)
    return end, [(each.ids, each.payload) for each in notifies]


def test_all_whole_notifies_are_split_off(decoding: ModuleType) -> None:
    data = b"??" + notify(b"one") + notify() + notify(b"three", b"\xf0\x00\x02")
    found = [(b"\x07\x01", b"one"), (b"\x07\x01", b""), (b"\xf0\x00\x02", b"three")]
    assert split(decoding, data, 2) == (len(data), found)


def test_splitting_stops_at_an_incomplete_frame(decoding: ModuleType) -> None:
    whole, next_one = notify(b"whole"), notify(b"cut")
    for size in range(len(next_one)):
        assert split(decoding, whole + next_one[:size])[0] == len(whole)


@pytest.mark.parametrize(
    "other",
    [
        notify(flags=0),
        notify(flags=3),
        notify(flags=0x80000001),
        notify(kind=0),
        notify(kind=1),
        notify(kind=2),
        notify(kind=103),
        notify(bytes(994)),
    ],
    ids=["fragment", "abort", "reserved", "unset", "hello", "disconnect", "ack", "too-big"],
)
def test_splitting_stops_at_whatever_is_no_whole_notify(decoding: ModuleType, other: bytes) -> None:
    data = notify() + other + notify()
    assert split(decoding, data) == (len(notify()), [(b"\x07\x01", b"")])


def test_a_notify_of_exactly_the_limit_is_taken(decoding: ModuleType) -> None:
    data = notify(bytes(993))
    assert split(decoding, data) == (len(data), [(b"\x07\x01", bytes(993))])


@pytest.mark.parametrize("length", range(7))
def test_a_length_too_short_for_the_ids_is_invalid(decoding: ModuleType, length: int) -> None:
    data = length.to_bytes(4, "big") + notify(b"payload")[4:]
    with pytest.raises(InvalidFrameError):
        split(decoding, data)


def test_ids_that_reach_beyond_their_frame_are_invalid(decoding: ModuleType) -> None:
    with pytest.raises(InvalidFrameError):
        split(decoding, notify(ids=b"\xf0\x80") + b"\0\0\0\0")


def test_a_notify_knows_its_numbers(decoding: ModuleType) -> None:
    frame = decoding.Notify(b"\xf0\x00\x02", b"?payload?", 1, 8)
    assert (frame.stream_id, frame.frame_id, frame.payload) == (240, 2, b"payload")
    assert repr(frame) == "<Notify stream 240 frame 2, 7 bytes>"
    assert frame.state is None
    frame.state = "kept"
    assert frame.state == "kept"


def test_detaching_keeps_the_payload_alone_and_the_cursors_place(decoding: ModuleType) -> None:
    frame = decoding.Notify(
        b"\x01\x01", bytes(1000) + b"\x01a\x00\x01b\x00" + bytes(1000), 1000, 1006
    )
    cursor = frame.cursor()
    cursor.message_shape()
    for _ in range(2):
        cursor = frame.detach(cursor)
        assert (cursor.tell(), frame.payload) == (3, b"\x01a\x00\x01b\x00")
    assert cursor.message_shape() == (b"b", [])
    assert cursor.at_end()


@pytest.mark.parametrize("detached", [False, True])
def test_a_message_over_the_limit_is_refused_and_none_counts_twice(
    decoding: ModuleType, detached: bool
) -> None:
    payload = b"\x01a\x00" + b"\x00\x00" + b"\x01b\x00" + b"\x01c\x00"
    frame = decoding.Notify(b"\x01\x01", bytes(7) + payload, 7, 7 + len(payload))
    cursor = frame.cursor(3)
    for name in (b"a", b"", b"b"):
        start = cursor.tell()
        assert [cursor.message_name() for _ in range(2)] == [name, name]
        cursor.message_shape()
        cursor.seek(start)
        if detached:
            cursor = frame.detach(cursor)
        assert cursor.message_name() == name
        cursor.message_shape()
    with pytest.raises(TooManyMessagesError, match="the limit of 3 messages"):
        cursor.message_name()
    for without_limit in (frame.cursor(), frame.cursor(4)):
        while not without_limit.at_end():
            without_limit.message_name()
            without_limit.message_shape()


# --- argument readers ------------------------------------------------------------------


def wrapped(raw: bytes, binary: bool) -> tuple[bytes, bool]:
    return raw, binary


MESSAGE = b"\x05check\x03" + b"\x03src\x06\x7f\x00\x00\x01" + b"\x00\x08\x02hi" + b"\x01n\x05\x07"
SHAPE = [(b"src", DataType.IPV4), (b"", DataType.STRING), (b"n", DataType.UINT64)]


def reader(decoding: ModuleType, text: str = "TEXT") -> Any:
    """Return a reader that puts the last argument first and skips none."""
    readings = [decoding.Reading.VALUE, decoding.Reading[text], decoding.Reading.VALUE]
    return decoding.ArgumentReader(b"check", SHAPE, readings, [1, 2, 0], wrapped)


@pytest.mark.parametrize(
    ("reading", "value"), [("TEXT", "hi"), ("BYTES", b"hi"), ("WRAPPED", (b"hi", False))]
)
def test_arguments_are_read_into_their_slots(
    decoding: ModuleType, reading: str, value: object
) -> None:
    values = [None] * 3
    cursor = decoding.Cursor(b"?" + MESSAGE + b"?", 1, 1 + len(MESSAGE))
    assert reader(decoding, reading).parse(cursor, values)
    assert values == [7, IPv4Address("127.0.0.1"), value]
    assert cursor.at_end()


def test_skipped_arguments_leave_their_slots_alone(decoding: ModuleType) -> None:
    skip = decoding.Reading.SKIP
    for kind, _, encoded in VALUES:
        data = b"\x01m\x01\x01n" + bytes.fromhex(encoded)
        each = decoding.ArgumentReader(b"m", [(b"n", kind)], [skip], [0], wrapped)
        values = ["kept"]
        cursor = decoding.Cursor(data, 0, len(data))
        assert each.parse(cursor, values)
        assert cursor.at_end()
        assert values == ["kept"]


def test_a_wrapper_learns_whether_the_bytes_came_as_binary(decoding: ModuleType) -> None:
    data = b"\x01m\x01\x01n\x09\x02hi"
    each = decoding.ArgumentReader(
        b"m", [(b"n", DataType.BINARY)], [decoding.Reading.WRAPPED], [0], wrapped
    )
    values = [None]
    assert each.parse(decoding.Cursor(data, 0, len(data)), values)
    assert values == [(b"hi", True)]


@pytest.mark.parametrize(
    "other",
    [
        b"\x05chec_\x03" + MESSAGE[7:],
        b"\x04chec\x03" + MESSAGE[7:],
        b"\x06check!\x03" + MESSAGE[7:],
        b"\x05check\x04" + MESSAGE[7:] + b"\x00\x00",
        b"\x05check\x02" + MESSAGE[7:21],
        MESSAGE.replace(b"\x03src\x06", b"\x03SRC\x06"),
        MESSAGE.replace(b"\x03src\x06\x7f\x00\x00\x01", b"\x03src\x00"),
        MESSAGE.replace(b"\x00\x08\x02hi", b"\x00\x09\x02hi"),
        MESSAGE.replace(b"\x00\x08\x02hi", b"\x01s\x08\x02hi"),
        MESSAGE.replace(b"\x01n\x05", b"\x01m\x05"),
        MESSAGE.replace(b"\x01n\x05", b"\x01n\x04"),
    ],
    ids=[
        "name",
        "shorter-name",
        "longer-name",
        "more-arguments",
        "fewer-arguments",
        "first-name",
        "first-type",
        "second-type",
        "second-name",
        "last-name",
        "last-type",
    ],
)
def test_another_shape_is_not_read_and_the_cursor_stays(decoding: ModuleType, other: bytes) -> None:
    cursor = decoding.Cursor(b"?" + other, 1, 1 + len(other))
    assert not reader(decoding).parse(cursor, [None] * 3)
    assert cursor.tell() == 1
    # It is a message none the less.
    assert cursor.message_shape()
    assert cursor.at_end()
    whole = decoding.Notify(b"\x01\x01", b"?" + other, 1, 1 + len(other))
    assert run(decoding, [whole]) == (0, [], [])


def run(
    decoding: ModuleType, events: Sequence[object], first: int = 0, most: int = 10
) -> tuple[int, list[bytes], list[list[object]]]:
    """Read a run of frames: the index behind it, the ids, the values."""
    ids: list[bytes] = []
    calls: list[list[object]] = []
    behind = reader(decoding).parse_run(events, first, most, [None] * 3, ids, calls)
    return behind, ids, calls


def test_a_message_cut_short_is_never_taken_for_whole(decoding: ModuleType) -> None:
    for size in range(len(MESSAGE)):
        # The bytes that are missing stand behind the end, and must not count.
        cursor = decoding.Cursor(MESSAGE, 0, size)
        try:
            assert not reader(decoding).parse(cursor, [None] * 3)
        except InvalidFrameError:
            continue
        assert cursor.tell() == 0
        with pytest.raises(InvalidFrameError):
            cursor.message_shape()


def test_an_empty_notify_is_not_read_from_what_follows_it(decoding: ModuleType) -> None:
    empty = decoding.Notify(b"\x01\x01", MESSAGE, 0, 0)
    assert run(decoding, [empty]) == (0, [], [])


@pytest.mark.parametrize("reading", ["TEXT", "BYTES", "WRAPPED"])
def test_an_argument_whose_length_lies_is_invalid(decoding: ModuleType, reading: str) -> None:
    for claim in ("07", "7f", "ff7f", "fff0fefefefefefefe0e"):
        lying = MESSAGE.replace(b"\x00\x08\x02hi", b"\x00\x08" + bytes.fromhex(claim) + b"hi")
        with pytest.raises(InvalidFrameError):
            reader(decoding, reading).parse(decoding.Cursor(lying, 0, len(lying)), [None] * 3)


def test_a_skipped_argument_whose_length_lies_is_invalid(decoding: ModuleType) -> None:
    skip = decoding.Reading.SKIP
    each = decoding.ArgumentReader(b"m", [(b"", DataType.STRING)], [skip], [0], wrapped)
    for claim in ("03", "ff7f", "fff0fefefefefefefe0e"):
        lying = b"\x01m\x01\x00\x08" + bytes.fromhex(claim) + b"hi"
        with pytest.raises(InvalidFrameError):
            each.parse(decoding.Cursor(lying, 0, len(lying)), [None])


VALUES_OF_MESSAGE = [7, IPv4Address("127.0.0.1"), "hi"]


def test_a_run_of_frames_of_one_message_of_the_shape_is_read(decoding: ModuleType) -> None:
    size = len(MESSAGE)
    frames = [
        decoding.Notify(bytes((1, number)), b"?" + MESSAGE + b"?", 1, 1 + size)
        for number in range(4)
    ]
    assert run(decoding, frames, first=1) == (
        4,
        [b"\x01\x01", b"\x01\x02", b"\x01\x03"],
        [VALUES_OF_MESSAGE] * 3,
    )
    assert run(decoding, frames, most=2)[:2] == (2, [b"\x01\x00", b"\x01\x01"])
    assert run(decoding, frames, first=4) == (4, [], [])


@pytest.mark.parametrize(
    "payload",
    [b"", b"\xff", MESSAGE + b"\x00", MESSAGE * 2, MESSAGE[:-1], MESSAGE.replace(b"eck", b"ess")],
    ids=["empty", "unreadable", "a-byte-more", "two-messages", "cut", "another-message"],
)
def test_a_run_ends_in_front_of_what_is_no_such_frame(decoding: ModuleType, payload: bytes) -> None:
    whole = decoding.Notify(b"\x01\x01", MESSAGE, 0, len(MESSAGE))
    other = decoding.Notify(b"\x01\x02", payload, 0, len(payload))
    for event in (other, None, b""):
        events = [whole, event, whole]
        assert run(decoding, events) == (1, [b"\x01\x01"], [VALUES_OF_MESSAGE])
        assert run(decoding, events, first=1) == (1, [], [])


def alone(payload: bytes, ids: bytes = b"\xf0\x00\x01") -> bytes:
    return encode_frame(FrameType.NOTIFY, payload, ids=ids)


def test_a_frame_that_came_alone_is_read_with_its_ids(decoding: ModuleType) -> None:
    values = [None] * 3
    assert reader(decoding).parse_single(alone(MESSAGE), values) == b"\xf0\x00\x01"
    assert values == [7, IPv4Address("127.0.0.1"), "hi"]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        alone(MESSAGE)[:10],
        alone(MESSAGE)[:-1],
        alone(MESSAGE) + b"?",
        alone(MESSAGE) * 2,
        alone(b""),
        alone(MESSAGE * 2),
        alone(MESSAGE.replace(b"check", b"chess")),
        encode_frame(FrameType.ACK, MESSAGE, ids=b"\x01\x01"),
        encode_frame(FrameType.NOTIFY, MESSAGE, ids=b"\x01\x01", flags=FrameFlag(0)),
    ],
    ids=[
        "nothing",
        "too-short",
        "cut",
        "more",
        "two-frames",
        "no-message",
        "two-messages",
        "another-message",
        "another-type",
        "a-fragment",
    ],
)
def test_what_is_not_one_frame_of_one_message_is_not_read_alone(
    decoding: ModuleType, data: bytes
) -> None:
    assert reader(decoding).parse_single(data, [None] * 3) is None


@pytest.mark.parametrize("data", [alone(b"", b"\xff\xff"), alone(MESSAGE[:-1])])
def test_a_frame_that_came_alone_and_ends_within_a_field_is_invalid(
    decoding: ModuleType, data: bytes
) -> None:
    with pytest.raises(InvalidFrameError):
        reader(decoding).parse_single(data, [None] * 3)


@pytest.mark.parametrize("size", [239, 240, 2287])
def test_long_names_are_compared_as_they_are_encoded(decoding: ModuleType, size: int) -> None:
    length = {239: b"\xef", 240: b"\xf0\x00", 2287: b"\xff\x7f"}[size]
    name = b"x" * size
    data = length + name + b"\x01" + length + name + b"\x11"
    value = decoding.Reading.VALUE
    each = decoding.ArgumentReader(name, [(name, DataType.BOOL)], [value], [0], wrapped)
    values = [None]
    assert each.parse(decoding.Cursor(data, 0, len(data)), values)
    assert values == [True]


def test_a_name_of_2288_bytes_is_refused(decoding: ModuleType) -> None:
    value = decoding.Reading.VALUE
    with pytest.raises(InvalidFrameError, match="a name of 2288 bytes"):
        decoding.ArgumentReader(b"m", [(b"x" * 2288, DataType.BOOL)], [value], [0], wrapped)
