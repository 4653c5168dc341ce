import pytest

from spoakit.apps.mirror.values import parse_field, parse_ports, parse_seconds, parse_size
from spoakit.exceptions import ConfigurationError


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (5, 5),
        (0.25, 0.25),
        ("250ms", 0.25),
        ("100us", 0.0001),
        ("5s", 5),
        ("1.5 s", 1.5),
        ("2m", 120),
        ("1h", 3600),
        ("1d", 86400),
    ],
)
def test_a_time_is_a_number_of_seconds_or_has_a_unit(value: object, seconds: float) -> None:
    assert parse_seconds(value) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "value", ["", "5", "s", "5 parsecs", "-5s", "5s ", "1e3s", True, None, [5]]
)
def test_what_is_no_time_is_refused(value: object) -> None:
    with pytest.raises(ConfigurationError, match="is not a time: a number of seconds, or a text"):
        parse_seconds(value)


@pytest.mark.parametrize(
    ("value", "size"),
    [(4096, 4096), ("4096B", 4096), ("4KiB", 4096), ("1.5 MiB", 1572864), ("2GiB", 2 * 1024**3)],
)
def test_a_size_is_a_number_of_bytes_or_has_a_unit(value: object, size: int) -> None:
    assert parse_size(value) == size


@pytest.mark.parametrize("value", ["", "4096", "KiB", "4kb", "4MB", "-4KiB", 4096.0, True, None])
def test_what_is_no_size_is_refused(value: object) -> None:
    with pytest.raises(ConfigurationError, match="is not a size: a whole number of bytes, or a"):
        parse_size(value)


def test_ports_are_one_or_a_range() -> None:
    assert parse_ports("20000-21000") == (20000, 21000)
    assert parse_ports("20000") == parse_ports(20000) == (20000, 20000)


@pytest.mark.parametrize("value", ["", "a", "1-", "-1", -1, "1-2-3", "1 - 2", "100000"])
def test_what_is_no_range_of_ports_is_refused(value: str | int) -> None:
    with pytest.raises(
        ConfigurationError, match=r"^local-ports: .* is not a port, and not a range"
    ):
        parse_ports(value)


def test_a_field_is_split_at_its_first_colon() -> None:
    assert parse_field("marker", "X-Mirrored: a:b ") == ("X-Mirrored", "a:b")
    assert parse_field("marker", "X-Mirrored:") == ("X-Mirrored", "")
    with pytest.raises(ConfigurationError, match=r"^marker: 'X-Mirrored' is not a field such as"):
        parse_field("marker", "X-Mirrored")
