"""`spoakit.spop._encode_cy`, in both forms."""

from ipaddress import IPv4Address, IPv6Address
from types import ModuleType
from typing import Any

import pytest

from spoakit.spop.constants import ActionType, DataType, Scope
from tests.support.spop_values import VALUES, VARINTS

# --- varints and values ----------------------------------------------------------------


@pytest.mark.parametrize(("value", "encoded"), VARINTS)
def test_a_varint_has_one_byte_below_240_and_grows_seven_bits_a_byte(
    encoding: ModuleType, value: int, encoded: str
) -> None:
    assert encoding.encode_varint(value).hex() == encoded


@pytest.mark.parametrize("value", [-1, 2**64])
def test_a_varint_has_64_bits(encoding: ModuleType, value: int) -> None:
    with pytest.raises(ValueError, match="out of the range of a varint"):
        encoding.encode_varint(value)


@pytest.mark.parametrize(("kind", "value", "encoded"), VALUES)
def test_each_type_of_value_is_written(
    encoding: ModuleType, kind: DataType, value: Any, encoded: str
) -> None:
    assert encoding.encode_value(kind, value).hex() == encoded


@pytest.mark.parametrize("kind", DataType)
def test_none_is_null_whatever_the_type(encoding: ModuleType, kind: DataType) -> None:
    assert encoding.encode_value(kind, None) == b"\0"


def test_text_and_bytes_stand_for_each_other(encoding: ModuleType) -> None:
    assert encoding.encode_value(DataType.STRING, b"\xff") == b"\x08\x01\xff"
    assert encoding.encode_value(DataType.BINARY, "é") == b"\x09\x02\xc3\xa9"


WRONG_TYPES: list[tuple[DataType, Any]] = [
    (DataType.NULL, 0),
    (DataType.BOOL, 1),
    (DataType.BOOL, "true"),
    (DataType.INT32, True),
    (DataType.UINT32, "1"),
    (DataType.INT64, 1.0),
    (DataType.UINT64, False),
    (DataType.IPV4, "192.0.2.1"),
    (DataType.IPV4, IPv6Address("::1")),
    (DataType.IPV6, IPv4Address("192.0.2.1")),
    (DataType.STRING, 1),
    (DataType.STRING, bytearray(b"x")),
    (DataType.BINARY, IPv4Address("192.0.2.1")),
]


@pytest.mark.parametrize(("kind", "value"), WRONG_TYPES)
def test_a_value_of_another_type_is_refused_by_name(
    encoding: ModuleType, kind: DataType, value: Any
) -> None:
    with pytest.raises(TypeError, match=kind.name):
        encoding.encode_value(kind, value)
    with pytest.raises(TypeError, match=kind.name):
        encoding.VariableEncoder(Scope.TXN, "x", kind).set(value)


@pytest.mark.parametrize(
    ("kind", "smallest", "largest"),
    [
        (DataType.INT32, -(2**31), 2**31 - 1),
        (DataType.UINT32, 0, 2**32 - 1),
        (DataType.INT64, -(2**63), 2**63 - 1),
        (DataType.UINT64, 0, 2**64 - 1),
    ],
)
def test_an_integer_must_be_in_the_range_of_its_type(
    encoding: ModuleType, kind: DataType, smallest: int, largest: int
) -> None:
    variable = encoding.VariableEncoder(Scope.TXN, "x", kind)
    for value in (smallest, largest):
        assert encoding.encode_value(kind, value)
        assert variable.set(value).value == value
    for value in (smallest - 1, largest + 1):
        with pytest.raises(ValueError, match=f"{value} is out of the range of {kind.name}"):
            encoding.encode_value(kind, value)
        with pytest.raises(ValueError, match=f"{value} is out of the range of {kind.name}"):
            variable.set(value)


