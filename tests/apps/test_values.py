import pytest

from spoakit.apps.values import parse_nameserver, parse_seconds, parse_size
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


@pytest.mark.parametrize(
    ("text", "server"),
    [
        ("127.0.0.1", ("127.0.0.1", 53)),
        ("127.0.0.1:5353", ("127.0.0.1", 5353)),
        ("::1", ("::1", 53)),
        ("[::1]:5353", ("::1", 5353)),
    ],
)
def test_name_servers_are_addresses_with_a_port_or_not(text: str, server: tuple[str, int]) -> None:
    assert parse_nameserver(text) == server


@pytest.mark.parametrize("text", ["", "x", "127.0.0.1:x", "127.0.0.1:70000", "[::1"])
def test_text_that_is_not_a_name_server_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^nameservers: .* is not an address"):
        parse_nameserver(text)
