# cython: wraparound=False
"""Buffer to assemble bytes in: heads of requests, lines of the access log. Hot code.

A list and a join would cost an object for each part, and a bytearray's ``+=`` asks each operand for
its buffer. This class only copies the bytes.

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
# Bytes: the initial capacity, and the largest capacity that an emptied buffer keeps.
_ROOM = cython.declare(cython.Py_ssize_t, 1024)
_MAX_KEPT = cython.declare(cython.Py_ssize_t, 512 * 1024)


@cython.final
@cython.cclass
class Buffer:
    """Bytes that grow at their end, in memory that is used again.

    Attributes:
        size: the number of bytes.
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
        """Append bytes; return the new size."""
        return _append(self, data, 0, len(data))

    @cython.ccall
    @cython.exceptval(-1, check=False)
    def add_part(
        self, data: bytes, start: cython.Py_ssize_t, end: cython.Py_ssize_t
    ) -> cython.Py_ssize_t:
        """Append ``data[start:end]``; return the new size.

        Raises:
            IndexError: the range is not within `data`.
        """
        if not 0 <= start <= end <= len(data):
            raise IndexError(f"bytes {start} to {end} of {len(data)}")
        return _append(self, data, start, end - start)

    @cython.ccall
    @cython.exceptval(-1, check=False)
    def add_number(
        self, number: cython.ulonglong, width: cython.Py_ssize_t = 1
    ) -> cython.Py_ssize_t:
        """Append a number in decimal, zero-padded to `width`; return the new size."""
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
        """Insert bytes before index `at`; return the new size."""
        behind: bytes = self.copy(at)
        self.truncate(at)
        self.add(data)
        return self.add(behind)

    @cython.ccall
    def copy(self, start: cython.Py_ssize_t = 0) -> bytes:
        """Return the bytes from index `start` on."""
        if not 0 <= start <= self.size:
            raise IndexError(f"bytes from {start} on of {self.size}")
        if not cython.compiled:
            return bytes(self._room[start : self.size])
        # A slice of a C pointer has no bounds check, and makes a bytes object directly.
        room = cython.declare(cython.p_char, self._room)
        return cython.cast(bytes, room[start : self.size])

    @cython.ccall
    @cython.exceptval(-1, check=False)
    def truncate(self, size: cython.Py_ssize_t) -> cython.Py_ssize_t:
        """Keep only the first `size` bytes; return the new size."""
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
    """Make room for `size` more bytes."""
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
