# cython: wraparound=False
"""The reputation table: which sources list an address, and with what. Hot code.

Strategy: the ranges of all sources are cut where any of them begins or ends, so that one search
finds what all of them say. What remains are ascending *starts*, each with the number of the
*combination* that holds up to the next start; number 0 is that of no source.

A lookup costs more waiting for memory than computing, so what it touches is kept small. An index
of where each 16-bit prefix of IPv4 begins leaves the starts 16 bits; of IPv6, the upper half of
every 64th start is a *fence*, and those are few enough to stay in the processor's cache.

The table is one block of memory that never changes, made by a `TableBuilder` and mapped by all
workers. Numbers are in the machine's byte order; the sections come in this order:

    header        see ``HEADER``
    IPv6 starts   64 bits each: the upper halves; the lower halves; the fences
    IPv4 index    32 bits each: where the starts of each prefix begin, and where the last ones end
    offsets       32 bits each: where each combination's marks begin, and where the last ones end
    marks         32 bits each: source << 24 | value + 1
    IPv4 starts   32 bits each: lower half << 16 | lower half of the combination's number
    numbers       16 bits each: the combinations of the IPv6 starts, the lower halves; where there
                  are over 2**16 combinations, the upper halves for IPv4 and for IPv6

Plain Python that compiles to C (see ``spoakit._cython``). Bounds checks stay on: a block that was
tampered with after it was validated gives wrong answers, IndexErrors or ValueErrors, no more.
"""

from __future__ import annotations

import mmap
import os
import sys
import zlib
from bisect import bisect_left, bisect_right
from ipaddress import IPv4Address, IPv6Address
from struct import Struct
from typing import TYPE_CHECKING, Any, Literal

from spoakit.exceptions import SpoakitError

if TYPE_CHECKING:
    from spoakit import _cython as cython
else:
    try:
        import cython
    except ModuleNotFoundError:
        from spoakit import _cython as cython

COMPILED: bool = cython.compiled

# Magic, CRC-32 of all that follows it, byte order, counts of IPv4 starts, IPv6 starts,
# combinations, marks and listed ranges.
HEADER: Struct = Struct("=8sIIQQQQQ")
MAGIC: bytes = b"spoaip\x001"
BYTE_ORDER: int = 0x01020304
CHECKED_FROM: int = 12  # what comes before is the magic and the checksum itself
INDEX_SIZE: int = 2**16 + 1
FENCE_DISTANCE: int = 64
NARROW: int = 2**16  # combinations up to this have numbers of 16 bits
VALUE_BITS: int = 24
VALUE_MASK: int = 2**VALUE_BITS - 1

_IPv4 = cython.declare(type, IPv4Address)
_IPv6 = cython.declare(type, IPv6Address)
_FENCE_DISTANCE = cython.declare(cython.Py_ssize_t, FENCE_DISTANCE)
_LOWER_HALF: int = 2**64 - 1
# The upper 96 bits of an IPv4 address in an IPv6 address (RFC 4291, 2.5.5.2).
_MAPPED = cython.declare(cython.ulonglong, 0xFFFF)


class TableError(SpoakitError):
    """A table cannot be used; the text says which and why."""