@pytest.mark.parametrize("kind", [DataType.STRING, DataType.BINARY])
def test_a_surrogate_that_is_no_byte_is_refused_when_set(
    encoding: ModuleType, kind: DataType
) -> None:
    # json.loads makes such texts; refused later they would spoil an ACK half written.
    variable = encoding.VariableEncoder(Scope.TXN, "x", kind)
    with pytest.raises(ValueError, match="surrogates not allowed"):
        variable.set("\ud800")
    assert variable.set("\udcff").value == "\udcff"


# --- actions ---------------------------------------------------------------------------


def encoded(encoding: ModuleType, action: Any) -> bytes:
    """Return what stands for an action in an ACK."""
    out = bytearray()
    assert encoding.append_ack(out, b"\0\0", action, 1000)
    return bytes(out[11:])


@pytest.mark.parametrize("scope", Scope)
def test_set_var_has_three_arguments_in_every_scope(encoding: ModuleType, scope: Scope) -> None:
    action = encoding.VariableEncoder(scope, "score", DataType.UINT32).set(42)
    assert encoded(encoding, action) == b"\x01\x03" + bytes((scope,)) + b"\x05score\x03\x2a"


@pytest.mark.parametrize("scope", Scope)
def test_unset_var_has_two_arguments_in_every_scope(encoding: ModuleType, scope: Scope) -> None:
    action = encoding.VariableEncoder(scope, "score", DataType.UINT32).set(None)
    assert encoded(encoding, action) == b"\x02\x02" + bytes((scope,)) + b"\x05score"


@pytest.mark.parametrize(("kind", "value", "data"), VALUES[1:])
def test_every_type_can_be_set(encoding: ModuleType, kind: DataType, value: Any, data: str) -> None:
    action = encoding.VariableEncoder(Scope.REQ, "x", kind).set(value)
    assert encoded(encoding, action).hex() == "010303" + "0178" + data


def test_an_action_tells_what_it_does(encoding: ModuleType) -> None:
    variable = encoding.VariableEncoder(Scope.SESS, "score", DataType.UINT32)
    action, unset = variable.set(42), variable.set(None)
    assert (action.type, action.scope, action.name) == (ActionType.SET_VAR, Scope.SESS, "score")
    assert (action.data_type, action.value) == (DataType.UINT32, 42)
    assert (unset.type, unset.data_type, unset.value) == (
        ActionType.UNSET_VAR,
        DataType.NULL,
        None,
    )
    assert repr(action) == "<set sess.score UINT32 42>"
    assert repr(unset) == "<unset sess.score>"


def test_actions_that_do_the_same_are_equal(encoding: ModuleType) -> None:
    def action(scope: Scope, name: str, kind: DataType, value: Any) -> Any:
        return encoding.VariableEncoder(scope, name, kind).set(value)

    one = action(Scope.SESS, "score", DataType.UINT32, 1)
    same = action(Scope.SESS, "score", DataType.UINT32, 1)
    assert one == same
    assert hash(one) == hash(same)
    others = [
        action(Scope.TXN, "score", DataType.UINT32, 1),
        action(Scope.SESS, "other", DataType.UINT32, 1),
        action(Scope.SESS, "score", DataType.INT64, 1),
        action(Scope.SESS, "score", DataType.BOOL, True),
        action(Scope.SESS, "score", DataType.UINT32, 2),
        action(Scope.SESS, "score", DataType.UINT32, None),
    ]
    assert one not in others
    assert len({one, same, *others}) == 1 + len(others)
    assert one != 1
    # Unsetting has no type.
    assert others[-1] == action(Scope.SESS, "score", DataType.STRING, None)


def test_an_action_cannot_be_changed(encoding: ModuleType) -> None:
    action = encoding.VariableEncoder(Scope.SESS, "score", DataType.UINT32).set(1)
    for name in ("type", "scope", "name", "data_type", "value"):
        with pytest.raises(AttributeError):
            setattr(action, name, None)


@pytest.mark.parametrize("name", ["", "x" * 64, "é" * 32])
def test_a_variables_name_has_1_to_63_bytes(encoding: ModuleType, name: str) -> None:
    with pytest.raises(ValueError, match="must have 1 to 63 bytes"):
        encoding.VariableEncoder(Scope.SESS, name, DataType.BOOL)
    assert encoding.VariableEncoder(Scope.SESS, "x" * 63, DataType.BOOL)


