# cython: wraparound=False
"""Decoders of SPOP: varints, typed values, NOTIFY frames, arguments. Hot code.

All of them read through a `Cursor`, which never passes its end, whatever lengths the bytes
claim. Malformed bytes raise `InvalidFrameError`.

Plain Python that compiles to C (see ``spoakit._cython``). Section numbers refer to HAProxy's
SPOE.txt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import IntEnum
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING, Any, TypeAlias

from spoakit.exceptions import InvalidFrameError, TooManyMessagesError
from spoakit.spop.constants import DataType, FrameFlag, FrameType

if TYPE_CHECKING:
    from spoakit import _cython as cython
else:
    try:
        import cython
    except ModuleNotFoundError:
        from spoakit import _cython as cython

Value: TypeAlias = bool | int | str | bytes | IPv4Address | IPv6Address | None
"""A value of an argument or a variable."""

COMPILED: bool = cython.compiled
"""True if the protocol runs compiled."""

# The low four bits of a typed value's first byte, and the flag of a true BOOL (3.1).
_TYPE_MASK = cython.declare(cython.uint, 0x0F)
_TRUE = cython.declare(cython.uint, 0x10)
_MAX = cython.declare(cython.ulonglong, 0xFFFFFFFFFFFFFFFF)

# The numbers of DataType as C integers.
_NULL = cython.declare(cython.uint, 0)
_BOOL = cython.declare(cython.uint, 1)
_INT32 = cython.declare(cython.uint, 2)
_INT64 = cython.declare(cython.uint, 4)
_UINT64 = cython.declare(cython.uint, 5)
_IPV4 = cython.declare(cython.uint, 6)
_IPV6 = cython.declare(cython.uint, 7)
_STRING = cython.declare(cython.uint, 8)
_BINARY = cython.declare(cython.uint, 9)
_DATA_TYPES: tuple[DataType, ...] = tuple(DataType)

# `__new__` and setting `_ip` is far cheaper than calling the class, which accepts text, bytes and
# integers and tests for each. Declared as `type`, the classes create their objects in C.
_IPv4 = cython.declare(type, IPv4Address)
_IPv6 = cython.declare(type, IPv6Address)


@cython.final
@cython.freelist(16)
@cython.cclass
class Cursor:
    """Position in received bytes; every method that reads advances it, up to ``end``.

    Args:
        data: the bytes.
        pos: the offset to start from.
        end: the offset that is never passed; at most ``len(data)``.
    """

    data: bytes
    pos: cython.Py_ssize_t
    end: cython.Py_ssize_t
    max_messages: cython.Py_ssize_t  # 0 for any number
    messages: cython.Py_ssize_t  # counted so far
    uncounted: cython.Py_ssize_t  # the first offset whose message has not been counted

    def __init__(self, data: bytes, pos: int, end: int) -> None:
        self.data = data
        self.pos = pos
        self.end = min(end, len(data))
        self.max_messages = self.messages = self.uncounted = 0

    def at_end(self) -> bool:
        """Return whether the cursor is at its end."""
        return self.pos >= self.end

    def tell(self) -> int:
        """Return the offset of the next byte."""
        return self.pos

    def seek(self, pos: int) -> None:
        """Move to an offset that `tell` returned."""
        self.pos = pos

    def message_name(self) -> bytes:
        """Return the name of the message that starts here, without moving.

        Raises:
            TooManyMessagesError: the message exceeds the limit of `Notify.cursor`.
            InvalidFrameError: the name is malformed.
        """
        pos: cython.Py_ssize_t = self.pos
        if pos >= self.uncounted:
            self.uncounted = pos + 1
            self.messages += 1
            if self.messages > self.max_messages > 0:
                raise TooManyMessagesError(
                    f"a NOTIFY exceeds the limit of {self.max_messages} messages"
                )
        name: bytes = _read_bytes(self)
        self.pos = pos
        return name

    def message_shape(self) -> tuple[bytes, list[tuple[bytes, DataType]]]:
        """Skip the message that starts here; return its name, its arguments' names and types."""
        name: bytes = _read_bytes(self)
        count: cython.uint = _read_byte(self)
        shape = []
        while count > 0:
            count -= 1
            argument: bytes = _read_bytes(self)
            kind: cython.uint = _peek(self) & _TYPE_MASK
            _skip_value(self)
            shape.append((argument, _DATA_TYPES[kind]))
        return name, shape

    def varint(self) -> int:
        """Read an unsigned integer of up to 64 bits."""
        return _read_varint(self)

    def byte(self) -> int:
        """Read one byte."""
        return _read_byte(self)

    def string(self) -> bytes:
        """Read a string: its length as a varint, then its bytes."""
        return _read_bytes(self)

    def value(self) -> tuple[DataType, Value]:
        """Read a typed value; text that is not UTF-8 keeps its bytes as lone surrogates."""
        kind: cython.uint = _peek(self) & _TYPE_MASK
        value: Any = _read_value(self)
        return _DATA_TYPES[kind], value