@cython.final
@cython.cclass
class Table:
    """A table in shared memory.

    Args:
        memory: the whole block, which is kept until `close`.
        name: what errors call it.

    Raises:
        TableError: the block is no table, or is damaged.
    """

    _upper = cython.declare("const unsigned long long[::1]")
    _lower = cython.declare("const unsigned long long[::1]")
    _fences = cython.declare("const unsigned long long[::1]")
    _index = cython.declare("const unsigned int[::1]")
    _offsets = cython.declare("const unsigned int[::1]")
    _marks = cython.declare("const unsigned int[::1]")
    _starts = cython.declare("const unsigned int[::1]")
    _numbers = cython.declare("const unsigned short[::1]")
    _upper_numbers4 = cython.declare("const unsigned short[::1]")
    _upper_numbers6 = cython.declare("const unsigned short[::1]")
    _wide: cython.bint
    _listed: cython.Py_ssize_t
    _combinations: cython.Py_ssize_t
    _size: cython.Py_ssize_t
    _memory: Any

    def __init__(self, memory: Any, name: str = "table") -> None:
        view = memoryview(memory).cast("B")
        ipv4, ipv6, combinations, marks, self._listed = _validate(view, name)
        self._combinations = combinations
        self._wide = combinations > NARROW
        self._size = len(view)
        self._memory = memory
        sections = _Sections(view)
        self._upper = sections.take("Q", ipv6)
        self._lower = sections.take("Q", ipv6)
        self._fences = sections.take("Q", fences(ipv6))
        self._index = sections.take("I", INDEX_SIZE)
        self._offsets = sections.take("I", combinations + 1)
        self._marks = sections.take("I", marks)
        self._starts = sections.take("I", ipv4)
        self._numbers = sections.take("H", ipv6)
        self._upper_numbers4 = sections.take("H", ipv4 if self._wide else 0)
        self._upper_numbers6 = sections.take("H", ipv6 if self._wide else 0)

    @staticmethod
    def open(source: str | os.PathLike[str] | int) -> Table:
        """Map a table and validate it, which takes about 20 ms for 1.4 million ranges.

        It may be called in any thread; most of the time the interpreter is free for others.

        Args:
            source: the path, or a file descriptor, such as a memfd's, which stays open. The file
                must not change as long as the table is in use: replace it, do not rewrite it.

        Raises:
            TableError: it cannot be read, is no table, or is damaged.
        """
        name = f"table {source!r}" if isinstance(source, int) else f"table {os.fspath(source)!r}"
        try:
            if isinstance(source, int):
                return Table(_map(source), name)
            with open(source, "rb") as file:
                return Table(_map(file.fileno()), name)
        except OSError as error:
            raise TableError(f"{name} cannot be read: {error.strerror}") from None

    @property
    def size(self) -> int:
        """The size in bytes."""
        return self._size

    @property
    def combinations(self) -> int:
        """How many combinations there are, the empty one, number 0, included."""
        return self._combinations

    def __len__(self) -> int:
        """How many ranges there are that do not overlap and are listed by any source."""
        return self._listed

    def lookup(self, address: IPv4Address | IPv6Address) -> int:
        """Return the number of the combination that lists an address, 0 for none.

        IPv4 addresses mapped into IPv6 (::ffff:192.0.2.1) are looked up as IPv4.

        Raises:
            TypeError: it is not an address.
        """
        of: Any = address
        if isinstance(address, _IPv4):
            return self._lookup_ipv4(of._ip)
        if not isinstance(address, _IPv6):
            raise TypeError(f"an IPv4Address or IPv6Address is looked up, not {address!r}")
        number: int = of._ip
        upper: cython.ulonglong = number >> 64
        lower: cython.ulonglong = number & _LOWER_HALF
        if upper == 0 and lower >> 32 == _MAPPED:
            return self._lookup_ipv4(lower & 0xFFFFFFFF)
        return self._lookup_ipv6(upper, lower)

    def combination(self, number: int) -> tuple[tuple[int, int], ...]:
        """Return the sources of a combination, ascending, each with its value.

        Raises:
            IndexError: the table has no such combination.
        """
        if not 0 <= number < self._combinations:
            raise IndexError(f"combination {number} of {self._combinations}")
        return tuple(
            (self._marks[at] >> VALUE_BITS, (self._marks[at] & VALUE_MASK) - 1)
            for at in range(self._offsets[number], self._offsets[number + 1])
        )

    @cython.cfunc
    def _lookup_ipv4(self, address: cython.ulonglong) -> int:
        prefix: cython.Py_ssize_t = address >> 16
        # Above every start that is not above the address, whatever number it has.
        sought: cython.uint = (address & 0xFFFF) << 16 | 0xFFFF
        low: cython.Py_ssize_t = self._index[prefix]
        high: cython.Py_ssize_t = self._index[prefix + 1]
        middle: cython.Py_ssize_t
        if not cython.compiled:
            low = bisect_right(self._starts, sought, low, high)
        else:
            while low < high:
                middle = (low + high) >> 1
                if sought < self._starts[middle]:
                    high = middle
                else:
                    low = middle + 1
        number: cython.uint = self._starts[low - 1] & 0xFFFF
        if self._wide:
            number |= self._upper_numbers4[low - 1] << 16
        return number

    @cython.cfunc
    def _lookup_ipv6(self, upper: cython.ulonglong, lower: cython.ulonglong) -> int:
        found: cython.Py_ssize_t
        if not cython.compiled:
            found = self._bisect_ipv6(upper, lower)
        else:
            found = self._search_ipv6(upper, lower)
        number: cython.uint = self._numbers[found - 1]
        if self._wide:
            number |= self._upper_numbers6[found - 1] << 16
        return number

    def _bisect_ipv6(self, upper: int, lower: int) -> int:
        """Do what `_search_ipv6` does: Python's own loops would be slow, and fences no gain."""
        high = bisect_right(self._upper, upper)
        if self._upper[high - 1] != upper:
            return high
        return bisect_right(self._lower, lower, bisect_left(self._upper, upper, 0, high), high)

    @cython.cfunc
    @cython.exceptval(-1)
    def _search_ipv6(self, upper: cython.ulonglong, lower: cython.ulonglong) -> cython.Py_ssize_t:
        """Return how many starts are not above an address."""
        low: cython.Py_ssize_t
        high: cython.Py_ssize_t
        middle: cython.Py_ssize_t
        start: cython.ulonglong
        # The address is behind one fence and before the next. Where many ranges begin in its /64,
        # several fences are its upper half, and it may be before any of them.
        high = self._fences_up_to(upper)
        low = high - 1
        if self._fences[low] == upper:
            low = self._fences_up_to(upper - 1) - 1 if upper > 0 else 0
        low *= _FENCE_DISTANCE
        high = min(high * _FENCE_DISTANCE, len(self._upper))
        while low < high:
            middle = (low + high) >> 1
            start = self._upper[middle]
            if upper < start or (upper == start and lower < self._lower[middle]):
                high = middle
            else:
                low = middle + 1
        return low

    @cython.cfunc
    @cython.exceptval(-1)
    def _fences_up_to(self, upper: cython.ulonglong) -> cython.Py_ssize_t:
        """Return how many fences are not above this."""
        low: cython.Py_ssize_t = 0
        high: cython.Py_ssize_t = len(self._fences)
        middle: cython.Py_ssize_t
        while low < high:
            middle = (low + high) >> 1
            if upper < self._fences[middle]:
                high = middle
            else:
                low = middle + 1
        return low


