"""The sweeps that turn overlapping ranges into a table's ascending starts. Hot code.

Two sweeps. `flatten` takes the ranges of one source and finds where what it says changes: where
its ranges overlap, the innermost holds. `Merger` takes these changes of all sources and finds
where the combination changes.

Ranges and changes are plain integers, so that they sort fast and one source serves both families:

    range    first address << (bits + 32) | (highest address - last address) << 32 | index
    change   address << 32 | mark
    mark     source << 24 | value + 1, or + 0 where the source says nothing

Plain Python that compiles to C (see ``spoakit._cython``).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from spoakit.apps.iprep._table_cy import VALUE_BITS, VALUE_MASK, TableError

if TYPE_CHECKING:
    from spoakit import _cython as cython
else:
    try:
        import cython
    except ModuleNotFoundError:
        from spoakit import _cython as cython

COMPILED: bool = cython.compiled

MAX_COMBINATIONS: int = 2**20

_INDEX_MASK: int = 2**32 - 1
_MARK_MASK: int = 2**32 - 1
# How many changes of each source are merged in one go.
_CHUNK: int = 8192
# Transitions between combinations that are remembered.
_MAX_TRANSITIONS: int = 2**18


def sorted_ranges(addresses: Iterable[tuple[int, int]], bits: int) -> list[int]:
    """Return ranges as integers, sorted.

    Of those that begin together the longest comes first, and of equal ones the first added.

    Args:
        addresses: the first and the last address of each.
        bits: the size of an address, 32 or 128.
    """
    highest = 2**bits - 1
    ranges = [
        (first << bits | highest - last) << 32 | index
        for index, (first, last) in enumerate(addresses)
    ]
    ranges.sort()
    return ranges


def flatten(
    ranges: Iterable[int], values: Sequence[int], source: int, bits: int, changes: Any
) -> None:
    """Find where what one source says changes, ascending, each time at another address.

    Args:
        ranges: its ranges, from `sorted_ranges`.
        values: the value of each, by its index.
        source: the source's number.
        bits: the size of an address, 32 or 128.
        changes: the array or list they are added to.
    """
    highest = 2**bits - 1
    shift = bits + 32
    nothing = source << VALUE_BITS
    # The ranges that are open, the innermost last: where each ends, and its mark.
    ends: list[int] = []
    marks: list[int] = []
    latest = -1
    for each in ranges:
        first = each >> shift
        if ends and ends[-1] < first:
            latest = _close(ends, marks, first, nothing, changes)
        mark = nothing + values[each & _INDEX_MASK] + 1
        ends.append(highest - (each >> 32 & highest))
        marks.append(mark)
        if first == latest:
            changes[-1] = first << 32 | mark
        else:
            changes.append(first << 32 | mark)
            latest = first
    _close(ends, marks, highest, nothing, changes)


@cython.cfunc
def _close(ends: list[int], marks: list[int], limit: int, nothing: int, changes: Any) -> int:
    """Close the ranges that end before an address; return where the last change is."""
    end = 0
    while ends and ends[-1] < limit:
        end = ends.pop()
        marks.pop()
        # What lies around the innermost may have ended within it.
        while ends and ends[-1] <= end:
            ends.pop()
            marks.pop()
        changes.append((end + 1) << 32 | (marks[-1] if marks else nothing))
    return end + 1


@cython.final
@cython.cclass
class Merger:
    """Merge the changes of all sources, and number the combinations that come of it."""

    _combinations: list[tuple[int, ...]]
    _numbers: dict[tuple[int, ...], int]
    _transitions: dict[int, int]

    def __init__(self) -> None:
        self._combinations = [()]
        self._numbers = {(): 0}
        self._transitions = {}

    @property
    def combinations(self) -> list[tuple[int, ...]]:
        """The combinations so far, by number: each the marks of its sources, ascending."""
        return self._combinations

    def merge(self, layers: Sequence[Sequence[int]]) -> Iterator[tuple[list[int], list[int]]]:
        """Yield in pieces where the combination changes, and the number of what begins there.

        The first change is at address 0.

        Args:
            layers: the changes of each source, from `flatten`.

        Raises:
            TableError: there are over 2**20 combinations.
        """
        address = number = 0
        before = -1
        for chunk in _chunks(layers):
            starts: list[int] = []
            numbers: list[int] = []
            for change in chunk:
                if change >> 32 != address:
                    if number != before:
                        starts.append(address)
                        numbers.append(number)
                        before = number
                    address = change >> 32
                number = self._changed(number, change & _MARK_MASK)
            yield starts, numbers
        if number != before:
            yield [address], [number]

    @cython.cfunc
    def _changed(self, number: int, mark: int) -> int:
        """Return the combination that comes of another when a source's mark changes."""
        transition: int = number << 32 | mark
        found: int | None = self._transitions.get(transition)
        if found is None:
            if len(self._transitions) == _MAX_TRANSITIONS:
                self._transitions.clear()
            found = self._transitions[transition] = self._number_of(
                _with_mark(self._combinations[number], mark)
            )
        return found

    def _number_of(self, combination: tuple[int, ...]) -> int:
        number = self._numbers.setdefault(combination, len(self._numbers))
        if number == len(self._combinations):
            if number == MAX_COMBINATIONS:
                raise TableError(
                    f"the sources list addresses in over {MAX_COMBINATIONS} combinations of values:"
                    " give them fewer values"
                )
            self._combinations.append(combination)
        return number


def _with_mark(combination: tuple[int, ...], mark: int) -> tuple[int, ...]:
    """Return a combination with a source's mark in place of the one it had."""
    others = [each for each in combination if each >> VALUE_BITS != mark >> VALUE_BITS]
    return tuple(sorted([*others, mark])) if mark & VALUE_MASK else tuple(others)


def _chunks(layers: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    """Yield the changes of all sources ascending, those at one address together."""
    positions = [0] * len(layers)
    while True:
        ahead = [
            layer[position + _CHUNK]
            for layer, position in zip(layers, positions, strict=True)
            if position + _CHUNK < len(layer)
        ]
        # Up to an address that every source reaches within so many changes.
        limit = min(ahead) >> 32 << 32 if ahead else None
        chunk: list[int] = []
        for index, layer in enumerate(layers):
            start = positions[index]
            end = min(start + _CHUNK, len(layer))
            if limit is not None:
                end = bisect_left(layer, limit, start, end)
            chunk += layer[start:end]
            positions[index] = end
        chunk.sort()
        yield chunk
        if limit is None:
            return