@cython.cfunc
@cython.inline
def _cursor(data: bytes, pos: cython.Py_ssize_t, end: cython.Py_ssize_t) -> Cursor:
    """Return a cursor over a part of ``data``, without checking its offsets."""
    cursor: Cursor = Cursor.__new__(Cursor)
    cursor.data = data
    cursor.pos = pos
    cursor.end = end
    if not cython.compiled:  # C initialises them to 0
        cursor.max_messages = cursor.messages = cursor.uncounted = 0
    return cursor


# --- values ---------------------------------------------------------------------------


@cython.cfunc
@cython.exceptval(-1, check=False)
def _truncated(cursor: Cursor) -> cython.Py_ssize_t:
    raise InvalidFrameError(f"the frame ends within a field at byte {cursor.pos}")


@cython.cfunc
@cython.inline
@cython.exceptval(0xFFFF, check=False)
def _peek(cursor: Cursor) -> cython.uint:
    data: bytes = cursor.data
    if cursor.pos >= cursor.end:
        _truncated(cursor)
    return data[cursor.pos]


@cython.cfunc
@cython.inline
@cython.exceptval(0xFFFF, check=False)
def _read_byte(cursor: Cursor) -> cython.uint:
    value: cython.uint = _peek(cursor)
    cursor.pos += 1
    return value


@cython.cfunc
@cython.exceptval(0xFFFFFFFFFFFFFFFF, check=True)
def _read_varint(cursor: Cursor) -> cython.ulonglong:
    """Read a varint (3.1): one byte below 240, otherwise its low four bits, then seven a byte."""
    value: cython.ulonglong = _read_byte(cursor)
    if value < 240:
        return value
    shift: cython.uint = 4
    byte: cython.ulonglong = 128
    part: cython.ulonglong
    while byte >= 128:
        byte = _read_byte(cursor)
        if shift > 53 and (shift > 60 or byte > 15 or (byte << shift) > _MAX - value):
            raise InvalidFrameError(f"a varint at byte {cursor.pos} exceeds 64 bits")
        part = byte << shift
        value += part
        shift += 7
    return value


@cython.cfunc
@cython.inline
def _read_bytes(cursor: Cursor) -> bytes:
    length: cython.ulonglong = _read_varint(cursor)
    start: cython.Py_ssize_t = cursor.pos
    available: cython.ulonglong = cursor.end - start
    if length > available:
        raise InvalidFrameError(
            f"a string at byte {start} claims {length} bytes, but only {available} are left"
        )
    size: cython.Py_ssize_t = length
    end: cython.Py_ssize_t = start + size
    # Slicing a p_char avoids the slice object that slicing bytes would create. It checks no
    # bounds: the comparison above does.
    data: cython.p_char = cursor.data
    cursor.pos = end
    return data[start:end]


@cython.cfunc
def _read_ipv4(cursor: Cursor) -> object:
    pos: cython.Py_ssize_t = cursor.pos
    if cursor.end - pos < 4:
        _truncated(cursor)
    data: bytes = cursor.data
    number: cython.ulonglong = data[pos]
    number = number << 8 | data[pos + 1]
    number = number << 8 | data[pos + 2]
    number = number << 8 | data[pos + 3]
    cursor.pos = pos + 4
    address: Any = _IPv4.__new__(_IPv4)
    address._ip = number
    return address