class _Sections:
    """Cut a block into its sections, one after another."""

    def __init__(self, view: memoryview) -> None:
        self._view = view
        self._position = HEADER.size

    def take(self, format: Literal["Q", "I", "H"], count: int) -> memoryview:
        """Return the next section, of numbers of 64 ("Q"), 32 ("I") or 16 bits ("H")."""
        start = self._position
        self._position += count * _WIDTHS[format]
        return self._view[start : self._position].cast(format)


_WIDTHS: dict[str, int] = {"Q": 8, "I": 4, "H": 2}


def table_size(ipv4: int, ipv6: int, combinations: int, marks: int) -> int:
    """Return the size in bytes of a table with so many starts, combinations and marks."""
    starts = 8 * (2 * ipv6 + fences(ipv6)) + 4 * (INDEX_SIZE + ipv4)
    numbers = 2 * (ipv6 if combinations <= NARROW else ipv4 + 2 * ipv6)
    return HEADER.size + starts + 4 * (combinations + 1 + marks) + numbers


def fences(ipv6: int) -> int:
    """Return how many fences so many IPv6 starts have."""
    return -(-ipv6 // FENCE_DISTANCE)


def _validate(view: memoryview, name: str) -> tuple[int, int, int, int, int]:
    """Return the header's counts."""
    if len(view) < HEADER.size or bytes(view[: len(MAGIC)]) != MAGIC:
        raise TableError(f"{name} is no reputation table of this version: build it again")
    _, checksum, order, *counts = HEADER.unpack_from(view)
    ipv4, ipv6, combinations, marks, listed = counts
    if order != BYTE_ORDER:
        raise TableError(
            f"{name} was not built on a machine with this one's byte order, {sys.byteorder} endian,"
            " or is damaged: build it again"
        )
    size = table_size(ipv4, ipv6, combinations, marks)
    if len(view) != size:
        raise TableError(
            f"{name} has {len(view)} bytes, but should have {size}: it was cut off or is damaged;"
            " build it again"
        )
    if zlib.crc32(view[CHECKED_FROM:]) != checksum:
        raise TableError(f"{name} is damaged, its checksum is wrong: build it again")
    return ipv4, ipv6, combinations, marks, listed


def _map(descriptor: int) -> mmap.mmap | bytes:
    # An empty file cannot be mapped, and is as good as no bytes.
    if os.fstat(descriptor).st_size == 0:
        return b""
    return mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
