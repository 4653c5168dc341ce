from ipaddress import IPv6Address, IPv6Network, ip_address
from types import ModuleType
from typing import TypeAlias

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from spoakit.apps.iprep.addresses import parse_range
from tests.support.forms import Form


@pytest.fixture(scope="session")
def reading(form: Form) -> ModuleType:
    """`spoakit.apps.iprep.sources._lists_cy`, in each form."""
    return form("spoakit.apps.iprep.sources._lists_cy")


Read: TypeAlias = tuple[set[tuple[int, int, int]], list[int], int]


def read(reading: ModuleType, data: bytes, free4: int = 32, free6: int = 128) -> Read:
    """Return the ranges, the numbers of the lines that are none, and how many were masked."""
    first4: list[int] = []
    last4: list[int] = []
    first6: list[int] = []
    last6: list[int] = []
    others: list[tuple[int, bytes]] = []
    lines, masked = reading.read_common_lines(
        data, first4, last4, first6, last6, others, free4, free6
    )
    assert lines == data.count(b"\n")
    ranges = {(4, *each) for each in zip(first4, last4, strict=True)}
    ranges |= {(6, *each) for each in zip(numbers(first6), numbers(last6), strict=True)}
    assert all(data.split(b"\n")[number] == line for number, line in others)
    of_others, wrong, masks = parsed(others)
    return ranges | of_others, wrong, masked + masks


def numbers(halves: list[int]) -> list[int]:
    return [upper << 64 | lower for upper, lower in zip(halves[::2], halves[1::2], strict=True)]


def expected(data: bytes) -> Read:
    return parsed(list(enumerate(data.split(b"\n")[:-1])))


def parsed(lines: list[tuple[int, bytes]]) -> Read:
    """Return what the parser for all reads."""
    ranges = set()
    wrong = []
    masked = 0
    for number, line in lines:
        text = line.removesuffix(b"\r").decode("latin-1")
        try:
            version, low, high, masks = parse_range(text)
        except ValueError:
            if text and text[0] not in "#;":
                wrong.append(number)
        else:
            ranges.add((version, low, high))
            masked += masks
    return ranges, wrong, masked


@given(st.lists(st.text("0123456789af./:#;%- \r\0²", max_size=20)))
def test_every_line_is_read_as_by_the_parser_for_all(reading: ModuleType, lines: list[str]) -> None:
    data = "".join(f"{line}\n" for line in lines).encode("latin-1")
    assert read(reading, data) == expected(data)


NETWORKS = st.builds(
    lambda address, prefix, end: f"{address}{prefix}{end}",
    st.ip_addresses(),
    st.sampled_from(
        ["", *(f"/{length}" for length in range(131)), "/01", "/064", "/0064", "/", "/2x", "/-1"]
    ),
    st.sampled_from(["", "\r", " ", "0", "\r\r", "#"]),
)


@given(st.lists(NETWORKS))
def test_networks_and_what_is_nearly_one_are_told_apart(
    reading: ModuleType, lines: list[str]
) -> None:
    data = "".join(f"{line}\n" for line in lines).encode()
    assert read(reading, data) == expected(data)


@given(st.lists(NETWORKS), st.integers(0, 32), st.integers(0, 128))
def test_networks_that_are_too_large_are_handed_back(
    reading: ModuleType, lines: list[str], free4: int, free6: int
) -> None:
    data = "".join(f"{line}\n" for line in lines).encode()
    assert read(reading, data, free4, free6) == expected(data)
    ranges: tuple[list[int], ...] = ([], [], [], [])
    reading.read_common_lines(data, *ranges, [], free4, free6)
    pairs4 = zip(ranges[0], ranges[1], strict=True)
    pairs6 = zip(numbers(ranges[2]), numbers(ranges[3]), strict=True)
    for pairs, free in ((pairs4, free4), (pairs6, free6)):
        assert all((last - first).bit_length() <= free for first, last in pairs)


@given(st.ip_addresses(v=6), st.integers(0, 128))
@example(ip_address("::ffff:192.0.2.7"), 128)
@example(ip_address("::ffff:192.0.2.7"), 64)
@example(ip_address("::fffe:192.0.2.7"), 96)
def test_ipv6_networks_are_those_of_the_standard_library(
    reading: ModuleType, address: IPv6Address, length: int
) -> None:
    network = IPv6Network((address, length), strict=False)
    first, last = int(network[0]), int(network[-1])
    mapped = address.ipv4_mapped is not None and length >= 96
    entry = (4, first & 2**32 - 1, last & 2**32 - 1) if mapped else (6, first, last)
    for text in (f"{address}/{length}", f"{address.exploded.upper()}/{length}"):
        found = read(reading, f"{text}\n".encode())
        assert found == ({entry}, [], int(network[0] != address))
