"""What the texts stand for that a mirror is told: times, sizes, ports, header fields.

What is allowed of it, the settings say.
"""

import re
from typing import Final

from spoakit.exceptions import ConfigurationError

TIMES: Final = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
"""The units of times, in seconds."""

_SIZES: Final = {"B": 1, "KiB": 1024, "MiB": 1024**2, "GiB": 1024**3}
_NUMBER: Final = r"([0-9]{1,15}(?:\.[0-9]{1,15})?)"
_TIME: Final = re.compile(rf"{_NUMBER} ?({'|'.join(TIMES)})", re.ASCII)
_SIZE: Final = re.compile(rf"{_NUMBER} ?({'|'.join(_SIZES)})", re.ASCII)
_PORTS: Final = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?")


class Seconds(float):
    """A time: a number of seconds, or a text with a unit."""


class Size(int):
    """A size: a number of bytes, or a text with a unit."""


def parse_seconds(value: object) -> Seconds:
    """Return the time that a number of seconds or a text such as "1.5s" or "10m" stands for.

    Raises:
        ConfigurationError: it is no such thing.
    """
    if isinstance(value, int | float) and not isinstance(value, bool):
        return Seconds(value)
    match = _TIME.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ConfigurationError(
            f"{value!r} is not a time: a number of seconds, or a text such as "
            '"1.5s" with us, ms, s, m, h or d'
        )
    return Seconds(float(match[1]) * TIMES[match[2]])


def parse_size(value: object) -> Size:
    """Return the size that a number of bytes or a text such as "32MiB" stands for.

    Raises:
        ConfigurationError: it is no such thing.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return Size(value)
    match = _SIZE.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ConfigurationError(
            f"{value!r} is not a size: a whole number of bytes, or a text such as "
            '"32MiB" with B, KiB, MiB or GiB'
        )
    return Size(float(match[1]) * _SIZES[match[2]])


def parse_ports(value: str | int) -> tuple[int, int]:
    """Return the first and the last of the ports that "20000-21000" or "20000" stands for.

    Raises:
        ConfigurationError: it is no such thing.
    """
    match = _PORTS.fullmatch(str(value))
    if match is None:
        raise ConfigurationError(
            f'local-ports: {value!r} is not a port, and not a range of ports as "20000-21000"'
        )
    return int(match[1]), int(match[2] or match[1])


def parse_field(option: str, text: str) -> tuple[str, str]:
    """Return the name and the value of a field such as "X-Mirrored: 1".

    Raises:
        ConfigurationError: there is no colon in it; the text names the option.
    """
    name, colon, value = text.partition(":")
    if not colon:
        raise ConfigurationError(f'{option}: {text[:80]!r} is not a field such as "X-Mirrored: 1"')
    return name, value.strip(" \t")
