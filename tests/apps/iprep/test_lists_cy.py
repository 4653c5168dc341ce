from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.conftest import Form

from spoakit.apps.iprep.addresses import parse_range


@pytest.fixture(scope="session")
def reading(form: Form) -> ModuleType:
    """`spoakit.apps.iprep._lists_cy`, in each form."""
    return form("spoakit.apps.iprep._lists_cy")


def read(reading: ModuleType, data: bytes) -> tuple[set[tuple[int, int]], list[int], int]:
    """Return the ranges, the numbers of the lines that are none, and how many were masked."""
    first: list[int] = []
    last: list[int] = []
    others: list[tuple[int, bytes]] = []
    lines, masked = reading.read_common_lines(data, first, last, others)
    assert lines == data.count(b"\n")
    ranges = set(zip(first, last, strict=True))
    wrong = []
    for number, line in others:
        assert data.split(b"\n")[number] == line
        try:
            text = line.removesuffix(b"\r").decode("latin-1")
            version, low, high, masks = parse_range(text)
        except ValueError:
            if text and text[0] not in "#;":
                wrong.append(number)
        else:
            if version == 4:
                ranges.add((low, high))
                masked += masks
    return ranges, wrong, masked


def expected(data: bytes) -> tuple[set[tuple[int, int]], list[int], int]:
    ranges = set()
    wrong = []
    masked = 0
    for number, line in enumerate(data.split(b"\n")[:-1]):
        text = line.removesuffix(b"\r").decode("latin-1")
        try:
            version, low, high, masks = parse_range(text)
        except ValueError:
            if text and text[0] not in "#;":
                wrong.append(number)
        else:
            if version == 4:
                ranges.add((low, high))
                masked += masks
    return ranges, wrong, masked


@given(st.lists(st.text("0123456789./:#;- \r", max_size=20)))
def test_every_line_is_read_as_by_the_parser_for_all(reading: ModuleType, lines: list[str]) -> None:
    data = "".join(f"{line}\n" for line in lines).encode()
    assert read(reading, data) == expected(data)


NETWORKS = st.builds(
    lambda address, prefix, end: f"{address}{prefix}{end}",
    st.ip_addresses(v=4),
    st.sampled_from(["", *(f"/{length}" for length in range(34)), "/01", "/", "/2x"]),
    st.sampled_from(["", "\r", " ", "0", "\r\r", "#"]),
)


@given(st.lists(NETWORKS))
def test_networks_and_what_is_nearly_one_are_told_apart(
    reading: ModuleType, lines: list[str]
) -> None:
    data = "".join(f"{line}\n" for line in lines).encode()
    assert read(reading, data) == expected(data)
