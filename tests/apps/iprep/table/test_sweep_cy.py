"""The sweeps, on addresses that are few and far apart, beside going through all ranges."""

from array import array
from dataclasses import dataclass
from types import ModuleType

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from spoakit.apps.iprep.table._table_cy import VALUE_BITS
from tests.support.forms import Form

pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def sweep(form: Form) -> ModuleType:
    """`spoakit.apps.iprep.table._sweep_cy`, in each form."""
    return form("spoakit.apps.iprep.table._sweep_cy")


@dataclass(frozen=True)
class Range:
    source: int
    value: int
    first: int
    last: int

    @property
    def mark(self) -> int:
        return self.source << VALUE_BITS | self.value + 1


HIGHEST = {False: 2**32 - 1, True: 2**128 - 1}
# What the halves and the digits that are sorted by make different, and what they do not.
EDGES = {
    False: (0, 2**11, 2**22, 2**31, 2**32 - 1),
    True: (0, 2**11, 2**33, 2**64 - 1, 2**64, 2**66, 2**97, 2**128 - 2**64, 2**128 - 1),
}


@st.composite
def addresses(draw: st.DrawFn, wide: bool) -> int:
    near = draw(st.sampled_from(EDGES[wide])) + draw(st.integers(-2, 2))
    return min(max(near, 0), HIGHEST[wide])


@st.composite
def some_ranges(draw: st.DrawFn) -> tuple[bool, list[Range]]:
    wide = draw(st.booleans())
    ranges = []
    for _ in range(draw(st.integers(0, 25))):
        first, last = sorted((draw(addresses(wide)), draw(addresses(wide))))
        last = draw(st.sampled_from([first, last]))
        ranges.append(Range(draw(st.integers(0, 2)), draw(st.integers(0, 2)), first, last))
    return wide, ranges


def columns(sweep: ModuleType, numbers: list[int], wide: bool) -> object:
    upper = array("Q", [number >> 64 for number in numbers] if wide else [])
    return sweep.Addresses(upper, array("Q", [number & 2**64 - 1 for number in numbers]))


def swept(sweep: ModuleType, wide: bool, ranges: list[Range]) -> dict[int, tuple[int, ...]]:
    """Return the marks that hold from each address on."""
    changes = sweep.Steps(2 * len(ranges), wide)
    for source in {each.source for each in ranges}:
        own = [each for each in ranges if each.source == source]
        firsts = columns(sweep, [each.first for each in own], wide)
        lasts = columns(sweep, [each.last for each in own], wide)
        values = array("I", [each.value for each in own])
        sweep.flatten(source, firsts, lasts, values, changes)
    changes.trim()
    merger = sweep.Merger()
    starts = merger.merge(changes)
    starts.trim()
    upper, lower = starts.addresses
    numbers = [low | (upper[at] << 64 if wide else 0) for at, low in enumerate(lower)]
    assert numbers == sorted(set(numbers))
    assert len(numbers) == len(starts.numbers) == starts.count
    marks = [merger.combinations[number] for number in starts.numbers]
    return dict(zip(numbers, marks, strict=True))


def expected(wide: bool, ranges: list[Range]) -> dict[int, tuple[int, ...]]:
    """Do the same, asking of each address where something may change what all ranges say."""
    edges = {0} | {each.first for each in ranges} | {each.last + 1 for each in ranges}
    found: dict[int, tuple[int, ...]] = {}
    before = None
    for address in sorted(edges - {HIGHEST[wide] + 1}):
        said: dict[int, Range] = {}
        for each in ranges:
            other = said.get(each.source)
            if each.first <= address <= each.last and (
                other is None or (each.first, -each.last) >= (other.first, -other.last)
            ):
                said[each.source] = each
        marks = tuple(sorted(each.mark for each in said.values()))
        if marks != before:
            found[address] = before = marks
    return found


@given(some_ranges())
@example((False, []))
@example((True, []))
@example((False, [Range(0, 0, 0, 2**32 - 1)] * 2))
@example((True, [Range(0, 0, 2**64 - 1, 2**64 - 1), Range(0, 1, 0, 2**128 - 1)]))
def test_sweeps_find_what_going_through_all_ranges_finds(
    sweep: ModuleType, ranges: tuple[bool, list[Range]]
) -> None:
    assert swept(sweep, *ranges) == expected(*ranges)


@given(st.lists(st.integers(0, 2**32 - 1), max_size=200), st.booleans())
def test_addresses_in_any_order_are_sorted(
    sweep: ModuleType, numbers: list[int], wide: bool
) -> None:
    if wide:
        numbers = [number << 96 | number << 40 for number in numbers]
    ranges = [Range(0, 0, number, number) for number in numbers]
    listed = {start for start, marks in swept(sweep, wide, ranges).items() if marks}
    assert listed == {number for number in numbers if number - 1 not in numbers}


@given(st.lists(st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 2**20 - 1)), max_size=20))
def test_starts_and_numbers_are_packed(sweep: ModuleType, pairs: list[tuple[int, int]]) -> None:
    starts = array("Q", [start for start, _ in pairs])
    numbers = array("I", [number for _, number in pairs])
    assert sweep.packed(starts, numbers).tolist() == [
        start % 2**16 * 2**16 + number % 2**16 for start, number in pairs
    ]