@cython.cfunc
def _read_ipv6(cursor: Cursor) -> object:
    pos: cython.Py_ssize_t = cursor.pos
    if cursor.end - pos < 16:
        _truncated(cursor)
    cursor.pos = pos + 16
    address: Any = _IPv6.__new__(_IPv6)
    address._ip = int.from_bytes(cursor.data[pos : pos + 16], "big")
    address._scope_id = None
    return address


@cython.cfunc
def _read_integer(cursor: Cursor, kind: cython.uint) -> object:
    """Read INT32, UINT32, INT64 or UINT64, which differ in their sign only.

    HAProxy extends signed integers to 64 bits. An INT32 that a peer extends to 32 bits only is
    accepted too.
    """
    unsigned: cython.ulonglong = _read_varint(cursor)
    number: Any = unsigned
    if kind in (_INT64, _INT32):
        if unsigned >= 0x8000000000000000:
            number = number - 0x10000000000000000
        elif kind == _INT32 and 0x80000000 <= unsigned < 0x100000000:
            number = number - 0x100000000
    return number


@cython.cfunc
def _read_value(cursor: Cursor) -> object:
    """Read a typed value (3.1)."""
    first: cython.uint = _read_byte(cursor)
    kind: cython.uint = first & _TYPE_MASK
    if kind == _STRING:
        return _read_bytes(cursor).decode("utf-8", "surrogateescape")
    if kind == _BINARY:
        return _read_bytes(cursor)
    if kind == _NULL:
        return None
    if kind == _BOOL:
        return (first & _TRUE) != 0
    if kind <= _UINT64:
        return _read_integer(cursor, kind)
    if kind == _IPV4:
        return _read_ipv4(cursor)
    if kind == _IPV6:
        return _read_ipv6(cursor)
    raise InvalidFrameError(f"unknown data type {kind} at byte {cursor.pos - 1}")


@cython.cfunc
@cython.exceptval(-1, check=False)
def _skip_value(cursor: Cursor) -> cython.Py_ssize_t:
    """Skip a typed value without creating it."""
    kind: cython.uint = _read_byte(cursor) & _TYPE_MASK
    size: cython.ulonglong = 0
    if kind >= _STRING:
        if kind > _BINARY:
            raise InvalidFrameError(f"unknown data type {kind} at byte {cursor.pos - 1}")
        size = _read_varint(cursor)
    elif kind == _IPV4:
        size = 4
    elif kind == _IPV6:
        size = 16
    elif kind > _BOOL:
        _read_varint(cursor)
    available: cython.ulonglong = cursor.end - cursor.pos
    if size > available:
        _truncated(cursor)
    length: cython.Py_ssize_t = size
    cursor.pos += length
    return 0


def decode_varint(data: bytes, pos: int = 0) -> tuple[int, int]:
    """Return the varint at ``pos`` (3.1), and the offset after it."""
    cursor = Cursor(data, pos, len(data))
    value: Any = _read_varint(cursor)
    return value, cursor.pos


def decode_value(data: bytes, pos: int = 0) -> tuple[DataType, Value, int]:
    """Return the type and value at ``pos`` (3.1), and the offset after them."""
    cursor = Cursor(data, pos, len(data))
    kind, value = cursor.value()
    return kind, value, cursor.pos


# --- frames ----------------------------------------------------------------------------

# Type and flags of an unfragmented NOTIFY: FIN alone (3.2).
_WHOLE_NOTIFY = cython.declare(bytes, bytes((FrameType.NOTIFY,)) + FrameFlag.FIN.to_bytes(4, "big"))
# FRAME-LENGTH; type, flags and two ids of one byte each make the shortest frame.
_LENGTH_SIZE = cython.declare(cython.Py_ssize_t, 4)
_SHORTEST = cython.declare(cython.Py_ssize_t, 4 + 1 + 4 + 1 + 1)


