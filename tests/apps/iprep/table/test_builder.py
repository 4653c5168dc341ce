"""Building reputation tables: what is taken, what is refused, and how a table appears."""

import os
import tracemalloc
from array import array
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import pytest

from spoakit.apps.iprep.table._table_cy import Table, TableError
from spoakit.apps.iprep.table.builder import MAX_VALUE, Family, Ranges, TableBuilder


def test_ranges_added_at_once_are_those_added_one_by_one(tmp_path: Path) -> None:
    one_by_one, at_once = TableBuilder(), TableBuilder()
    ipv4, ipv6 = Ranges.of(4), Ranges.of(6)
    for number in range(1000):
        first, last, value = number * 1000, number * 1000 + number, number % 3
        one_by_one.add(1, value, first, last, 4)
        one_by_one.add(2, value, first << 64 | 1, last << 64 | 2, 6)
        ipv4.firsts.append(first)
        ipv4.lasts.append(last)
        ipv6.firsts.extend((first, 1))
        ipv6.lasts.extend((last, 2))
        for ranges in (ipv4, ipv6):
            ranges.values.append(value)
    at_once.extend(1, 4, ipv4)
    at_once.extend(2, 6, ipv6)
    assert at_once.build(tmp_path / "a") == one_by_one.build(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_what_was_handed_over_can_be_filled_anew(tmp_path: Path) -> None:
    builder = TableBuilder()
    ranges = Ranges(array("I", [5]), array("I", [6]), array("I", [1]))
    builder.extend(0, 4, ranges)
    ranges.firsts[0] = ranges.lasts[0] = 9
    builder.extend(0, 4, ranges)
    builder.build(tmp_path / "table")
    table = Table.open(tmp_path / "table")
    listed = [number for number in range(12) if table.lookup(IPv4Address(number))]
    assert listed == [5, 6, 9]


def test_the_figures_of_a_table_are_those_of_its_file(tmp_path: Path) -> None:
    builder = TableBuilder()
    builder.add(0, 1, 5, 9, 4)
    builder.add(0, 1, 5, 9, 4)
    builder.add(1, 1, 0, 2**128 - 1, 6)
    stats = builder.build(tmp_path / "table")
    table = Table.open(tmp_path / "table")
    assert (stats.ranges, stats.ipv4, stats.ipv6, stats.combinations) == (3, 3, 1, 3)
    assert stats.size == table.size == (tmp_path / "table").stat().st_size
    assert len(table) == 2


def test_a_builder_is_empty_after_building(tmp_path: Path) -> None:
    builder = TableBuilder()
    builder.add(0, 1, 5, 9, 4)
    builder.build(tmp_path / "table")
    assert builder.build(tmp_path / "table").ranges == 0


def test_ranges_that_touch_and_say_the_same_become_one(tmp_path: Path) -> None:
    builder = TableBuilder()
    for number in range(256):
        builder.add(0, 1, number, number, 4)
    assert builder.build(tmp_path / "table").ipv4 == 2


def test_combinations_that_only_passed_by_are_few(tmp_path: Path) -> None:
    builder = TableBuilder()
    for source in range(30):
        for number in range(100):
            builder.add(source, 0, number * 10, number * 10 + 4, 4)
    stats = builder.build(tmp_path / "table")
    assert stats.ipv4 == 200
    assert stats.combinations < 100


@pytest.mark.parametrize(
    ("first", "last", "family"),
    [(6, 5, 4), (-1, 5, 4), (5, 2**32, 4), (2**128, 2**128, 6), (2**64, 2**64 - 1, 6)],
)
def test_what_is_no_range_is_refused(first: int, last: int, family: Family) -> None:
    with pytest.raises(ValueError, match=f"no range of IPv{family} addresses"):
        TableBuilder().add(0, 0, first, last, family)


@pytest.mark.parametrize(("source", "value"), [(-1, 0), (256, 0), (0, -1), (0, MAX_VALUE + 1)])
def test_sources_and_values_have_limits(source: int, value: int) -> None:
    with pytest.raises(ValueError, match=r"(source|value) -?\d+: must be 0 to \d+"):
        TableBuilder().add(source, value, 0, 0, 4)


@pytest.mark.parametrize(
    ("ranges", "family", "reason"),
    [
        (Ranges(array("I", [5]), array("I", [6])), 4, "do not fit each other"),
        (Ranges(array("I", [5]), array("I"), array("I", [0])), 4, "do not fit each other"),
        (Ranges(array("Q", [0, 5]), array("Q", [5]), array("I", [0])), 6, "do not fit"),
        (Ranges(array("I", [6]), array("I", [5]), array("I", [0])), 4, "ends before it begins"),
        (Ranges(array("Q", [1, 0]), array("Q", [0, 9]), array("I", [0])), 6, "ends before it"),
        (Ranges(array("I", [5]), array("I", [5]), array("I", [MAX_VALUE + 1])), 4, "value"),
    ],
)
def test_arrays_that_are_no_ranges_are_refused_whole(
    ranges: Ranges, family: Family, reason: str, tmp_path: Path
) -> None:
    builder = TableBuilder()
    with pytest.raises(ValueError, match=reason):
        builder.extend(0, family, ranges)
    assert builder.build(tmp_path / "table").ranges == 0


def test_the_highest_values_come_back(tmp_path: Path) -> None:
    builder = TableBuilder()
    builder.add(255, MAX_VALUE, 2**128 - 1, 2**128 - 1, 6)
    builder.build(tmp_path / "table")
    table = Table.open(tmp_path / "table")
    assert table.combination(table.lookup(IPv6Address(2**128 - 1))) == ((255, MAX_VALUE),)


def test_a_table_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    (tmp_path / "table").mkdir()
    with pytest.raises(TableError, match=r"table '.*table' cannot be written: Is a directory"):
        TableBuilder().build(str(tmp_path / "table"))
    assert os.listdir(tmp_path) == ["table"]
    with pytest.raises(TableError, match="cannot be written: No such file"):
        TableBuilder().build(str(tmp_path / "none" / "table"))


def test_too_many_combinations_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("spoakit.apps.iprep.table._sweep_cy.MAX_COMBINATIONS", 100)
    builder = TableBuilder()
    values = array("I", range(100))
    builder.extend(0, 4, Ranges(values, values, values))
    with pytest.raises(TableError, match="over 100 combinations of values"):
        builder.build(tmp_path / "table")
    assert os.listdir(tmp_path) == []


def test_building_takes_little_memory(tmp_path: Path) -> None:
    builder = TableBuilder()
    count = 20_000
    firsts = array("I", range(0, count * 40, 40))
    builder.extend(0, 4, Ranges(firsts, firsts, array("I", bytes(4 * count))))
    tracemalloc.start()
    try:
        builder.build(tmp_path / "table")
        assert tracemalloc.get_traced_memory()[1] < count * 150 + 2**20  # 1.4 million: under 210 MB
    finally:
        tracemalloc.stop()
