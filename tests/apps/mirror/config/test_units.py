import pytest

from spoakit.apps.mirror.config.units import parse_marker, parse_ports
from spoakit.exceptions import ConfigurationError


def test_ports_are_one_or_a_range() -> None:
    assert parse_ports("20000-21000") == (20000, 21000)
    assert parse_ports("20000") == parse_ports(20000) == (20000, 20000)


@pytest.mark.parametrize("value", ["", "a", "1-", "-1", -1, "1-2-3", "1 - 2", "100000"])
def test_what_is_no_range_of_ports_is_refused(value: str | int) -> None:
    with pytest.raises(ConfigurationError, match=r"^.* is not a port, and not a range"):
        parse_ports(value)


def test_a_marker_is_split_at_its_first_colon() -> None:
    assert parse_marker("X-Mirrored: a:b ") == ("X-Mirrored", "a:b")
    assert parse_marker("X-Mirrored:") == ("X-Mirrored", "")
    with pytest.raises(ConfigurationError, match=r"^'X-Mirrored' is not a field such as"):
        parse_marker("X-Mirrored")


def test_there_may_be_no_marker_but_not_any() -> None:
    assert parse_marker(False) is parse_marker("") is None
    with pytest.raises(ConfigurationError, match=r"^true is not a field such as"):
        parse_marker(True)