@cython.final
@cython.freelist(256)
@cython.cclass
class Notify:
    """Unfragmented NOTIFY (3.2.6): the ids to repeat in its ACK, and its messages as bytes.

    Args:
        ids: STREAM-ID and FRAME-ID as they came.
        data: bytes that hold the payload.
        start: where in ``data`` the payload starts.
        end: where it ends.
    """

    _ids: bytes
    _data: bytes
    _start: cython.Py_ssize_t
    _end: cython.Py_ssize_t
    _state: object

    def __init__(self, ids: bytes, data: bytes, start: int, end: int) -> None:
        self._ids = ids
        self._data = data
        self._start = start
        self._end = end
        self._state = None

    @property
    def state(self) -> Any:
        """Object that the dispatcher keeps with the frame; None at first."""
        return self._state

    @state.setter
    def state(self, state: Any) -> None:
        self._state = state

    @property
    def ids(self) -> bytes:
        """STREAM-ID and FRAME-ID as they came, to be repeated by the ACK."""
        return self._ids

    @property
    def stream_id(self) -> int:
        """The number HAProxy gave the stream; 0 is legal."""
        return decode_varint(self._ids)[0]

    @property
    def frame_id(self) -> int:
        """The number of the frame in its stream."""
        return decode_varint(self._ids, decode_varint(self._ids)[1])[0]

    @property
    def payload(self) -> bytes:
        """The messages as they came (3.2: LIST-OF-MESSAGES)."""
        return self._data[self._start : self._end]

    def cursor(self, max_messages: int = 0) -> Cursor:
        """Return a cursor over the messages.

        Args:
            max_messages: `Cursor.message_name` raises for more of them; 0 allows any number.
        """
        cursor: Cursor = _cursor(self._data, self._start, self._end)
        cursor.max_messages = max_messages
        return cursor

    def release(self) -> int:
        """Free the messages once they are parsed; return their size in bytes."""
        size: cython.Py_ssize_t = self._end - self._start
        self._data = b""
        self._start = self._end = 0
        return size

    def detach(self, cursor: Cursor) -> Cursor:
        """Copy the payload, so that a frame that waits does not keep the whole read in memory.

        Args:
            cursor: a cursor over the messages.

        Returns:
            A cursor at the same position in the copy, which replaces the given one.
        """
        start: cython.Py_ssize_t = self._start
        self._data = self._data[start : self._end]
        self._end -= start
        self._start = 0
        moved: Cursor = _cursor(self._data, cursor.pos - start, self._end)
        moved.max_messages = cursor.max_messages
        moved.messages = cursor.messages
        moved.uncounted = cursor.uncounted - start
        return moved

    def __repr__(self) -> str:
        size = self._end - self._start
        return f"<Notify stream {self.stream_id} frame {self.frame_id}, {size} bytes>"


@cython.cfunc
@cython.inline
@cython.exceptval(-1, check=False)
def _frame_length(data: bytes, start: cython.Py_ssize_t) -> cython.Py_ssize_t:
    length: cython.Py_ssize_t = data[start]
    length = length << 8 | data[start + 1]
    length = length << 8 | data[start + 2]
    return length << 8 | data[start + 3]


def split_notifies(data: bytes, pos: int, limit: int, notifies: list[Any]) -> int:
    """Append the unfragmented NOTIFYs in ``data`` from ``pos`` on to ``notifies``.

    Args:
        data: bytes from the engine.
        pos: the offset of a frame's first byte.
        limit: the largest FRAME-LENGTH that is accepted.
        notifies: a `Notify` is appended for each.

    Returns:
        The offset of the first frame that is of another type, incomplete or too big.

    Raises:
        InvalidFrameError: a STREAM-ID or FRAME-ID is malformed.
    """
    start: cython.Py_ssize_t = pos
    size: cython.Py_ssize_t = len(data)
    max_length: cython.Py_ssize_t = limit
    length: cython.Py_ssize_t
    cursor: Cursor = _cursor(data, pos, size)
    # Slicing a p_char checks no bounds: the cursor does not pass the frame's end.
    received: cython.p_char = data
    notify: Notify
    while size - start >= _SHORTEST and _startswith(
        data, start + _LENGTH_SIZE, size, _WHOLE_NOTIFY
    ):
        length = _frame_length(data, start)
        if length > max_length or length > size - start - _LENGTH_SIZE:
            break
        cursor.end = start + _LENGTH_SIZE + length
        cursor.pos = start + _LENGTH_SIZE + 5
        _read_varint(cursor)
        _read_varint(cursor)
        notify = Notify.__new__(Notify)
        notify._ids = received[start + _LENGTH_SIZE + 5 : cursor.pos]
        notify._data = data
        notify._start = cursor.pos
        notify._end = cursor.end
        notify._state = None
        notifies.append(notify)
        start = cursor.end
    return start


