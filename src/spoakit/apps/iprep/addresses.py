"""Addresses, networks and ranges of them, as texts and as numbers."""

import re
from ipaddress import IPv4Address, IPv6Address
from socket import AF_INET, AF_INET6, inet_pton
from typing import Final, TypeAlias

from spoakit import IPAddress

# What is 4 or 6, the first and the last address, and whether bits behind a prefix were set.
Range: TypeAlias = tuple[int, int, int, bool]

MAX_IPV4: Final = 2**32 - 1
MAX_IPV6: Final = 2**128 - 1
_MAPPED: Final = 0xFFFF << 32  # ::ffff:0:0/96, RFC 4291, 2.5.5.2
_PREFIX: Final = re.compile("[0-9]{1,3}", re.ASCII)


def parse_range(text: str) -> Range:
    """Read an address, a network "192.0.2.0/24" or a range "192.0.2.1-192.0.2.9".

    Bits that are set behind the prefix of a network are taken away. IPv4 addresses that are
    written as IPv6 (``::ffff:192.0.2.1``) are IPv4 addresses.

    Returns:
        4 or 6, the first and the last address as numbers, and whether bits were taken away.

    Raises:
        ValueError: it is none of these; the text says why.
    """
    if "-" in text:
        return _parse_span(text)
    address, slash, prefix = text.partition("/")
    version, first = parse_number(address)
    if not slash:
        return version, first, first, False
    return _network(version, first, _parse_prefix(prefix, 128 if ":" in address else 32))


def parse_number(text: str) -> tuple[int, int]:
    """Return 4 or 6, and the number of an address.

    Raises:
        ValueError: it is no address, or one with a zone or with leading zeros.
    """
    try:
        if ":" not in text:
            return 4, int.from_bytes(inet_pton(AF_INET, text), "big")
        return _unmapped(int.from_bytes(inet_pton(AF_INET6, text), "big"))
    except (OSError, ValueError):  # the latter for a NUL or what is not ASCII
        raise ValueError(f"{text[:80]!r} is not an address") from None


def address_of(version: int, number: int) -> IPAddress:
    """Return the address with a number."""
    return IPv4Address(number) if version == 4 else IPv6Address(number)


def number_of(address: IPAddress) -> tuple[int, int]:
    """Return 4 or 6, and the number of an address; one mapped into IPv6 is an IPv4 address."""
    return _unmapped(int(address)) if address.version == 6 else (4, int(address))


def unmapped(address: IPAddress) -> IPAddress:
    """Return an address, and one that is mapped into IPv6 as the IPv4 address that it is."""
    return (address.ipv4_mapped or address) if address.version == 6 else address


def _unmapped(number: int) -> tuple[int, int]:
    return (4, number & MAX_IPV4) if number >> 32 == 0xFFFF else (6, number)


def _parse_prefix(text: str, longest: int) -> int:
    """Return the prefix's length as that of an IPv4 address, or of an IPv6 one."""
    if _PREFIX.fullmatch(text) is None or int(text) > longest:
        raise ValueError(f"{text[:80]!r} is not the length of a prefix, 0 to {longest}")
    return longest - int(text)


def _network(version: int, address: int, free: int) -> Range:
    """Return the network around an address that leaves so many bits free."""
    if version == 4 and free > 32:  # ::ffff:192.0.2.1/64 is far more than IPv4
        version, address = 6, _MAPPED | address
    last = address | (1 << free) - 1
    first = last ^ (1 << free) - 1
    return version, first, last, first != address


def _parse_span(text: str) -> Range:
    before, _, behind = text.partition("-")
    version, first = parse_number(before.strip())
    last_version, last = parse_number(behind.strip())
    if version != last_version:
        raise ValueError(f"{text[:80]!r} begins in IPv{version} and ends in IPv{last_version}")
    if first > last:
        raise ValueError(f"{text[:80]!r} ends before it begins")
    return version, first, last, False


# IANA's registries of special-purpose addresses, multicast, and what is not given out. Of IPv6 only
# 2000::/3 is, and the prefix of NAT64 stands for addresses of IPv4.
PRIVATE: Final = tuple(
    map(
        parse_range,
        (
            "0.0.0.0/8",
            "10.0.0.0/8",
            "100.64.0.0/10",
            "127.0.0.0/8",
            "169.254.0.0/16",
            "172.16.0.0/12",
            "192.0.0.0/24",
            "192.0.2.0/24",
            "192.168.0.0/16",
            "198.18.0.0/15",
            "198.51.100.0/24",
            "203.0.113.0/24",
            "224.0.0.0/3",
            "::-64:ff9a:ffff:ffff:ffff:ffff:ffff:ffff",
            "64:ff9b::1:0:0-1fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
            "2001:2::/48",
            "2001:10::/28",
            "2001:db8::/32",
            "3fff::/20",
            "4000::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
        ),
    )
)
"""The addresses that are not those of hosts of the public Internet."""
