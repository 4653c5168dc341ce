"""Builds a reputation table, in the format `_table_cy` describes, from the ranges of all sources.

Building takes the interpreter for a second or two: do it in a process that answers no frames.
"""

from __future__ import annotations

import os
import zlib
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from operator import gt
from typing import Any, BinaryIO, Final, Literal, TypeAlias

from spoakit.apps.iprep.table._sweep_cy import Addresses, Merger, Steps, flatten, packed
from spoakit.apps.iprep.table._table_cy import (
    BYTE_ORDER,
    CHECKED_FROM,
    FENCE_DISTANCE,
    HEADER,
    INDEX_SIZE,
    MAGIC,
    NARROW,
    VALUE_MASK,
    TableError,
    table_size,
)

Family: TypeAlias = Literal[4, 6]

MAX_SOURCE: Final = 2**8 - 1
MAX_VALUE: Final = VALUE_MASK - 1

_FAMILIES: Final[tuple[Family, ...]] = (4, 6)
_BITS: Final[dict[int, int]] = {4: 32, 6: 128}
_LOWER_HALF: Final = 2**64 - 1


@dataclass(frozen=True, slots=True)
class TableStats:
    """What a table came to.

    Attributes:
        ranges: how many ranges were added.
        ipv4: how many starts there are in IPv4.
        ipv6: and in IPv6.
        combinations: how many combinations of sources and values, the empty one included.
        size: the table's size in bytes.
    """

    ranges: int
    ipv4: int
    ipv6: int
    combinations: int
    size: int


@dataclass(slots=True)
class Ranges:
    """Ranges of one source and family, in arrays of the same length.

    Attributes:
        firsts: the first addresses: ``array("I")`` for IPv4; for IPv6 ``array("Q")`` with two
            items each, the upper and the lower 64 bits.
        lasts: the last addresses, likewise.
        values: ``array("I")`` with a value for each, at most `MAX_VALUE`.
    """

    firsts: array[int]
    lasts: array[int]
    values: array[int] = field(default_factory=lambda: array("I"))

    @classmethod
    def of(cls, family: Family) -> Ranges:
        """Return an empty one."""
        format = "I" if family == 4 else "Q"
        return cls(array(format), array(format))


class TableBuilder:
    """Gathers ranges and builds a table of them.

    Where ranges of one source overlap, the innermost holds, as with prefixes: the one that begins
    last; of those that begin together, the shortest; of equal ones, the last added. Ranges of
    different sources stand beside each other.
    """

    def __init__(self) -> None:
        self._ranges: dict[tuple[Family, int], Ranges] = {}

    def add(self, source: int, value: int, first: int, last: int, family: Family) -> None:
        """Add a range.

        Args:
            source: the source's number, 0 to 255.
            value: what the source says of it, 0 to `MAX_VALUE`.
            first: its first address, as a number.
            last: its last address.
            family: 4 or 6.

        Raises:
            ValueError: one of them is out of its limits.
        """
        if not 0 <= first <= last < 2 ** _BITS[family]:
            raise ValueError(f"no range of IPv{family} addresses: {first:#x} to {last:#x}")
        if not 0 <= value <= MAX_VALUE:
            raise ValueError(f"value {value}: must be 0 to {MAX_VALUE}")
        ranges = self._of(source, family)
        if family == 4:
            ranges.firsts.append(first)
            ranges.lasts.append(last)
        else:
            ranges.firsts.extend((first >> 64, first & _LOWER_HALF))
            ranges.lasts.extend((last >> 64, last & _LOWER_HALF))
        ranges.values.append(value)

    def extend(self, source: int, family: Family, ranges: Ranges) -> None:
        """Add many ranges at once; they are copied, so the arrays can be filled anew.

        Raises:
            ValueError: a source or value is out of its limits, the arrays do not fit each other,
                or a range ends before it begins; nothing was added.
        """
        words = 1 if family == 4 else 2
        if not len(ranges.firsts) == len(ranges.lasts) == len(ranges.values) * words:
            raise ValueError(
                f"{len(ranges.firsts)} firsts, {len(ranges.lasts)} lasts and"
                f" {len(ranges.values)} values of IPv{family} do not fit each other"
            )
        if max(ranges.values, default=0) > MAX_VALUE:
            raise ValueError(f"value {max(ranges.values)}: must be 0 to {MAX_VALUE}")
        if any(map(gt, _addresses(ranges.firsts, family), _addresses(ranges.lasts, family))):
            raise ValueError("a range ends before it begins")
        own = self._of(source, family)
        own.firsts.extend(ranges.firsts)
        own.lasts.extend(ranges.lasts)
        own.values.extend(ranges.values)

    def build(self, target: str | os.PathLike[str] | int) -> TableStats:
        """Build the table of all that was added, and leave the builder empty.

        Args:
            target: a path, where the table appears at once and whole, in place of one that is
                there; or the descriptor of an empty file, such as a memfd's, which stays open.

        Raises:
            TableError: the table cannot be written, or the sources list addresses in too many
                combinations of values.
        """
        ranges = sum(len(each.values) for each in self._ranges.values())
        merger = Merger()
        starts4, starts6 = (merger.merge(self._changes(family)) for family in _FAMILIES)
        for starts in (starts4, starts6):
            starts.trim()
        sections = _Sections(starts4, starts6)
        sections.add_combinations(merger.combinations)
        try:
            if isinstance(target, int):
                with open(target, "wb", closefd=False) as file:
                    size = sections.write(file)
            else:
                size = _replace(os.fspath(target), sections)
        except OSError as error:
            raise TableError(f"table {str(target)!r} cannot be written: {error.strerror}") from None
        return TableStats(
            ranges,
            starts4.count,
            starts6.count,
            len(merger.combinations),
            size,
        )

    def _of(self, source: int, family: Family) -> Ranges:
        if not 0 <= source <= MAX_SOURCE:
            raise ValueError(f"source {source}: must be 0 to {MAX_SOURCE}")
        if (family, source) not in self._ranges:
            self._ranges[family, source] = Ranges.of(family)
        return self._ranges[family, source]

    def _changes(self, family: Family) -> Steps:
        """Take the ranges of a family, and return the changes of each source."""
        sources = [source for of, source in self._ranges if of == family]
        count = sum(len(self._ranges[family, source].values) for source in sources)
        changes = Steps(2 * count, family == 6)
        for source in sources:
            ranges = self._ranges.pop((family, source))
            firsts, lasts = _columns(ranges.firsts, family), _columns(ranges.lasts, family)
            flatten(source, firsts, lasts, ranges.values, changes)
        changes.trim()
        return changes


