"""Parsers of the texts in settings: times ("1.5s"), sizes ("32MiB"), name servers.

The settings check the ranges of the values.
"""

import re
from ipaddress import ip_address
from typing import Final
from urllib.parse import urlsplit

from spoakit.exceptions import ConfigurationError

TIMES: Final = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
"""Units of time, in seconds."""

_SIZES: Final = {"B": 1, "KiB": 1024, "MiB": 1024**2, "GiB": 1024**3}
_NUMBER: Final = r"([0-9]{1,15}(?:\.[0-9]{1,15})?)"
_TIME: Final = re.compile(rf"{_NUMBER} ?({'|'.join(TIMES)})", re.ASCII)
_SIZE: Final = re.compile(rf"{_NUMBER} ?({'|'.join(_SIZES)})", re.ASCII)


def parse_seconds(value: object) -> float:
    """Parse a time: a number of seconds, or a text like "1.5s" or "10m".

    Raises:
        ConfigurationError: the value is not a time.
    """
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    match = _TIME.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ConfigurationError(
            f"{value!r} is not a time: a number of seconds, or a text such as "
            '"1.5s" with us, ms, s, m, h or d'
        )
    return float(match[1]) * TIMES[match[2]]


def parse_size(value: object) -> int:
    """Parse a size: a number of bytes, or a text like "32MiB".

    Raises:
        ConfigurationError: the value is not a size.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    match = _SIZE.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ConfigurationError(
            f"{value!r} is not a size: a whole number of bytes, or a text such as "
            '"32MiB" with B, KiB, MiB or GiB'
        )
    return int(float(match[1]) * _SIZES[match[2]])


def parse_nameserver(text: str) -> tuple[str, int]:
    """Parse the address and port of a name server, as "127.0.0.1:5353" or "[::1]:53".

    Raises:
        ConfigurationError: the text is not an address.
    """
    try:
        parts = urlsplit(f"//{text}" if text.count(":") < 2 or "]" in text else f"//[{text}]")
        if parts.port == 0:
            raise ValueError("a port is 1 to 65535")
        return str(ip_address(parts.hostname or "")), parts.port or 53
    except ValueError:
        raise ConfigurationError(
            f"nameservers: {text[:80]!r} is not an address, with a port or not"
        ) from None
