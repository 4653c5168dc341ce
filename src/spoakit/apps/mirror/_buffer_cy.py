# cython: wraparound=False
"""Buffer that bytes are put together in: heads of requests, lines of the access log. Hot code.

A list of pieces and a join cost an object for each piece, and a bytearray's ``+=`` asks each
operand for its buffer; this costs copying the bytes.

Plain Python that compiles to C (see ``spoakit._cython``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from spoakit import _cython as cython
    from spoakit._cython import memcpy
else:
    try:
        import cython
    except ModuleNotFoundError:
        from spoakit import _cython as cython
    if cython.compiled:
        from cython.cimports.libc.string import memcpy

COMPILED: bool = cython.compiled

_ZERO = cython.declare(cython.uint, 0x30)
# Bytes that an empty one has room for, and those that an emptied one keeps at most.
_ROOM = cython.declare(cython.Py_ssize_t, 1024)
_MAX_KEPT = cython.declare(cython.Py_ssize_t, 512 * 1024)


@cython.final
@cython.cclass
class Buffer:
    """Bytes that grow at their end, in room that is used again.

    Attributes:
        size: how many there are.
    """

    if not cython.compiled:
        _room: bytearray
        size: int

    def __init__(self) -> None:
        self._room = bytearray(_ROOM)
        self.size = 0

    @cython.ccall
    @cython.exceptval(-1, check=False)
    def add(self, data: bytes) -> cython.Py_ssize_t:
        """Append bytes; return how many there are then."""
        return _append(self, data, 0, len(data))

    @cython.ccall
    @cython.exceptval(-1, check=False)
    def add_part(
        self, data: bytes, start: cython.Py_ssize_t, end: cython.Py_ssize_t
    ) -> cython.Py_ssize_t:
        """Append ``data[start:end]``; return how many there are then.

        Raises:
            IndexError: that is not within `data`.
        """
        if not 0 <= start <= end <= len(data):
            raise IndexError(f"bytes {start} to {end} of {len(data)}")
        return _append(self, data, start, end - start)

    @cython.ccall
    @cython.exceptval(-1, check=False)
    def add_number(
        self, number: cython.ulonglong, width: cython.Py_ssize_t = 1
    ) -> cython.Py_ssize_t:
        """Append a number in decimal, with zeros in front up to a width; return as `add` does."""
        digits: cython.Py_ssize_t = 1
        rest: cython.ulonglong = number
        while rest >= 10:
            rest //= 10
            digits += 1
        digits = max(digits, width)
        _reserve(self, digits)
        room: bytearray = self._room
        at: cython.Py_ssize_t
        for at in range(self.size + digits - 1, self.size - 1, -1):
            room[at] = _ZERO + number % 10
            number //= 10
        self.size += digits
        return self.size

    @cython.ccall
    @cython.exceptval(-1, check=False)
    def insert(self, at: cython.Py_ssize_t, data: bytes) -> cython.Py_ssize_t:
        """Insert bytes in front of the one at an index; return how many there are then."""
        behind: bytes = self.copy(at)
        self.truncate(at)
        self.add(data)
        return self.add(behind)

    @cython.ccall
    def copy(self, start: cython.Py_ssize_t = 0) -> bytes:
        """Return the bytes from an index on."""
        if not 0 <= start <= self.size:
            raise IndexError(f"bytes from {start} on of {self.size}")
        if not cython.compiled:
            return bytes(self._room[start : self.size])
        # A slice of this is not checked, and is bytes at once.
        room = cython.declare(cython.p_char, self._room)
        return cython.cast(bytes, room[start : self.size])

    @cython.ccall
    @cython.exceptval(-1, check=False)
    def truncate(self, size: cython.Py_ssize_t) -> cython.Py_ssize_t:
        """Keep the first bytes only, that many; return how many there are then."""
        if not 0 <= size <= self.size:
            raise IndexError(f"the first {size} of {self.size} bytes")
        self.size = size
        if size == 0 and len(self._room) > _MAX_KEPT:
            self._room = bytearray(_ROOM)
        return size


@cython.cfunc
@cython.inline
@cython.exceptval(-1, check=False)
def _reserve(buffer: Buffer, size: cython.Py_ssize_t) -> cython.Py_ssize_t:
    """Make room for so many bytes more."""
    if buffer.size + size > len(buffer._room):
        buffer._room += bytes(buffer.size + size)
    return 0


@cython.cfunc
@cython.inline
@cython.exceptval(-1, check=False)
def _append(
    buffer: Buffer, data: bytes, start: cython.Py_ssize_t, size: cython.Py_ssize_t
) -> cython.Py_ssize_t:
    _reserve(buffer, size)
    end: cython.Py_ssize_t = buffer.size
    buffer.size = end + size
    if not cython.compiled:
        buffer._room[end : end + size] = data[start : start + size]
        return buffer.size
    room = cython.declare(cython.p_char, buffer._room)
    source: cython.p_char = data
    memcpy(cython.address(room[end]), cython.address(source[start]), size)
    return end + size
