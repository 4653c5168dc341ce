"""Parsing of the texts in the settings of spoa-iprep: addresses, DNSBL codes, secrets, names."""

import re
from ipaddress import IPv4Address, IPv4Network, IPv6Network
from pathlib import Path
from typing import Annotated, Final, TypeAlias

from spoakit.apps.iprep.addresses import Range, parse_range
from spoakit.apps.toml import Notation, Prefix, existing_file
from spoakit.exceptions import ConfigurationError

CODES: Final = IPv4Network("127.0.0.0/8")
"""Addresses that a DNSBL answers with (RFC 5782, 2.1)."""
ERROR_CODES: Final = IPv4Network("127.255.255.0/24")
"""Those by which it refuses to answer: 127.255.255.255 to a client that asks too often."""
NEVER_LISTED: Final = IPv4Address("127.0.0.1")
"""The address that no DNSBL lists or answers with for a listing (RFC 5782, 2.1 and 5)."""

_MAX_SECRET: Final = 16 * 1024
_ASN: Final = re.compile("[Aa][Ss]([0-9]{1,10})")
_NAT64_PREFIXES: Final = (32, 40, 48, 56, 64, 96)  # RFC 6052, 2.2


def parse_ranges(option: str, texts: tuple[str, ...]) -> tuple[Range, ...]:
    """Parse addresses, networks and ranges.

    Raises:
        ConfigurationError: one is none of these; the text names the option and the place in it,
            from 1.
    """
    ranges = []
    for number, text in enumerate(texts, 1):
        try:
            ranges.append(parse_range(text))
        except ValueError as error:
            raise ConfigurationError(f"{option}[{number}]: {error}") from None
    return tuple(ranges)


def parse_nat64(option: str, texts: tuple[str, ...]) -> tuple[IPv6Network, ...]:
    """Parse the prefixes of translators.

    Raises:
        ConfigurationError: one is not a prefix of RFC 6052; the text names the option and the
            place in it, from 1.
    """
    prefixes = []
    for number, text in enumerate(texts, 1):
        try:
            prefix = IPv6Network(text)
            if prefix.prefixlen not in _NAT64_PREFIXES:
                raise ValueError
        except ValueError:
            raise ConfigurationError(
                f"{option}[{number}]: {text[:80]!r} is not an IPv6 network with a prefix of "
                f"{', '.join(map(str, _NAT64_PREFIXES))} bits and no bits set behind it"
            ) from None
        prefixes.append(prefix)
    return tuple(prefixes)


def bare_asn(text: str) -> str:
    """Return the number of an autonomous system without the letters before it, as in "AS15169"."""
    match = _ASN.fullmatch(text)
    return text if match is None else match[1]


def parse_codes(text: str) -> tuple[int, int]:
    """Return the first and the last address that a DNSBL may answer with: a key of `scores`.

    Args:
        text: an address "127.0.0.2", a range "127.0.0.4-127.0.0.7" or a network "127.0.0.4/30".

    Raises:
        ConfigurationError: it is none of these, or is not of 127.0.0.0/8.
    """
    try:
        version, first, last, masked = parse_range(text)
    except ValueError:
        version, first, last, masked = 0, 0, 0, False
    low, high = int(CODES.network_address), int(CODES.broadcast_address)
    if version != 4 or masked or not low <= first <= last <= high:
        raise ConfigurationError(
            f"scores: {text[:80]!r} is not an address of {CODES}, nor a range or network of them"
        )
    if first == last == int(NEVER_LISTED) or first >= int(ERROR_CODES.network_address):
        raise ConfigurationError(
            f"scores: {text[:80]!r} is a DNSBL's refusal to answer, never a listing; leave it out"
        )
    return first, last


def parse_secrets(headers: dict[str, str], folder: Path) -> tuple[tuple[str, str], ...]:
    """Return names and values; "@FILE" is the content of a file, without the end of its line.

    Raises:
        ConfigurationError: a file cannot be read, or is too large; no value is shown.
    """
    return tuple((name, _parse_secret(name, value, folder)) for name, value in headers.items())


def _parse_secret(name: str, value: str, folder: Path) -> str:
    if not value.startswith("@"):
        return value
    with Prefix(f".{name[:80]}: "):
        path = existing_file(value[1:], folder)
        with open(path, "rb") as file:
            content = file.read(_MAX_SECRET + 1)
        if len(content) > _MAX_SECRET:
            raise ConfigurationError(f"{path!r} is larger than {_MAX_SECRET} bytes")
    return content.decode("ascii", "replace").rstrip("\r\n")


def parse_name(name: str, folder: Path) -> str:
    """Return the path of a file or a folder, which need not be there.

    Raises:
        ConfigurationError: no file can have the name.
    """
    if not name or "\0" in name:
        raise ConfigurationError(f"{name[:80]!r} is not a name")
    return str(folder / name)


def parse_mode(text: str) -> int:
    """Return the permissions of a file, as "660" has them.

    Raises:
        ConfigurationError: it is not three octal digits.
    """
    if re.fullmatch("0?[0-7]{3}", text) is None:
        raise ConfigurationError(f'{text[:80]!r} is not a text such as "660"')
    return int(text, 8)


Name: TypeAlias = Annotated[str, Notation(str, parse_name)]
"""The path of a file or a folder; in a file, its name."""
