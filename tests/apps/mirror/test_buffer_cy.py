from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.forms import Form


@pytest.fixture(scope="session")
def buffering(form: Form) -> ModuleType:
    """`spoakit.apps.mirror._buffer_cy`, in each form."""
    return form("spoakit.apps.mirror._buffer_cy")


@given(st.lists(st.binary(max_size=3000), max_size=20))
def test_bytes_are_appended(buffering: ModuleType, pieces: list[bytes]) -> None:
    buffer = buffering.Buffer()
    for piece in pieces:
        buffer.add(piece)
    assert buffer.copy() == b"".join(pieces)
    assert buffer.size == sum(map(len, pieces))


@given(st.integers(0, 2**64 - 1), st.integers(0, 25))
def test_numbers_have_zeros_in_front_up_to_a_width(
    buffering: ModuleType, number: int, width: int
) -> None:
    buffer = buffering.Buffer()
    buffer.add(b"n=")
    assert buffer.add_number(number, width) == buffer.size
    assert buffer.copy(2) == b"%0*d" % (width, number)


def test_many_numbers_make_room(buffering: ModuleType) -> None:
    buffer = buffering.Buffer()
    for _ in range(1000):
        buffer.add_number(12345)
    assert buffer.copy() == b"12345" * 1000


def test_a_part_of_bytes_is_appended(buffering: ModuleType) -> None:
    buffer = buffering.Buffer()
    buffer.add_part(b"abcdef", 1, 4)
    buffer.add_part(b"abcdef", 6, 6)
    assert buffer.copy() == b"bcd"


@pytest.mark.parametrize(("start", "end"), [(-1, 2), (0, 7), (4, 3), (7, 7)])
def test_a_part_is_within_the_bytes(buffering: ModuleType, start: int, end: int) -> None:
    buffer = buffering.Buffer()
    with pytest.raises(IndexError, match=f"bytes {start} to {end} of 6"):
        buffer.add_part(b"abcdef", start, end)
    assert buffer.size == 0


def test_bytes_are_inserted(buffering: ModuleType) -> None:
    buffer = buffering.Buffer()
    buffer.add(b"ad")
    buffer.insert(1, b"bc")
    buffer.insert(4, b"e")
    assert buffer.copy() == b"abcde"


def test_a_truncated_buffer_goes_on_from_there(buffering: ModuleType) -> None:
    buffer = buffering.Buffer()
    buffer.add(b"abc")
    buffer.truncate(1)
    buffer.add(b"x" * 2000)
    assert buffer.copy() == b"a" + b"x" * 2000
    buffer.truncate(0)
    assert buffer.copy() == b""


def test_what_it_does_not_have_is_refused(buffering: ModuleType) -> None:
    buffer = buffering.Buffer()
    buffer.add(b"abc")
    for index in (-1, 4):
        with pytest.raises(IndexError):
            buffer.truncate(index)
        with pytest.raises(IndexError):
            buffer.copy(index)
        with pytest.raises(IndexError):
            buffer.insert(index, b"")
    assert buffer.copy() == b"abc"
