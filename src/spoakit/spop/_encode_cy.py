# cython: wraparound=False
"""Encoders of SPOP: varints, typed values, actions, ACK frames. Hot code.

They append to a list of pieces that is joined once, which is cheaper than a ``bytearray`` that
grows with each piece.

Plain Python that compiles to C (see ``spoakit._cython``). Section numbers refer to HAProxy's
SPOE.txt.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address
from reprlib import repr as shorten
from typing import TYPE_CHECKING, Any

from spoakit.spop._decode_cy import Value
from spoakit.spop.constants import (
    MAX_VARIABLE_NAME,
    ActionType,
    DataType,
    FrameFlag,
    FrameType,
    Scope,
)

if TYPE_CHECKING:
    from spoakit import _cython as cython
else:
    try:
        import cython
    except ModuleNotFoundError:
        from spoakit import _cython as cython

# The numbers of DataType as C integers.
_NULL = cython.declare(cython.uint, 0)
_BOOL = cython.declare(cython.uint, 1)
_INT32 = cython.declare(cython.uint, 2)
_UINT32 = cython.declare(cython.uint, 3)
_INT64 = cython.declare(cython.uint, 4)
_UINT64 = cython.declare(cython.uint, 5)
_IPV4 = cython.declare(cython.uint, 6)
_IPV6 = cython.declare(cython.uint, 7)
_DATA_TYPES: tuple[DataType, ...] = tuple(DataType)

_PYTHON_TYPES: dict[int, tuple[type, ...]] = {
    DataType.IPV4: (IPv4Address,),
    DataType.IPV6: (IPv6Address,),
    DataType.STRING: (str, bytes),
    DataType.BINARY: (bytes, str),
}


# Each byte as an object that can be appended as it is.
_BYTES = cython.declare(tuple, tuple(bytes((byte,)) for byte in range(256)))


@cython.cfunc
@cython.exceptval(-1, check=False)
def _append_varint(pieces: list[bytes], value: cython.ulonglong) -> cython.Py_ssize_t:
    if value < 240:
        pieces.append(_BYTES[value])
        return 0
    pieces.append(_BYTES[0xF0 | (value & 0x0F)])
    value = (value - 240) >> 4
    while value >= 128:
        pieces.append(_BYTES[0x80 | (value & 0x7F)])
        value = (value - 128) >> 7
    pieces.append(_BYTES[value])
    return 0


@cython.cfunc
@cython.exceptval(-1, check=False)
def _append_bytes(pieces: list[bytes], data: bytes) -> cython.Py_ssize_t:
    _append_varint(pieces, len(data))
    pieces.append(data)
    return 0


@cython.cfunc
@cython.exceptval(-1, check=False)
def _append_value(pieces: list[bytes], kind: cython.uint, value: Any) -> cython.Py_ssize_t:
    """Append a typed value (3.1) that `_check_value` has returned; None becomes NULL."""
    if value is None:
        pieces.append(_BYTES[0])
    elif kind == _BOOL:
        pieces.append(_BYTES[0x11 if value else 0x01])
    else:
        pieces.append(_BYTES[kind])
        _append_untyped(pieces, kind, value)
    return 0


@cython.cfunc
@cython.exceptval(-1, check=False)
def _append_untyped(pieces: list[bytes], kind: cython.uint, value: Any) -> cython.Py_ssize_t:
    """Append a value without its type; it is neither NULL nor a BOOL."""
    if kind in (_INT32, _INT64):
        _append_varint(pieces, value & 0xFFFFFFFFFFFFFFFF)
    elif kind <= _UINT64:
        _append_varint(pieces, value)
    elif kind in (_IPV4, _IPV6):
        pieces.append(value.packed)
    else:
        raw: bytes = value if type(value) is bytes else _raw(value)
        _append_bytes(pieces, raw)
    return 0


@cython.cfunc
def _raw(text: Any) -> bytes:
    return text.encode("utf-8", "surrogateescape") if isinstance(text, str) else bytes(text)


@cython.cfunc
def _check_value(kind: cython.uint, value: Any) -> Any:
    """Return the value as exactly the Python type that is encoded, so that encoding cannot fail.

    A subclass could run any code while the ACK is encoded, too late for the handler's fallback.

    Raises:
        TypeError, ValueError: the value does not fit its type.
    """
    if value is None:
        return None
    if kind == _NULL:
        raise TypeError(f"NULL takes None, got {value!r}")
    if kind == _BOOL:
        if type(value) is not bool:
            raise TypeError(f"BOOL takes a bool, got {value!r}")
    elif kind <= _UINT64:
        if type(value) is not int:
            # bool is a subclass of int, but never what was meant.
            if type(value) is bool or not isinstance(value, int):
                raise TypeError(f"{_DATA_TYPES[kind].name} takes an int, got {value!r}")
            value = int.__index__(value)
        if kind == _UINT32:
            fits = 0 <= value <= 0xFFFFFFFF
        elif kind == _INT64:
            fits = -0x8000000000000000 <= value <= 0x7FFFFFFFFFFFFFFF
        elif kind == _INT32:
            fits = -0x80000000 <= value <= 0x7FFFFFFF
        else:
            fits = 0 <= value <= 0xFFFFFFFFFFFFFFFF
        if not fits:
            raise ValueError(f"{value} is out of the range of {_DATA_TYPES[kind].name}")
    elif not isinstance(value, _PYTHON_TYPES[kind]):
        raise TypeError(
            f"{_DATA_TYPES[kind].name} takes {_PYTHON_TYPES[kind][0].__name__}, got {value!r}"
        )
    elif kind in (_IPV4, _IPV6):
        return _exact_address(kind, value)
    elif type(value) is not bytes:
        if type(value) is not str:
            derived: Any = value
            value = str.__str__(derived) if isinstance(value, str) else bytes(memoryview(derived))
        if type(value) is str and not value.isascii():
            # JSON may contain surrogates that UTF-8 cannot encode: raise here, not in the ACK.
            _raw(value)
    return value


@cython.cfunc
def _exact_address(kind: cython.uint, value: Any) -> Any:
    """Return an address of exactly the type; raise if its number is missing or out of range."""
    number = getattr(value, "_ip", None)
    exact = _PYTHON_TYPES[kind][0]
    if type(value) is exact and type(number) is int:
        return value
    if not isinstance(number, int):
        raise TypeError(f"{_DATA_TYPES[kind].name} takes an address, got an incomplete one")
    return exact(int.__index__(number))


def encode_varint(value: int) -> bytes:
    """Encode an integer from 0 to 2**64 - 1 (3.1); others raise ValueError."""
    if not 0 <= value <= 0xFFFFFFFFFFFFFFFF:
        raise ValueError(f"{value} is out of the range of a varint, 0 to 2**64 - 1")
    pieces: list[bytes] = []
    _append_varint(pieces, value)
    return b"".join(pieces)


def encode_string(data: bytes) -> bytes:
    """Encode bytes behind their length (3.2: KV-NAME, MESSAGE-NAME)."""
    pieces: list[bytes] = []
    _append_bytes(pieces, data)
    return b"".join(pieces)


def encode_value(data_type: DataType, value: Value) -> bytes:
    """Encode a typed value (3.1); None becomes NULL.

    Raises:
        TypeError: the value is not of a Python type that ``data_type`` accepts.
        ValueError: the integer is out of the type's range, or the text cannot be UTF-8.
    """
    value = _check_value(data_type, value)
    pieces: list[bytes] = []
    _append_value(pieces, data_type, value)
    return b"".join(pieces)


# --- actions ---------------------------------------------------------------------------


@cython.final
@cython.freelist(64)
@cython.cclass
class Action:
    """Action of an ACK (3.4): set a variable, or unset it.

    ``Variable.set`` creates actions, which are immutable. A value of None unsets the variable,
    as HAProxy treats a NULL.
    """

    _variable: VariableEncoder
    _value: object

    def __init__(self, variable: VariableEncoder, value: Value) -> None:
        if not isinstance(variable, VariableEncoder):  # compiled, None passes the annotation
            raise TypeError(f"variable must be a VariableEncoder, got {variable!r}")
        self._value = _check_value(variable._kind, value)
        self._variable = variable

    @cython.cfunc
    def _encoder(self) -> VariableEncoder:
        """Return the variable's encoder; raise TypeError if only `Action.__new__` ran."""
        variable: VariableEncoder = self._variable
        if variable is None:
            raise TypeError("this Action has no variable; create actions with Variable.set")
        return variable

    @property
    def type(self) -> ActionType:
        """SET_VAR, or UNSET_VAR where the value is None."""
        return ActionType.UNSET_VAR if self._value is None else ActionType.SET_VAR

    @property
    def scope(self) -> Scope:
        """The variable's scope."""
        return self._encoder()._scope

    @property
    def name(self) -> str:
        """The variable's name on the wire: without scope and without HAProxy's prefix."""
        return self._encoder()._name

    @property
    def data_type(self) -> DataType:
        """The type the value has on the wire."""
        return DataType.NULL if self._value is None else self._encoder()._data_type

    @property
    def value(self) -> Any:
        """The value, None where the variable is unset."""
        return self._value

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Action):
            return NotImplemented
        return (
            self.scope is other.scope
            and self.name == other.name
            and self.data_type is other.data_type
            and self.value == other.value
        )

    def __hash__(self) -> int:
        return hash((self.scope, self.name, self.data_type, self.value))

    def __repr__(self) -> str:
        if self._variable is None:
            return "<Action without a variable>"
        variable = f"{self.scope.name.lower()}.{self.name}"
        if self._value is None:
            return f"<unset {variable}>"
        return f"<set {variable} {self.data_type.name} {self._value!r}>"


