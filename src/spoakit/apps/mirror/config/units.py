"""Parsing of the texts in the mirror's settings alone: ports, header fields."""

import re
from typing import Final

from spoakit.exceptions import ConfigurationError

_PORTS: Final = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?")


def parse_ports(value: str | int) -> tuple[int, int]:
    """Return the first and the last of the ports that "20000-21000" or "20000" stands for.

    Raises:
        ConfigurationError: it is neither a port nor a range of ports.
    """
    match = _PORTS.fullmatch(str(value))
    if match is None:
        raise ConfigurationError(
            f'{value!r} is not a port, and not a range of ports as "20000-21000"'
        )
    return int(match[1]), int(match[2] or match[1])


def parse_marker(value: str | bool) -> tuple[str, str] | None:
    """Return the name and the value of a field such as "X-Mirrored: 1"; None for False and "".

    Raises:
        ConfigurationError: it is True, or has no colon.
    """
    if not value:
        return None
    name, colon, rest = ("", "", "") if value is True else value.partition(":")
    if not colon:
        shown = "true" if value is True else repr(value[:80])
        raise ConfigurationError(f'{shown} is not a field such as "X-Mirrored: 1"')
    return name, rest.strip(" \t")