def test_a_handler_may_return_an_action_several_or_none(encoding: ModuleType) -> None:
    action = encoding.VariableEncoder(Scope.SESS, "score", DataType.UINT32).set(1)
    for actions in (None, action, (), [], (action,), [action, action]):
        encoding.check_actions(actions)
        collected = ["before"]
        encoding.extend_actions(collected, actions)
        expected = [action] if actions is action else list(actions or ())
        assert collected == ["before", *expected]


@pytest.mark.parametrize("actions", [1, "score", {"score": 1}, {1}, iter(()), True])
def test_a_handler_may_return_nothing_else(encoding: ModuleType, actions: object) -> None:
    with pytest.raises(TypeError, match="a handler must return actions, got"):
        encoding.check_actions(actions)


@pytest.mark.parametrize("actions", [(1,), [None], ((),)])
def test_every_one_of_several_must_be_an_action(encoding: ModuleType, actions: object) -> None:
    with pytest.raises(TypeError, match="got one that is"):
        encoding.check_actions(actions)


# --- acknowledgements ------------------------------------------------------------------


def test_an_ack_repeats_the_ids_and_carries_the_actions_in_their_order(
    encoding: ModuleType,
) -> None:
    variable = encoding.VariableEncoder(Scope.TXN, "x", DataType.BOOL)
    out = bytearray(b"before")
    actions = (variable.set(True), variable.set(None), variable.set(False))
    assert encoding.append_ack(out, b"\xf0\x00\x01", actions, 1000)
    frame = b"\x67\0\0\0\x01\xf0\x00\x01" + bytes.fromhex("010302017811 0202020178 010302017801")
    assert out == b"before" + len(frame).to_bytes(4, "big") + frame


@pytest.mark.parametrize("actions", [None, (), []])
def test_an_ack_may_have_no_actions(encoding: ModuleType, actions: object) -> None:
    out = bytearray()
    assert encoding.append_ack(out, b"\x07\x01", actions, 256)
    assert out == b"\0\0\0\x07\x67\0\0\0\x01\x07\x01"


def test_an_ack_that_exceeds_the_agreed_size_goes_empty(encoding: ModuleType) -> None:
    variable = encoding.VariableEncoder(Scope.TXN, "x", DataType.STRING)
    # 256 with the head, the ids, the action's head, the type and the length.
    action = variable.set("x" * (256 - 7 - 5 - 3))
    out = bytearray(b"before")
    assert encoding.append_ack(out, b"\x07\x01", action, 256)
    assert out[6:10] == b"\0\0\x01\0"
    assert len(out) == 6 + 4 + 256
    del out[6:]
    assert not encoding.append_ack(out, b"\x07\x01", action, 255)
    assert out == b"before" + b"\0\0\0\x07\x67\0\0\0\x01\x07\x01"
    assert not encoding.append_ack(out, b"\x07\x01", [action, action], 256)
    assert len(out) == 6 + 11 + 11


def test_acks_of_several_frames_are_those_of_each(encoding: ModuleType) -> None:
    variable = encoding.VariableEncoder(Scope.TXN, "x", DataType.STRING)
    ids = [b"\x01\x01", b"\xf0\x00\x01", b"\x02\x01", b"\x03\x01"]
    actions = [variable.set("a"), None, variable.set("x" * 300), (variable.set(None),) * 2]
    together, each = bytearray(b"before"), bytearray(b"before")
    assert encoding.append_acks(together, ids, actions, 256) == 1
    fitted = [encoding.append_ack(each, *pair, 256) for pair in zip(ids, actions, strict=True)]
    assert fitted == [True, True, False, True]
    assert together == each
    assert encoding.append_acks(together, [], [], 256) == 0
    assert together == each


