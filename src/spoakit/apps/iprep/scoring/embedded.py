"""IPv4 addresses that IPv6 addresses carry: those of 6to4 (RFC 3056) and of NAT64 (RFC 6052).

A client behind a translator comes with an IPv6 address that has its IPv4 address in it. What is
known of either is known of the client.
"""

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Final

from spoakit import IPAddress
from spoakit.apps.iprep.addresses import MAX_IPV4, unmapped
from spoakit.apps.iprep.config.units import parse_nat64
from spoakit.apps.iprep.scoring.policy import Rule, Verdict

_LOW_56: Final = (1 << 56) - 1
_6TO4: Final = 0x2002


class EmbeddedAddresses:
    """Finds the IPv4 address that an IPv6 address carries.

    Args:
        nat64: the prefixes of translators, as in `PolicySettings.nat64`.

    Raises:
        ConfigurationError: one is not a prefix of RFC 6052.
    """

    def __init__(self, nat64: tuple[str, ...]) -> None:
        self._prefixes = [
            (128 - each.prefixlen, int(each.network_address) >> (128 - each.prefixlen))
            for each in parse_nat64("policy.nat64", nat64)
        ]
        # Nearly all addresses begin otherwise, and are done with at the first look.
        self._beginnings = {_6TO4, *(prefix << free >> 112 for free, prefix in self._prefixes)}

    def ipv4_of(self, address: IPv6Address) -> IPv4Address | None:
        """Return the IPv4 address in an address, None where there is none."""
        number = int(address)
        beginning = number >> 112
        if beginning not in self._beginnings:
            return None
        if beginning == _6TO4:
            return IPv4Address(number >> 80 & MAX_IPV4)
        for free, prefix in self._prefixes:
            if number >> free == prefix:
                return IPv4Address(_translated(number, free))
        return None

    def network_of(self, address: IPAddress, ipv6_prefix: int) -> IPv4Network | IPv6Network:
        """Return the network of one client: its IPv4 address, or its prefix of IPv6."""
        address = unmapped(address)
        if isinstance(address, IPv6Address):
            ipv4 = self.ipv4_of(address)
            if ipv4 is None:
                return IPv6Network((int(address), ipv6_prefix), strict=False)
            address = ipv4
        return IPv4Network(address)


def _translated(number: int, free: int) -> int:
    """Return the IPv4 address behind a prefix that leaves bits free (RFC 6052, 2.2)."""
    if free == 32:
        return number & MAX_IPV4
    without_bits_64_to_71 = number >> 64 << 56 | number & _LOW_56
    return without_bits_64_to_71 >> (free - 40) & MAX_IPV4


def severity(verdict: Verdict) -> tuple[bool, bool, int]:
    """Return the rank of a verdict among those on the addresses of one client; the lowest holds.

    An address that is always allowed is so in each of its forms. A verdict of something that is
    known of the client comes before one of nothing, and then the worst score.
    """
    rule = verdict.rule
    return rule is not Rule.ALLOW, rule in (Rule.UNKNOWN, Rule.PRIVATE), verdict.score
