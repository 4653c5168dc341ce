"""Readers of options' values: each function reads the text of one kind."""

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

Reader: TypeAlias = Callable[[str], object]

_TIME: Final = re.compile(rf"(-?[0-9]+(?:\.[0-9]+)?)({'|'.join(TIMES)})?")
_MAX_PORT: Final = 65535
_LEAST_PERCENT: Final = 0.001


class NotAllowedError(ConfigurationError):
    """A value that an option cannot have; the text says what is allowed.

    The value and the option's name are for whoever knows the option to add.
    """


@dataclass(frozen=True, slots=True)
class TimeReader:
    """Reader of a time with a unit, us, ms, s, m, h or d: "500ms", "1.5s", "7d".

    Attributes:
        low: the least, in seconds.
        high: the most, in seconds.
        unit: unit of a number without one, as the C programs' options have it; None refuses all
            such numbers but 0.
        off: 0 is allowed, too.
    """

    low: float
    high: float
    unit: str | None = None
    off: bool = False

    def __call__(self, text: str) -> float:
        """Return the seconds.

        Raises:
            NotAllowedError: it is not a time, or out of its range.
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


def time(low: float, high: float) -> TimeReader:
    """Return the reader of a C program's option: milliseconds unless a unit is given."""
    return TimeReader(low, high, "ms")


def duration(low: float, high: float, *, off: bool = False) -> TimeReader:
    """Return the reader of any other option, whose time has a unit."""
    return TimeReader(low, high, off=off)


def _show(seconds: float) -> str:
    if not seconds:
        return "0"
    return f"{seconds:.2f}s" if seconds >= 0.01 else f"{seconds * 1000:g}ms"


def number(low: int, high: int) -> Callable[[str], int]:
    """Return what reads a whole number of a range."""

    def read(text: str) -> int:
        if not re.fullmatch("-?[0-9]{1,10}", text) or not low <= int(text) <= high:
            raise NotAllowedError(f"allowed range [{low}, {high}]")
        return int(text)

    return read


def size(low: int, high: int) -> Callable[[str], int]:
    """Return a reader of a size of a range: a number of bytes, or one with B, KiB, MiB or GiB."""

    def read(text: str) -> int:
        size = parse_size(int(text) if re.fullmatch("-?[0-9]{1,15}", text) else text)
        if not low <= size <= high:
            raise NotAllowedError(f"allowed range [{low}, {high}] bytes")
        return int(size)

    return read


port: Final = number(1, _MAX_PORT)
any_port: Final = number(0, _MAX_PORT)


def mode(text: str) -> int:
    """Read the permissions of a file in octal, "660"."""
    if not re.fullmatch("[0-7]{1,4}", text):
        raise NotAllowedError("allowed: octal digits, such as 660")
    return int(text, 8)


def percent(text: str) -> float:
    """Read a share of 0 or 0.001 to 100 percent."""
    match = re.fullmatch(r"([0-9]{1,3}(?:\.[0-9]+)?)%?", text)
    share = float(match[1]) if match else -1.0
    if share and not _LEAST_PERCENT <= share <= 100:
        raise NotAllowedError(f"allowed: 0 and the range [{_LEAST_PERCENT}, 100]")
    return share


def choice(names: Sequence[str]) -> Callable[[str], str]:
    """Return what reads one of these names, in capital letters or not."""

    def read(text: str) -> str:
        if text.lower() not in names:
            raise NotAllowedError(f"allowed: {', '.join(names)}")
        return text.lower()

    return read


def text(text: str) -> str:
    """Read anything that is not empty."""
    if not text:
        raise ConfigurationError("the value is empty")
    return text


def ports(text: str) -> tuple[int, int] | None:
    """Read a port or a range of them, "40000-40999"; None for "0", which leaves it to the system.

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
    """Read the name of an interface, an address or a host name.

    Whether there is one by that name is seen when a connection is made: interfaces come and go.
    """
    if not re.fullmatch(r"[!-~]{1,255}", text):
        raise ConfigurationError(f"{text!r} is no interface, address or host name")
    return text


def logfile(text: str) -> Logfile:
    """Read the name of a file, behind a mode and a colon or not."""
    mode, colon, path = text[:1], text[1:2], text[2:]
    if colon != ":":
        mode, path = "a", text
    if mode not in ("a", "A", "w", "W"):
        raise ConfigurationError(f"invalid logfile mode {mode!r} (allowed: a, w, A, W)")
    return Logfile(path, truncate=mode in "wW", line_buffered=mode in "AW")


def access_log(text: str) -> str:
    """Read the name of the access log's file, made absolute."""
    check_file_name("access-log", text)
    return os.path.abspath(text)


def host(text: str) -> str:
    """Read what the Host of copies is: "keep", "target", or a name, with a port or not."""
    if not re.fullmatch(r"(?:[0-9A-Za-z._-]{1,255}|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?", text):
        raise ConfigurationError(f"{text!r} is neither 'keep', 'target' nor a host name")
    return text


def marker(text: str) -> tuple[str, str]:
    """Read a field as NAME or NAME:VALUE, whose value is "1" without one."""
    name, colon, value = text.partition(":")
    value = value.strip(" \t") if colon else "1"
    try:
        check_field("marker", name, value)
    except ConfigurationError as error:
        raise ConfigurationError(f"{error}; give it as NAME or NAME:VALUE") from None
    return name, value
