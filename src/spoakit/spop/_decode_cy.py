# cython: wraparound=False
"""Reading SPOP's bytes: varints, typed values, NOTIFY frames, arguments. Hot code.

All reading goes through a `Cursor`, which never passes its end, whatever lengths the
bytes claim; all that can be wrong with bytes raises `InvalidFrameError`.

Plain Python that compiles to C (see ``spoakit._cython``). Sections in the comments are
those of HAProxy's SPOE.txt.
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

# An address made from its integer, far cheaper than by the constructors, which take texts and
# bytes too and ask which it is. What is declared a `type` is asked for a new object
# in C.
_IPv4 = cython.declare(type, IPv4Address)
_IPv6 = cython.declare(type, IPv6Address)


@cython.final
@cython.freelist(16)
@cython.cclass
class Cursor:
    """A place in received bytes, which every read moves on, up to ``end``.

    Args:
        data: the bytes.
        pos: the offset to start from.
        end: the offset reading must not pass; at most ``len(data)``.
    """

    data: bytes
    pos: cython.Py_ssize_t
    end: cython.Py_ssize_t
    # Messages that may begin, 0 for any number; those that have; where the next one may be.
    max_messages: cython.Py_ssize_t
    messages: cython.Py_ssize_t
    uncounted: cython.Py_ssize_t

    def __init__(self, data: bytes, pos: int, end: int) -> None:
        self.data = data
        self.pos = pos
        self.end = min(end, len(data))
        self.max_messages = self.messages = self.uncounted = 0

    def at_end(self) -> bool:
        """Return whether all has been read."""
        return self.pos >= self.end

    def tell(self) -> int:
        """Return the offset that is read next."""
        return self.pos

    def seek(self, pos: int) -> None:
        """Go back to an offset that `tell` returned."""
        self.pos = pos

    def message_name(self) -> bytes:
        """Return the name of the message that starts here, and stay in front of it.

        Raises:
            TooManyMessagesError: it is one more than there may be; see `Notify.cursor`.
            InvalidFrameError: the name cannot be read.
        """
        pos: cython.Py_ssize_t = self.pos
        if pos >= self.uncounted:
            self.uncounted = pos + 1
            self.messages += 1
            if self.messages > self.max_messages > 0:
                raise TooManyMessagesError(
                    f"a NOTIFY of more than {self.max_messages} messages, which is the limit"
                )
        name: bytes = _read_bytes(self)
        self.pos = pos
        return name

    def message_shape(self) -> tuple[bytes, list[tuple[bytes, DataType]]]:
        """Go past the message that starts here; return its name, its arguments' names and types."""
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
        """Read a length and as many bytes."""
        return _read_bytes(self)

    def value(self) -> tuple[DataType, Value]:
        """Read a typed value; text that is not UTF-8 keeps its bytes as lone surrogates."""
        kind: cython.uint = _peek(self) & _TYPE_MASK
        value: Any = _read_value(self)
        return _DATA_TYPES[kind], value


@cython.cfunc
@cython.inline
def _cursor(data: bytes, pos: cython.Py_ssize_t, end: cython.Py_ssize_t) -> Cursor:
    """Return a cursor over a part of ``data`` that is known to be in it."""
    cursor: Cursor = Cursor.__new__(Cursor)
    cursor.data = data
    cursor.pos = pos
    cursor.end = end
    if not cython.compiled:  # compiled, they are 0
        cursor.max_messages = cursor.messages = cursor.uncounted = 0
    return cursor