if not cython.compiled:
    # Compiled, attributes start as None too.
    for _name in ("_variable", "_value"):
        setattr(Action, _name, None)


@cython.final
@cython.cclass
class VariableEncoder:
    """Encoder for actions that set one variable: its scope, name and type, already encoded.

    Args:
        scope: where the variable lives.
        name: its name without scope and prefix, at most 63 bytes.
        data_type: the wire type of its values.
    """

    _scope: Scope
    _name: str
    _data_type: DataType
    _kind: cython.uint
    _set_head: bytes
    _typed_head: bytes
    _unset: bytes

    def __init__(self, scope: Scope, name: str, data_type: DataType) -> None:
        raw = name.encode("utf-8", "surrogateescape")
        if not 0 < len(raw) <= MAX_VARIABLE_NAME:
            raise ValueError(f"variable name {name!r}: must have 1 to {MAX_VARIABLE_NAME} bytes")
        self._scope = scope
        self._name = name
        self._data_type = data_type
        self._kind = data_type
        # ACTION-TYPE, NB-ARGS, VAR-SCOPE, VAR-NAME (3.4).
        named = bytes((scope,)) + encode_string(raw)
        self._set_head = bytes((ActionType.SET_VAR, 3)) + named
        # Precedes the value of every type but BOOL, whose first byte contains the value too.
        self._typed_head = self._set_head + bytes((data_type,))
        self._unset = bytes((ActionType.UNSET_VAR, 2)) + named

    def set(self, value: Value) -> Action:
        """Return the action that sets the variable, or unsets it where ``value`` is None.

        Raises:
            TypeError: the value is not of the variable's type.
            ValueError: the integer is out of the type's range, or the text cannot be UTF-8.
        """
        checked = _check_value(self._kind, value)
        action: Action = Action.__new__(Action)
        action._variable = self
        action._value = checked
        return action