# --- arguments -------------------------------------------------------------------------


class Reading(IntEnum):
    """Python value that an `ArgumentReader` makes of an argument."""

    SKIP = 0
    VALUE = 1  # a bool, an int or an address, by the wire type
    TEXT = 2  # STRING or BINARY as str; bytes that are not UTF-8 become lone surrogates
    BYTES = 3  # STRING or BINARY as bytes
    WRAPPED = 4  # STRING or BINARY as the wrapper makes it


_SKIP = cython.declare(cython.uint, 0)
_VALUE = cython.declare(cython.uint, 1)
_TEXT = cython.declare(cython.uint, 2)
_BYTES = cython.declare(cython.uint, 3)


@cython.final
@cython.cclass
class ArgumentReader:
    """Parser for messages of one shape: one message name, its arguments' names and types.

    The shape is compared as bytes, so that a known message needs neither a look-up nor the
    decoding of names.

    Args:
        name: the message's name.
        shape: the arguments' names and types, in their order on the wire.
        readings: the Python value to make of each argument.
        slots: the index, below 256, of each argument's value in the list to fill.
        wrap: for `Reading.WRAPPED`, called with the bytes, and True if they are a BINARY.
    """

    _head: bytes
    _names: tuple[bytes, ...]
    _kinds: bytes
    _readings: bytes
    _slots: bytes
    _count: cython.Py_ssize_t
    _wrap: object

    def __init__(
        self,
        name: bytes,
        shape: Sequence[tuple[bytes, DataType]],
        readings: Sequence[Reading],
        slots: Sequence[int],
        wrap: Callable[[bytes, bool], object],
    ) -> None:
        # MESSAGE-NAME and NB-ARGS (3.2), compared at once.
        self._head = _encode_name(name) + bytes((len(shape),))
        self._names = tuple(_encode_name(argument) for argument, _ in shape)
        self._kinds = bytes(kind for _, kind in shape)
        self._readings = bytes(readings)
        self._slots = bytes(slots)
        self._count = len(shape)
        self._wrap = wrap

    def parse_run(
        self,
        events: Sequence[Any],
        first: int,
        max_frames: int,
        template: list[Any],
        ids: list[bytes],
        calls: list[list[Any]],
    ) -> int:
        """Parse consecutive frames that each have exactly one message, of this shape.

        Args:
            events: events of a connection.
            first: the index of the first event to parse.
            max_frames: the largest number of frames to parse.
            template: the values of a call before its arguments are filled in.
            ids: STREAM-ID and FRAME-ID of each frame are appended.
            calls: the values of each frame's call are appended.

        Returns:
            The index after the last frame that was parsed. Parsing stops at the first event that
            does not have this shape, or is malformed.
        """
        index: cython.Py_ssize_t = first
        end: cython.Py_ssize_t = min(len(events), index + max_frames)
        notify: Notify
        values: list[Any]
        while index < end:
            event: Any = events[index]
            if type(event) is not Notify:
                break
            notify = event
            values = template[:]
            if not self._parse_frame(notify, values):
                break
            ids.append(notify._ids)
            calls.append(values)
            index += 1
        return index

    @cython.cfunc
    @cython.exceptval(-1, check=False)
    def _parse_frame(self, notify: Notify, values: list[Any]) -> cython.bint:
        """Parse a frame into ``values``; False if it is not exactly one message of this shape."""
        cursor: Cursor = _cursor(notify._data, notify._start, notify._end)
        try:
            return self._parse(cursor, values) and cursor.pos == cursor.end
        except InvalidFrameError:
            return False

    def parse_single(self, data: bytes, values: list[Any]) -> bytes | None:
        """Parse a read that is exactly one NOTIFY with one message of this shape.

        Args:
            data: the bytes of one read.
            values: see `parse`.

        Returns:
            STREAM-ID and FRAME-ID as they came; None if the read is anything else.

        Raises:
            InvalidFrameError: an id or an argument is malformed.
        """
        size: cython.Py_ssize_t = len(data)
        if size < _SHORTEST or _frame_length(data, 0) != size - _LENGTH_SIZE:
            return None
        if not _startswith(data, _LENGTH_SIZE, size, _WHOLE_NOTIFY):
            return None
        start: cython.Py_ssize_t = _LENGTH_SIZE + len(_WHOLE_NOTIFY)
        cursor: Cursor = _cursor(data, start, size)
        _read_varint(cursor)
        _read_varint(cursor)
        ids_end: cython.Py_ssize_t = cursor.pos
        if not self._parse(cursor, values) or cursor.pos != size:
            return None
        # Slicing a p_char checks no bounds: the cursor has been there.
        received: cython.p_char = data
        return received[start:ids_end]

    def parse(self, cursor: Cursor, values: list[Any]) -> bool:
        """Parse the message at the cursor into ``values``, if it has this shape.

        Returns:
            False if it has another shape. Then the cursor has not moved, and ``values`` may
            hold some of the arguments.

        Raises:
            InvalidFrameError: an argument is malformed.
        """
        return self._parse(cursor, values)

    @cython.cfunc
    @cython.exceptval(-1, check=False)
    def _parse(self, cursor: Cursor, values: list[Any]) -> cython.bint:
        start: cython.Py_ssize_t = cursor.pos
        data: bytes = cursor.data
        end: cython.Py_ssize_t = cursor.end
        if not _startswith(data, start, end, self._head):
            return False
        cursor.pos = start + len(self._head)
        names: tuple[bytes, ...] = self._names
        name: bytes
        kinds: bytes = self._kinds
        index: cython.Py_ssize_t
        kind: cython.uint
        for index in range(self._count):
            name = names[index]
            if not _startswith(data, cursor.pos, end, name):
                cursor.pos = start
                return False
            cursor.pos += len(name)
            kind = kinds[index]
            if _peek(cursor) & _TYPE_MASK != kind:
                cursor.pos = start
                return False
            self._store(cursor, index, values)
        return True

    @cython.cfunc
    @cython.inline
    @cython.exceptval(-1, check=False)
    def _store(
        self, cursor: Cursor, index: cython.Py_ssize_t, values: list[Any]
    ) -> cython.Py_ssize_t:
        reading: cython.uint = self._readings[index]
        if reading == _SKIP:
            return _skip_value(cursor)
        slot: cython.Py_ssize_t = self._slots[index]
        if reading == _VALUE:
            values[slot] = _read_value(cursor)
            return 0
        kind: cython.uint = _read_byte(cursor) & _TYPE_MASK
        raw: bytes = _read_bytes(cursor)
        if reading == _BYTES:
            values[slot] = raw
        elif reading == _TEXT:
            values[slot] = raw.decode("utf-8", "surrogateescape")
        else:
            wrap: Any = self._wrap
            values[slot] = wrap(raw, kind == _BINARY)
        return 0


@cython.cfunc
@cython.inline
@cython.exceptval(-1, check=False)
def _startswith(
    data: bytes, pos: cython.Py_ssize_t, end: cython.Py_ssize_t, expected: bytes
) -> cython.bint:
    """Do what ``data.startswith(expected, pos, end)`` does, without a call into Python."""
    if not cython.compiled:
        return data.startswith(expected, pos, end)
    size: cython.Py_ssize_t = len(expected)
    if size > end - pos:
        return False
    # Indexing a p_char checks no bounds: the comparison above does.
    received: cython.p_char = data
    known: cython.p_char = expected
    same: cython.Py_ssize_t = 0
    while same < size and received[pos + same] == known[same]:
        same += 1
    return same == size


@cython.cfunc
def _encode_name(data: bytes) -> bytes:
    """Encode a name behind its length; the module of the encoders imports this one."""
    size: cython.Py_ssize_t = len(data)
    if size < 240:
        return bytes((size,)) + data
    high: cython.Py_ssize_t = (size - 240) >> 4
    if high >= 128:
        raise InvalidFrameError(f"a name of {size} bytes is too long")
    return bytes((0xF0 | (size & 0x0F), high)) + data
