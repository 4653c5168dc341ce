"""What the texts stand for that a mirror alone is told: ports, header fields.

What is allowed of it, the settings say.
"""

import re
from typing import Final

from spoakit.exceptions import ConfigurationError

_PORTS: Final = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?")


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
