from collections.abc import Callable

import pytest

from spoakit.cli import values
from spoakit.exceptions import ConfigurationError
from spoakit.server import Logfile


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0),
        ("250us", 0.00025),
        ("5", 0.005),
        ("5ms", 0.005),
        ("2s", 2),
        ("1.5m", 90),
        ("2h", 7200),
        ("7d", 604800),
    ],
)
def test_times_have_units(text: str, seconds: float) -> None:
    assert values.time(0, 604800)(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "s", "1 s", "1w", "1e3", "0x1", "\u0661", "1s\n", "nan"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match="allowed: a number with us, ms"):
        values.time(0, 10)(text)


@pytest.mark.parametrize("text", ["-1", "999ms", "3601s"])
def test_a_time_out_of_its_range_is_refused_with_the_range(text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"allowed range \[1.00s, 3600.00s\]"):
        values.time(1, 3600)(text)


@pytest.mark.parametrize(("text", "seconds"), [("0", 0), ("0.0", 0), ("10s", 10), ("1500ms", 1.5)])
def test_a_duration_says_its_unit(text: str, seconds: float) -> None:
    assert values.duration(1, 3600, off=True)(text) == seconds


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("10", "say 10s or 10ms"),
        ("1.5", r"say 1.5s or 1.5ms"),
        ("nan", "allowed: a number with one of us, ms, s, m, h, d"),
        ("", "allowed: a number with one of"),
        ("0", r"allowed range \[1.00s, 3600.00s\]"),
        ("999ms", r"allowed range \[1.00s, 3600.00s\]"),
        ("-1s", "allowed range"),
    ],
)
def test_a_duration_without_a_unit_or_out_of_its_range_is_refused(text: str, error: str) -> None:
    with pytest.raises(ConfigurationError, match=error):
        values.duration(1, 3600)(text)


@pytest.mark.parametrize(
    ("read", "text", "value"),
    [
        (values.number(-1, 511), "-1", -1),
        (values.percent, "0", 0.0),
        (values.percent, "0.001", 0.001),
        (values.percent, "100%", 100.0),
        (values.choice(("1.1", "auto")), "AUTO", "auto"),
        (values.ports, "0", None),
        (values.ports, "1000", (1000, 1000)),
        (values.ports, "1000-1000", (1000, 1000)),
        (values.ports, "1-65535", (1, 65535)),
        (values.interface, "eth0.7", "eth0.7"),
        (values.interface, "2001:db8::1", "2001:db8::1"),
        (values.logfile, "mirror.log", Logfile("mirror.log")),
        (values.logfile, "/var/log/m", Logfile("/var/log/m")),
        (values.logfile, "a:m", Logfile("m")),
        (values.logfile, "A:m", Logfile("m", line_buffered=True)),
        (values.logfile, "w:m", Logfile("m", truncate=True)),
        (values.logfile, "W:m", Logfile("m", truncate=True, line_buffered=True)),
        (values.host, "keep", "keep"),
        (values.host, "test.example.org:8080", "test.example.org:8080"),
        (values.host, "[::1]:80", "[::1]:80"),
        (values.marker, "X-Mirrored", ("X-Mirrored", "1")),
        (values.marker, "X-Mirrored:yes, it is", ("X-Mirrored", "yes, it is")),
        (values.marker, "x: y", ("x", "y")),
        (values.marker, "x:", ("x", "")),
    ],
)
def test_values_are_read(read: Callable[[str], object], text: str, value: object) -> None:
    assert read(text) == value


@pytest.mark.parametrize(
    ("read", "texts", "reason"),
    [
        (values.number(1, 9), ("", "0", "10", "x", "1x", " 1"), r"allowed range \[1, 9\]"),
        (values.percent, ("", "-1", "101", "0.0009", "x"), r"0 and the range \[0.001, 100\]"),
        (values.choice(("1.1", "2")), ("", "3"), "allowed: 1.1, 2"),
        (values.text, ("",), "empty"),
        (values.ports, ("", "x", "0-9", "2-1", "65536", "1-2-3", "-1"), "FIRST-LAST within"),
        (values.interface, ("", "a b", "a\n", "x" * 256), "is not an interface"),
        (values.logfile, ("x:m", "\u00e4:m"), "invalid logfile mode"),
        (values.host, ("", "a b", "a/b", "a\r\nb"), "must be keep"),
        (values.marker, ("", "a b", "a:b\r\nc: d", ": x", "Host: x", "TE"), "NAME or NAME:VALUE"),
    ],
)
def test_what_cannot_be_is_refused(
    read: Callable[[str], object], texts: tuple[str, ...], reason: str
) -> None:
    for text in texts:
        with pytest.raises(ConfigurationError, match=reason):
            read(text)