@cython.cfunc
@cython.exceptval(-1, check=False)
def _append_action(pieces: list[bytes], action: Action) -> cython.Py_ssize_t:
    variable: VariableEncoder = action._variable
    if variable is None:
        return 0  # only Action.__new__ ran: it sets nothing
    if action._value is None:
        pieces.append(variable._unset)
        return 0
    if variable._kind == _BOOL:
        pieces.append(variable._set_head)
        return _append_value(pieces, _BOOL, action._value)
    pieces.append(variable._typed_head)
    return _append_untyped(pieces, variable._kind, action._value)


def check_actions(actions: Any) -> Any:
    """Return a handler's result as an action, a tuple of actions, or None.

    A list is copied, since the handler may change it before the ACK is encoded. A subclass of
    tuple or list is copied, since each iteration over it may yield something else.

    Raises:
        TypeError: the result is not made of actions.
    """
    if actions is None or type(actions) is Action:
        return actions
    if not isinstance(actions, (tuple, list)):
        raise TypeError(f"a handler must return actions, got {shorten(actions)}")
    several: tuple[Any, ...] = actions if type(actions) is tuple else tuple(actions)
    for action in several:
        if type(action) is not Action:
            raise TypeError(f"a handler must return actions, got one that is {shorten(action)}")
    return several