# --- reading ---------------------------------------------------------------------------


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
    """Read a varint (3.1): below 240 one byte, else four bits of it, then seven a byte."""
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
            f"a string at byte {start} claims {length} bytes, and {available} are left"
        )
    size: cython.Py_ssize_t = length
    end: cython.Py_ssize_t = start + size
    # Slicing a p_char makes the bytes at once, where slicing bytes would make a slice object
    # first. It is not checked: the comparison above is the check.
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
    """Read INT32, UINT32, INT64 or UINT64: HAProxy makes no difference but the sign.

    Signed ones are sign-extended to 64 bits; a peer that extends an INT32 to 32 bits
    only is understood too.
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
    """Go past a typed value without making it."""
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
    """Read the varint at ``pos`` (3.1) and return it with the offset behind it."""
    cursor = Cursor(data, pos, len(data))
    value: Any = _read_varint(cursor)
    return value, cursor.pos


def decode_value(data: bytes, pos: int = 0) -> tuple[DataType, Value, int]:
    """Read the typed value at ``pos`` (3.1): its type, itself, the offset behind it."""
    cursor = Cursor(data, pos, len(data))
    kind, value = cursor.value()
    return kind, value, cursor.pos


# --- frames ----------------------------------------------------------------------------

# The type and flags of a whole NOTIFY: FIN alone (3.2).
_WHOLE_NOTIFY = cython.declare(bytes, bytes((FrameType.NOTIFY,)) + FrameFlag.FIN.to_bytes(4, "big"))
# FRAME-LENGTH; the two together with the ids make the shortest frame.
_LENGTH_SIZE = cython.declare(cython.Py_ssize_t, 4)
_SHORTEST = cython.declare(cython.Py_ssize_t, 4 + 1 + 4 + 1 + 1)


@cython.final
@cython.freelist(256)
@cython.cclass
class Notify:
    """A whole NOTIFY (3.2.6): the ids to repeat in its ACK, and its messages, not yet read.

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
        """Whatever the one who handles the frame keeps with it; None at first."""
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
        """Let go of the messages, which have been read; return their size in bytes."""
        size: cython.Py_ssize_t = self._end - self._start
        self._data = b""
        self._start = self._end = 0
        return size

    def detach(self, cursor: Cursor) -> Cursor:
        """Keep the payload alone alive, not the whole read it came in: for frames that wait.

        Args:
            cursor: one over the messages.

        Returns:
            A cursor at the same place, to be used instead.
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
    """Append the whole NOTIFYs that stand in ``data`` from ``pos`` on to ``notifies``.

    Args:
        data: what was received.
        pos: the offset of a frame's first byte.
        limit: the largest FRAME-LENGTH that is taken.
        notifies: gains a `Notify` for each.

    Returns:
        The offset of the first frame that is something else, incomplete or too big.

    Raises:
        InvalidFrameError: a STREAM-ID or FRAME-ID cannot be read.
    """
    start: cython.Py_ssize_t = pos
    size: cython.Py_ssize_t = len(data)
    longest: cython.Py_ssize_t = limit
    length: cython.Py_ssize_t
    cursor: Cursor = _cursor(data, pos, size)
    # Not checked when it is sliced: the cursor does not pass the frame's end.
    received: cython.p_char = data
    notify: Notify
    while size - start >= _SHORTEST and _stands_at(data, start + _LENGTH_SIZE, size, _WHOLE_NOTIFY):
        length = _frame_length(data, start)
        if length > longest or length > size - start - _LENGTH_SIZE:
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
    """What an `ArgumentReader` makes of an argument."""

    SKIP = 0
    VALUE = 1  # a bool, an int or an address, as its type says
    TEXT = 2  # STRING or BINARY as str; what is not UTF-8 becomes lone surrogates
    BYTES = 3  # STRING or BINARY as bytes
    WRAPPED = 4  # STRING or BINARY as the wrapper makes it


_SKIP = cython.declare(cython.uint, 0)
_VALUE = cython.declare(cython.uint, 1)
_TEXT = cython.declare(cython.uint, 2)
_BYTES = cython.declare(cython.uint, 3)


@cython.final
@cython.cclass
class ArgumentReader:
    """Reads the arguments of every message that has one shape on the wire.

    The shape is the message's name, and the arguments' names and types. It is compared
    as bytes, so that a known message costs no look-up and no decoding of names.

    Args:
        name: the message's name.
        shape: the arguments' names and types, in their order on the wire.
        readings: what to make of each argument.
        slots: the index, below 256, of each argument's value in the list to fill.
        wrap: called with the bytes and whether they came as BINARY, for `Reading.WRAPPED`.
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
        self._head = _string(name) + bytes((len(shape),))
        self._names = tuple(_string(argument) for argument, _ in shape)
        self._kinds = bytes(kind for _, kind in shape)
        self._readings = bytes(readings)
        self._slots = bytes(slots)
        self._count = len(shape)
        self._wrap = wrap

    def read_run(
        self,
        events: Sequence[Any],
        first: int,
        most: int,
        template: list[Any],
        ids: list[bytes],
        calls: list[list[Any]],
    ) -> int:
        """Read consecutive frames that each have one message, of this shape.

        Args:
            events: what was received.
            first: the index of the first event to look at.
            most: how many frames to read at most.
            template: the values of a call before its arguments are filled in.
            ids: gains STREAM-ID and FRAME-ID of each frame.
            calls: gains the values of each frame's call.

        Returns:
            The index behind the last one that was read. It is in front of whatever is no such
            frame, or cannot be read.
        """
        index: cython.Py_ssize_t = first
        end: cython.Py_ssize_t = min(len(events), index + most)
        notify: Notify
        values: list[Any]
        while index < end:
            event: Any = events[index]
            if type(event) is not Notify:
                break
            notify = event
            values = template[:]
            if not self._fits(notify, values):
                break
            ids.append(notify._ids)
            calls.append(values)
            index += 1
        return index

    @cython.cfunc
    @cython.exceptval(-1, check=False)
    def _fits(self, notify: Notify, values: list[Any]) -> cython.bint:
        """Read a frame into ``values``, if it has one message, of this shape; see `read`."""
        cursor: Cursor = _cursor(notify._data, notify._start, notify._end)
        try:
            return self._read(cursor, values) and cursor.pos == cursor.end
        except InvalidFrameError:
            return False

    def read_alone(self, data: bytes, values: list[Any]) -> bytes | None:
        """Read a frame into ``values``, if it is a whole NOTIFY with one message of this shape.

        Args:
            data: a frame, and nothing else, as it was received.
            values: see `read`.

        Returns:
            STREAM-ID and FRAME-ID as they came; None if it is something else.

        Raises:
            InvalidFrameError: an id or an argument cannot be read.
        """
        size: cython.Py_ssize_t = len(data)
        if size < _SHORTEST or _frame_length(data, 0) != size - _LENGTH_SIZE:
            return None
        if not _stands_at(data, _LENGTH_SIZE, size, _WHOLE_NOTIFY):
            return None
        start: cython.Py_ssize_t = _LENGTH_SIZE + len(_WHOLE_NOTIFY)
        cursor: Cursor = _cursor(data, start, size)
        _read_varint(cursor)
        _read_varint(cursor)
        behind: cython.Py_ssize_t = cursor.pos
        if not self._read(cursor, values) or cursor.pos != size:
            return None
        # Not checked: the cursor has been there.
        received: cython.p_char = data
        return received[start:behind]

    def read(self, cursor: Cursor, values: list[Any]) -> bool:
        """Read the message at the cursor into ``values``, if it has this shape.

        Returns:
            Whether it has; if not, the cursor stays where it was, and ``values`` may
            hold arguments that happened to fit.

        Raises:
            InvalidFrameError: an argument cannot be read.
        """
        return self._read(cursor, values)

    @cython.cfunc
    @cython.exceptval(-1, check=False)
    def _read(self, cursor: Cursor, values: list[Any]) -> cython.bint:
        start: cython.Py_ssize_t = cursor.pos
        data: bytes = cursor.data
        end: cython.Py_ssize_t = cursor.end
        if not _stands_at(data, start, end, self._head):
            return False
        cursor.pos = start + len(self._head)
        names: tuple[bytes, ...] = self._names
        name: bytes
        kinds: bytes = self._kinds
        index: cython.Py_ssize_t
        kind: cython.uint
        for index in range(self._count):
            name = names[index]
            if not _stands_at(data, cursor.pos, end, name):
                cursor.pos = start
                return False
            cursor.pos += len(name)
            kind = kinds[index]
            if _peek(cursor) & _TYPE_MASK != kind:
                cursor.pos = start
                return False
            self._take(cursor, index, values)
        return True

    @cython.cfunc
    @cython.inline
    @cython.exceptval(-1, check=False)
    def _take(
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
def _stands_at(
    data: bytes, pos: cython.Py_ssize_t, end: cython.Py_ssize_t, expected: bytes
) -> cython.bint:
    """Return what ``data.startswith(expected, pos, end)`` does, without making objects of both."""
    if not cython.compiled:
        return data.startswith(expected, pos, end)
    size: cython.Py_ssize_t = len(expected)
    if size > end - pos:
        return False
    # Not checked when they are read: the comparison above is the check.
    received: cython.p_char = data
    known: cython.p_char = expected
    same: cython.Py_ssize_t = 0
    while same < size and received[pos + same] == known[same]:
        same += 1
    return same == size


@cython.cfunc
def _string(data: bytes) -> bytes:
    """Return what a known name looks like on the wire: encoders are a module above."""
    size: cython.Py_ssize_t = len(data)
    if size < 240:
        return bytes((size,)) + data
    high: cython.Py_ssize_t = (size - 240) >> 4
    if high >= 128:
        raise InvalidFrameError(f"a name of {size} bytes")
    return bytes((0xF0 | (size & 0x0F), high)) + data
