"""The reputation table: what a lookup finds, and what becomes of files that are none."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spoakit.apps.iprep.table.builder import Family, TableBuilder
from tests.support.forms import Form

pytestmark = pytest.mark.slow

Address: TypeAlias = IPv4Address | IPv6Address
MODULE = "spoakit.apps.iprep.table._table_cy"


@dataclass(frozen=True)
class Range:
    source: int
    value: int
    first: int
    last: int
    family: Family

    def lists(self, address: Address) -> bool:
        return self.family == address.version and self.first <= int(address) <= self.last

    @property
    def outer(self) -> tuple[int, int]:
        """Of the ranges that list an address, the one of which this is highest holds."""
        return self.first, -self.last


def naive(ranges: list[Range], address: Address) -> tuple[tuple[int, int], ...]:
    """Return what the sources say of an address, by going through all ranges."""
    if isinstance(address, IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    said: dict[int, Range] = {}
    for each in ranges:
        before = said.get(each.source)
        if each.lists(address) and (before is None or each.outer >= before.outer):
            said[each.source] = each
    return tuple(sorted((source, each.value) for source, each in said.items()))


def write(ranges: list[Range], path: Path) -> Path:
    builder = TableBuilder()
    for each in ranges:
        builder.add(each.source, each.value, each.first, each.last, each.family)
    builder.build(path)
    return path


@pytest.fixture(scope="session")
def table_module(form: Form) -> ModuleType:
    return form(MODULE)


@pytest.fixture(scope="session")
def open_table(table_module: ModuleType) -> Callable[[Any], Any]:
    opened: Callable[[Any], Any] = table_module.Table.open
    return opened


Look: TypeAlias = Callable[[list[Range], Address], object]


@pytest.fixture
def look(open_table: Callable[[Any], Any], tmp_path: Path) -> Look:
    """Build a table, and return what it says of an address."""

    def look(ranges: list[Range], address: Address) -> object:
        table = open_table(write(ranges, tmp_path / "table"))
        return table.combination(table.lookup(address))

    return look


def network(text: str, source: int = 0, value: int = 0) -> Range:
    address, _, length = text.partition("/")
    parsed = ip_address(address)
    host = (1 << parsed.max_prefixlen - int(length or parsed.max_prefixlen)) - 1
    family: Family = 4 if parsed.version == 4 else 6
    return Range(source, value, int(parsed), int(parsed) | host, family)


# Few bits vary, so that ranges meet; these are where the halves, prefixes and families meet.
EDGES = {
    4: (0, 0xFFFF, 0x10000, 0xC0000200, 2**32 - 0x10000, 2**32 - 1),
    6: (0, 0xFFFF << 32, 1 << 48, 2**64, 1 << 125, (1 << 125) + 2**64, 2**128 - 2**64, 2**128 - 1),
}


@st.composite
def positions(draw: st.DrawFn, family: int) -> int:
    highest: int = 2 ** (32 if family == 4 else 128) - 1
    return min(max(draw(st.sampled_from(EDGES[family])) + draw(st.integers(-3, 3)), 0), highest)


@st.composite
def ranges_(draw: st.DrawFn) -> Range:
    family: Family = draw(st.sampled_from([4, 6]))
    first, last = sorted((draw(positions(family)), draw(positions(family))))
    return Range(draw(st.integers(0, 3)), draw(st.integers(0, 2)), first, last, family)


@given(ranges=st.lists(ranges_(), max_size=30))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_table_says_what_all_ranges_say_one_by_one(
    ranges: list[Range], open_table: Callable[[Any], Any], tmp_path: Path
) -> None:
    table = open_table(write(ranges, tmp_path / "table"))
    for address in neighbours(ranges):
        assert table.combination(table.lookup(address)) == naive(ranges, address), address


def neighbours(ranges: list[Range]) -> Iterator[Address]:
    """Yield where ranges begin and end, and the addresses beside, and the limits."""
    for each in [*ranges, network("0.0.0.0/0"), network("::/0"), network("::ffff:0:0/96")]:
        make = IPv4Address if each.family == 4 else IPv6Address
        limit = 2 ** (32 if each.family == 4 else 128)
        for edge in (each.first, each.last):
            for number in (edge - 1, edge, edge + 1):
                if 0 <= number < limit:
                    yield make(number)


def test_an_address_that_nobody_lists_has_number_0(
    open_table: Callable[[Any], Any], tmp_path: Path
) -> None:
    table = open_table(write([network("192.0.2.7")], tmp_path / "table"))
    assert table.lookup(IPv4Address("192.0.2.8")) == 0
    assert table.lookup(IPv6Address("2001:db8::1")) == 0
    assert table.combination(0) == ()
    assert len(table) == 1


def test_an_empty_table_lists_nothing(open_table: Callable[[Any], Any], tmp_path: Path) -> None:
    table = open_table(write([], tmp_path / "table"))
    assert len(table) == 0
    assert table.lookup(IPv4Address(0)) == table.lookup(IPv6Address(2**128 - 1)) == 0


def test_every_source_that_lists_an_address_is_heard(look: Look) -> None:
    ranges = [network("192.0.2.0/24", 3, 7), network("192.0.2.7", 1, 9), network("::/0", 2)]
    assert look(ranges, IPv4Address("192.0.2.7")) == ((1, 9), (3, 7))
    assert look(ranges, IPv4Address("192.0.2.8")) == ((3, 7),)


def test_of_one_source_the_innermost_range_holds(look: Look) -> None:
    ranges = [network("10.1.0.0/16", 0, 2), network("10.0.0.0/8", 0, 1), network("0.0.0.0/0", 0, 0)]
    for address, value in (("10.1.2.3", 2), ("10.2.0.0", 1), ("11.0.0.0", 0)):
        assert look(ranges, IPv4Address(address)) == ((0, value),)


def test_of_the_same_range_of_one_source_the_last_added_holds(look: Look) -> None:
    twice = [network("192.0.2.7", 0, 1), network("192.0.2.7", 0, 2)]
    assert look(twice, IPv4Address("192.0.2.7")) == ((0, 2),)


def test_ipv4_addresses_mapped_into_ipv6_are_looked_up_as_ipv4(look: Look) -> None:
    ranges = [network("192.0.2.7", 1), network("::/0", 2)]
    assert look(ranges, IPv6Address("::ffff:192.0.2.7")) == ((1, 0),)
    assert look(ranges, IPv6Address("::ffff:192.0.2.8")) == ()
    assert look(ranges, IPv6Address("::fffe:192.0.2.7")) == ((2, 0),)


@pytest.mark.parametrize("base", [0, 2**125, 2**128 - 2**64])
def test_many_ranges_in_one_64_are_told_apart(
    open_table: Callable[[Any], Any], tmp_path: Path, base: int
) -> None:
    ranges = [Range(0, n % 5, base + 8 * n, base + 8 * n + 3, 6) for n in range(1000)]
    table = open_table(write(ranges, tmp_path / "table"))
    for number in range(base, base + 8000):
        expected = ((0, (number - base) // 8 % 5),) if (number - base) % 8 < 4 else ()
        assert table.combination(table.lookup(IPv6Address(number))) == expected


def test_there_may_be_more_than_65536_combinations(
    open_table: Callable[[Any], Any], tmp_path: Path
) -> None:
    count = 70_000
    ranges = [Range(n % 7, n, 5 * n, 5 * n, 4) for n in range(count)]
    ranges += [Range(0, n, 5 << 64 | n, 5 << 64 | n, 6) for n in (1, count)]
    table = open_table(write(ranges, tmp_path / "table"))
    assert table.combinations == 1 + count + len(((0, 1), (0, count)))
    for n in (0, 1, 65_535, 65_536, count - 1):
        assert table.combination(table.lookup(IPv4Address(5 * n))) == ((n % 7, n),)
        assert table.lookup(IPv4Address(5 * n + 1)) == 0
    assert table.combination(table.lookup(IPv6Address(5 << 64 | count))) == ((0, count),)


@pytest.mark.parametrize("what", ["192.0.2.1", 1, None, b"\0" * 4])
def test_what_is_no_address_is_refused(
    open_table: Callable[[Any], Any], tmp_path: Path, what: object
) -> None:
    table = open_table(write([], tmp_path / "table"))
    with pytest.raises(TypeError, match="an IPv4Address or IPv6Address is looked up"):
        table.lookup(what)


@pytest.mark.parametrize("number", [-1, 2, 2**40])
def test_a_combination_that_there_is_not_is_refused(
    open_table: Callable[[Any], Any], tmp_path: Path, number: int
) -> None:
    table = open_table(write([network("192.0.2.7")], tmp_path / "table"))
    with pytest.raises(IndexError, match=rf"combination {number} of 2"):
        table.combination(number)


def test_a_table_that_was_replaced_goes_on_to_answer(
    open_table: Callable[[Any], Any], tmp_path: Path
) -> None:
    path = write([network("192.0.2.7")], tmp_path / "table")
    before = open_table(path)
    write([network("192.0.2.8")], path)
    after = open_table(path)
    for table, listed in ((before, "192.0.2.7"), (after, "192.0.2.8")):
        assert [table.lookup(IPv4Address(f"192.0.2.{n}")) > 0 for n in (7, 8)] == [
            listed == "192.0.2.7",
            listed == "192.0.2.8",
        ]


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="memfd is Linux's")
def test_a_table_may_be_in_memory_without_a_name(open_table: Callable[[Any], Any]) -> None:
    if sys.platform == "linux":
        descriptor = os.memfd_create("table")
        try:
            builder = TableBuilder()
            builder.add(1, 2, 5, 5, 4)
            builder.build(descriptor)
            table = open_table(descriptor)
        finally:
            os.close(descriptor)
        assert table.combination(table.lookup(IPv4Address(5))) == ((1, 2),)


# What is wrong with a file.

GOOD = [network("192.0.2.0/24"), network("2001:db8::/32", 1), network("198.51.100.7", 2, 3)]


@pytest.fixture(scope="session")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write(GOOD, tmp_path_factory.mktemp("good") / "table").read_bytes()


def test_a_file_that_was_cut_off_is_refused(table_module: ModuleType, good: bytes) -> None:
    for size in [*range(200), len(good) // 2, len(good) - 1]:
        with pytest.raises(table_module.TableError, match=r"no reputation table|was cut off"):
            table_module.Table(good[:size])


def test_a_file_with_more_behind_it_is_refused(table_module: ModuleType, good: bytes) -> None:
    with pytest.raises(table_module.TableError, match="bytes, but should have"):
        table_module.Table(good + b"\0")


@given(data=st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_bit_that_flipped_is_found(
    data: st.DataObject, table_module: ModuleType, good: bytes
) -> None:
    position = data.draw(st.integers(0, 199) | st.integers(0, len(good) - 1))
    flipped = bytearray(good)
    flipped[position] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(table_module.TableError, match="build it again"):
        table_module.Table(bytes(flipped), "table 'a'")


@given(data=st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_memory_that_is_tampered_with_later_gives_wrong_answers_at_worst(
    data: st.DataObject, table_module: ModuleType, good: bytes
) -> None:
    memory = bytearray(good)
    table = table_module.Table(memory)
    # The IPv4 index is in the middle and large; what is before and behind it is small.
    at = data.draw(st.integers(0, 200) | st.integers(len(good) - 100, len(good) - 1))
    junk = data.draw(st.binary(min_size=1, max_size=64))[: len(memory) - at]
    memory[at : at + len(junk)] = junk
    look_around(table)


def test_an_index_of_nonsense_gives_wrong_answers_at_worst(
    table_module: ModuleType, good: bytes
) -> None:
    memory = bytearray(good)
    table = table_module.Table(memory)
    memory[:] = b"\xff" * len(memory)
    look_around(table)


def look_around(table: Any) -> None:
    for address in neighbours(GOOD):
        with suppress(IndexError, ValueError):
            table.combination(table.lookup(address))


def test_a_file_that_is_not_there_is_refused(table_module: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(table_module.TableError, match=r"table '.*none' cannot be read: No such"):
        table_module.Table.open(tmp_path / "none")


def test_an_empty_file_is_refused(table_module: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "empty"
    path.touch()
    with pytest.raises(table_module.TableError, match=r"table '.*empty' is no reputation table"):
        table_module.Table.open(path)
