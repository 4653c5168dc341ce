"""Parsers of options' values."""

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from spoakit.apps.mirror.config.units import parse_ports
from spoakit.apps.mirror.config.validators import check_field, check_file_name, check_ports
from spoakit.apps.values import TIMES, parse_size
from spoakit.exceptions import ConfigurationError
from spoakit.server import Logfile

ValueParser: TypeAlias = Callable[[str], object]

_TIME: Final = re.compile(rf"(-?[0-9]+(?:\.[0-9]+)?)({'|'.join(TIMES)})?")
_MAX_PORT: Final = 65535
_LEAST_PERCENT: Final = 0.001


class NotAllowedError(ConfigurationError):
    """An option has an invalid value; the text says what is allowed.

    `Option` adds the value and the option's name.
    """


@dataclass(frozen=True, slots=True)
class TimeParser:
    """Parser of a time with a unit, us, ms, s, m, h or d: "500ms", "1.5s", "7d".

    Attributes:
        low: the minimum in seconds.
        high: the maximum in seconds.
        unit: the unit of a plain number, as in the C programs' options; None refuses plain numbers
            other than 0.
        off: True to allow 0 too.
    """

    low: float
    high: float
    unit: str | None = None
    off: bool = False

    def __call__(self, text: str) -> float:
        """Return the seconds.

        Raises:
            NotAllowedError: the text is not a time, or the time is out of range.
        """
        match = _TIME.fullmatch(text)
        if match is None:
            raise NotAllowedError(self._form())
        number, unit = float(match[1]), match[2] or self.unit
        if number == 0 and self.off:
            return 0.0
        if unit is None and number > 0:
            raise NotAllowedError(f"say {text}s or {text}ms")
        seconds = number * TIMES[unit or "s"]
        if not self.low <= seconds <= self.high:
            raise NotAllowedError(f"allowed range [{_show(self.low)}, {_show(self.high)}]")
        return seconds

    def _form(self) -> str:
        units = ", ".join(TIMES)
        if self.unit is not None:
            return f"allowed: a number with {units} or none of these"
        zero = "0, or " if self.off or not self.low else ""
        return f"allowed: {zero}a number with one of {units}"


def time(low: float, high: float) -> TimeParser:
    """Return the parser of a C program's option, which has milliseconds without a unit."""
    return TimeParser(low, high, "ms")


def duration(low: float, high: float, *, off: bool = False) -> TimeParser:
    """Return the parser of any other option, whose time needs a unit."""
    return TimeParser(low, high, off=off)


def _show(seconds: float) -> str:
    if not seconds:
        return "0"
    return f"{seconds:.2f}s" if seconds >= 0.01 else f"{seconds * 1000:g}ms"


def number(low: int, high: int) -> Callable[[str], int]:
    """Return the parser of a whole number in a range."""

    def parse(text: str) -> int:
        if not re.fullmatch("-?[0-9]{1,10}", text) or not low <= int(text) <= high:
            raise NotAllowedError(f"allowed range [{low}, {high}]")
        return int(text)

    return parse


def size(low: int, high: int) -> Callable[[str], int]:
    """Return the parser of a size in a range: bytes, or a number with B, KiB, MiB or GiB."""

    def parse(text: str) -> int:
        size = parse_size(int(text) if re.fullmatch("-?[0-9]{1,15}", text) else text)
        if not low <= size <= high:
            raise NotAllowedError(f"allowed range [{low}, {high}] bytes")
        return int(size)

    return parse


port: Final = number(1, _MAX_PORT)
any_port: Final = number(0, _MAX_PORT)


def mode(text: str) -> int:
    """Parse the permissions of a file in octal, "660"."""
    if not re.fullmatch("[0-7]{1,4}", text):
        raise NotAllowedError("allowed: octal digits, such as 660")
    return int(text, 8)


def percent(text: str) -> float:
    """Parse a share of 0 or 0.001 to 100 percent."""
    match = re.fullmatch(r"([0-9]{1,3}(?:\.[0-9]+)?)%?", text)
    share = float(match[1]) if match else -1.0
    if share and not _LEAST_PERCENT <= share <= 100:
        raise NotAllowedError(f"allowed: 0 and the range [{_LEAST_PERCENT}, 100]")
    return share


def choice(names: Sequence[str]) -> Callable[[str], str]:
    """Return the parser of one of these names, in any case."""

    def parse(text: str) -> str:
        if text.lower() not in names:
            raise NotAllowedError(f"allowed: {', '.join(names)}")
        return text.lower()

    return parse


def text(text: str) -> str:
    """Return the text; raise if it is empty."""
    if not text:
        raise ConfigurationError("the value must not be empty")
    return text


def ports(text: str) -> tuple[int, int] | None:
    """Parse a port or a range of them, "40000-40999"; None for "0", which leaves it to the system.

    Returns:
        The first and the last.
    """
    if text == "0":
        return None
    try:
        first, last = parse_ports(text)
        check_ports("local-ports", first, last)
    except ConfigurationError:
        raise NotAllowedError(
            f"allowed: 0, a port, or a range FIRST-LAST within [1, {_MAX_PORT}]"
        ) from None
    return first, last


def interface(text: str) -> str:
    """Parse the name of an interface, an address or a host name.

    Its existence is checked for each connection, since interfaces come and go.
    """
    if not re.fullmatch(r"[!-~]{1,255}", text):
        raise ConfigurationError(f"{text!r} is not an interface, address or host name")
    return text


def logfile(text: str) -> Logfile:
    """Parse the name of a file, optionally with a mode and a colon before it."""
    mode, colon, path = text[:1], text[1:2], text[2:]
    if colon != ":":
        mode, path = "a", text
    if mode not in ("a", "A", "w", "W"):
        raise ConfigurationError(f"invalid logfile mode {mode!r} (allowed: a, w, A, W)")
    return Logfile(path, truncate=mode in "wW", line_buffered=mode in "AW")


def access_log(text: str) -> str:
    """Return the absolute path of the access log."""
    check_file_name("access-log", text)
    return os.path.abspath(text)


def host(text: str) -> str:
    """Parse the Host of copies: "keep", "target", or a name, optionally with a port."""
    if not re.fullmatch(r"(?:[0-9A-Za-z._-]{1,255}|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?", text):
        raise ConfigurationError(f"must be keep, target or a host name, got {text!r}")
    return text


def marker(text: str) -> tuple[str, str]:
    """Parse a header field, NAME or NAME:VALUE; the default of VALUE is "1"."""
    name, colon, value = text.partition(":")
    value = value.strip(" \t") if colon else "1"
    try:
        check_field("marker", name, value)
    except ConfigurationError as error:
        raise ConfigurationError(f"{error}; give it as NAME or NAME:VALUE") from None
    return name, value