def extend_actions(collected: list[Any], actions: Any) -> None:
    """Add the result of `check_actions` to a list of actions."""
    if type(actions) is Action:
        collected.append(actions)
    elif actions is not None:
        collected.extend(actions)


# --- acknowledgements ------------------------------------------------------------------

_LENGTH_SIZE = cython.declare(cython.Py_ssize_t, 4)
_BEFORE_IDS = cython.declare(cython.Py_ssize_t, 1 + 4)


def _ack_head(length: int) -> bytes:
    """Return FRAME-LENGTH, the type ACK and FIN alone (3.2, 3.2.7)."""
    return b"".join(
        (length.to_bytes(4, "big"), bytes((FrameType.ACK,)), FrameFlag.FIN.to_bytes(4, "big"))
    )


# Heads of ACKs below this length are encoded once; nearly all ACKs are this short.
_SHORT = cython.declare(cython.Py_ssize_t, 128)
_SHORT_HEADS = cython.declare(tuple, tuple(map(_ack_head, range(128))))


def encode_ack(ids: bytes, actions: Any, limit: int) -> bytes | None:
    """Encode an ACK (3.2.7).

    Args:
        ids: STREAM-ID and FRAME-ID as they came.
        actions: an action, a tuple or list of them, or None; see `check_actions`.
        limit: the agreed max-frame-size.

    Returns:
        None if it exceeds the limit.
    """
    pieces: list[bytes] = []
    return b"".join(pieces) if _append_ack(pieces, ids, actions, limit) else None


def append_ack(out: bytearray, ids: bytes, actions: Any, limit: int) -> bool:
    """Append an ACK (3.2.7).

    An ACK longer than agreed makes HAProxy fail the frame, and from 3.1 on all frames of the
    connection. It is sent without its actions instead.

    Args:
        out: the output buffer.
        ids: STREAM-ID and FRAME-ID as they came.
        actions: an action, a tuple or list of them, or None; see `check_actions`.
        limit: the agreed max-frame-size.

    Returns:
        False if the actions did not fit.
    """
    return append_acks(out, [ids], [actions], limit) == 0


def append_acks(out: bytearray, ids: list[bytes], actions: list[Any], limit: int) -> int:
    """Append the ACKs of several frames, each as `append_ack` does.

    Args:
        out: the output buffer.
        ids: STREAM-ID and FRAME-ID of each frame, as they came.
        actions: the actions of each ACK; as many items as ``ids``.
        limit: the agreed max-frame-size.

    Returns:
        The number of ACKs whose actions did not fit.
    """
    pieces: list[bytes] = []
    oversized: cython.Py_ssize_t = 0
    max_length: cython.Py_ssize_t = limit
    index: cython.Py_ssize_t
    for index in range(len(ids)):
        if not _append_ack(pieces, ids[index], actions[index], max_length):
            _append_ack(pieces, ids[index], None, max_length)
            oversized += 1
    out += b"".join(pieces)
    return oversized


@cython.cfunc
@cython.exceptval(-1, check=False)
def _append_ack(
    pieces: list[bytes], ids: bytes, actions: Any, limit: cython.Py_ssize_t
) -> cython.bint:
    """Append an ACK; False, and nothing is appended, if it exceeds the limit."""
    first: cython.Py_ssize_t = len(pieces)
    pieces.append(ids)  # replaced by the head, which contains the length
    pieces.append(ids)
    if type(actions) is Action:
        _append_action(pieces, actions)
    elif actions is not None:
        for action in actions:
            _append_action(pieces, action)
    length: cython.Py_ssize_t = _BEFORE_IDS
    index: cython.Py_ssize_t
    piece: bytes
    for index in range(first + 1, len(pieces)):
        piece = pieces[index]
        length += len(piece)
    if length > limit:
        del pieces[first:]
        return False
    pieces[first] = _SHORT_HEADS[length] if length < _SHORT else _ack_head(length)
    return True