class _Sections:
    """What a table is made of."""

    def __init__(self, starts4: Steps, starts6: Steps) -> None:
        self.starts = starts4.addresses.lower
        self.upper, self.lower = starts6.addresses
        self.numbers4 = starts4.numbers
        self.numbers6 = starts6.numbers
        self.offsets = array("I")
        self.marks = array("I")

    def add_combinations(self, combinations: Iterable[tuple[int, ...]]) -> None:
        """Add all combinations, by number."""
        self.offsets.append(0)
        for combination in combinations:
            self.marks.extend(combination)
            self.offsets.append(len(self.marks))

    def write(self, file: BinaryIO) -> int:
        """Write the table; return its size in bytes."""
        ipv4, ipv6, combinations = len(self.starts), len(self.upper), len(self.offsets) - 1
        listed = sum(len(each) - each.count(0) for each in (self.numbers4, self.numbers6))
        counts = ipv4, ipv6, combinations, len(self.marks), listed
        checksum = zlib.crc32(HEADER.pack(MAGIC, 0, BYTE_ORDER, *counts)[CHECKED_FROM:])
        file.write(bytes(HEADER.size))
        for section in self._all(combinations > NARROW):
            checksum = zlib.crc32(section, checksum)
            file.write(section)
        # The magic comes last: what was cut off in between is no table.
        file.seek(0)
        file.write(HEADER.pack(MAGIC, checksum, BYTE_ORDER, *counts))
        return table_size(ipv4, ipv6, combinations, len(self.marks))

    def _all(self, wide: bool) -> Iterator[array[int]]:
        yield from (self.upper, self.lower, self.upper[::FENCE_DISTANCE])
        yield from (_index(self.starts), self.offsets, self.marks)
        yield packed(self.starts, self.numbers4)
        yield array("H", (number & 0xFFFF for number in self.numbers6))
        if wide:
            yield array("H", (number >> 16 for number in self.numbers4))
            yield array("H", (number >> 16 for number in self.numbers6))


def _replace(path: str, sections: _Sections) -> int:
    """Write a table beside a path, and move it there."""
    part = f"{path}.{os.getpid()}.part"
    try:
        with open(part, "wb") as file:
            size = sections.write(file)
        os.replace(part, path)
    finally:
        with suppress(FileNotFoundError):
            os.unlink(part)
    return size


def _addresses(words: array[int], family: Family) -> Iterator[Any]:
    """Yield addresses that compare as they are ordered."""
    if family == 4:
        return iter(words)
    halves = iter(words)
    return zip(halves, halves, strict=True)


def _columns(words: array[int], family: Family) -> Addresses:
    if family == 4:
        return Addresses(array("Q"), array("Q", words))
    return Addresses(words[0::2], words[1::2])


def _index(starts: array[int]) -> array[int]:
    """Return where the starts of each 16-bit prefix begin, and where the last ones end."""
    index = array("I")
    position = 0
    for prefix in range(INDEX_SIZE - 1):
        position = bisect_left(starts, prefix << 16, position)
        index.append(position)
    index.append(len(starts))
    return index