def test_an_ack_is_encoded_where_it_fits(encoding: ModuleType) -> None:
    variable = encoding.VariableEncoder(Scope.TXN, "x", DataType.STRING)
    for size in (0, 100, 127, 128, 200):
        action = variable.set("x" * size)
        out = bytearray()
        encoding.append_ack(out, b"\x07\x01", action, 256)
        assert encoding.encode_ack(b"\x07\x01", action, len(out) - 4) == out
        assert encoding.encode_ack(b"\x07\x01", action, len(out) - 5) is None


def test_an_acks_length_has_four_bytes(encoding: ModuleType) -> None:
    variable = encoding.VariableEncoder(Scope.TXN, "x", DataType.BINARY)
    for size in (0x1_0203, 0x12_3456, 0x0102_0304):
        out = bytearray()
        assert encoding.append_ack(out, b"\x07\x01", variable.set(bytes(size)), 1 << 30)
        assert int.from_bytes(out[:4], "big") == len(out) - 4


@pytest.mark.parametrize("variable", [None, 5, "txn.x"])
def test_an_action_is_made_of_an_encoder_only(encoding: ModuleType, variable: object) -> None:
    with pytest.raises(TypeError, match="variable"):
        encoding.Action(variable, 5)


class Odd(int):
    def __and__(self, other: object) -> int:
        raise RuntimeError("and")

    def __le__(self, other: object) -> bool:
        return True

    __ge__ = __lt__ = __gt__ = __le__


class OddText(str):
    def encode(self, *arguments: object) -> bytes:
        raise RuntimeError("encode")


class OddBytes(bytes):
    def __bytes__(self) -> bytes:
        raise RuntimeError("bytes")


class OddAddress(IPv4Address):
    packed = property(lambda self: b"")


@pytest.mark.parametrize(
    ("data_type", "derived", "plain"),
    [
        (DataType.INT64, Odd, 7),
        (DataType.UINT32, Odd, 7),
        (DataType.STRING, OddText, "caf\xe9"),
        (DataType.BINARY, OddBytes, b"x"),
        (DataType.IPV4, OddAddress, IPv4Address("192.0.2.1")),
    ],
)
def test_a_value_of_a_derived_type_is_encoded_as_the_type_itself(
    encoding: ModuleType, data_type: DataType, derived: type[Any], plain: Any
) -> None:
    value = derived(plain)
    encoder = encoding.VariableEncoder(Scope.TXN, "v", data_type)
    for action in (encoder.set(value), encoding.Action(encoder, value)):
        assert type(action.value) is type(plain)
        out, expected = bytearray(), bytearray()
        assert encoding.append_ack(out, b"\x01\x01", [action], 1000)
        assert encoding.append_ack(expected, b"\x01\x01", [encoder.set(plain)], 1000)
        assert out == expected


@pytest.mark.parametrize(
    ("data_type", "value"),
    [
        (DataType.INT64, "abc"),
        (DataType.STRING, 5),
        (DataType.IPV4, object()),
        (DataType.IPV4, IPv4Address.__new__(IPv4Address)),
        (DataType.UINT32, Odd(2**40)),
    ],
)
def test_an_action_is_checked_however_it_is_made(
    encoding: ModuleType, data_type: DataType, value: Any
) -> None:
    encoder = encoding.VariableEncoder(Scope.TXN, "v", data_type)
    for make in (encoder.set, lambda value: encoding.Action(encoder, value)):
        with pytest.raises((TypeError, ValueError)):
            make(value)


def test_an_action_of_no_variable_sets_nothing(encoding: ModuleType) -> None:
    action = encoding.Action.__new__(encoding.Action)
    out, empty = bytearray(), bytearray()
    assert encoding.append_ack(out, b"\x01\x01", [action], 1000)
    assert encoding.append_ack(empty, b"\x01\x01", [], 1000)
    assert out == empty
    assert repr(action) == "<Action without a variable>"
    assert action.value is None
    for name in ("scope", "name"):
        with pytest.raises(TypeError, match="this Action has no variable"):
            getattr(action, name)
