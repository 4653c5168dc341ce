"""A list of 1.4 million addresses and networks, the same in every run, and what is looked up in it.

It is mixed as those that people load are: mostly single IPv4 addresses, IPv4 networks of which
most are /24, and IPv6 networks of few /16. Every entry is a prefix, since neither pytricia nor
py-radix nor a HAProxy map has ranges of another form. Some lie within others.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from socket import AF_INET, AF_INET6, inet_ntop
from typing import TypeAlias

Address: TypeAlias = IPv4Address | IPv6Address
Prefix: TypeAlias = tuple[int, int, int]  # 4 or 6, the first address, the prefix's length

QUESTIONS = 200_000
_SEED = 1_400_000
_ENTRIES_A_COMMENT = 10_000
_IPV4_LENGTHS = (24,) * 14 + (16, 20, 21, 22, 23, 28)
_IPV6_LENGTHS = (32, 48, 48, 56, 64, 64, 64, 128)
_IPV6_ROOTS = (
    *(0x2001, 0x2003, 0x2400, 0x2402, 0x2406, 0x240E, 0x2600, 0x2604, 0x2606),
    *(0x2800, 0x2804, 0x2A00, 0x2A01, 0x2A02, 0x2A03, 0x2A06, 0x2A0A, 0x2A0E),
)


@dataclass(frozen=True, slots=True)
class Blocklist:
    """How many entries of each kind there are.

    Attributes:
        addresses: single IPv4 addresses.
        networks: IPv4 networks.
        networks6: IPv6 networks, an eighth of them single addresses.
    """

    addresses: int = 950_000
    networks: int = 250_000
    networks6: int = 200_000

    def __len__(self) -> int:
        return self.addresses + self.networks + self.networks6

    def scaled(self, scale: float) -> "Blocklist":
        """Return a list of a share of the entries of each kind."""
        shares = (self.addresses, self.networks, self.networks6)
        return Blocklist(*(round(share * scale) for share in shares))

    def prefixes(self) -> Iterator[Prefix]:
        """Yield the entries, in random order within their kind."""
        numbers = random.Random(_SEED)
        for _ in range(self.addresses):
            yield 4, numbers.randrange(1 << 24, 224 << 24), 32
        for _ in range(self.networks):
            length = numbers.choice(_IPV4_LENGTHS)
            yield 4, numbers.randrange(1 << 24, 224 << 24) >> 32 - length << 32 - length, length
        for _ in range(self.networks6):
            length = numbers.choice(_IPV6_LENGTHS)
            yield 6, _random_ipv6(numbers) >> 128 - length << 128 - length, length

    def write(self, path: Path) -> None:
        """Write the list as a text with comments, an entry a line."""
        with path.open("w", encoding="ascii") as file:
            for number, prefix in enumerate(self.prefixes()):
                if number % _ENTRIES_A_COMMENT == 0:
                    file.write(f"# entries from {number:,}\n")
                file.write(f"{text_of(prefix)}\n")

    def questions(self, count: int = QUESTIONS) -> list[Address]:
        """Return addresses to look up, in random order: most are listed, a seventh are IPv6."""
        numbers = random.Random(_SEED + 1)
        asked: list[Address] = []
        for version, first, length in numbers.choices(list(self.prefixes()), k=count // 2):
            if version == 4:
                asked.append(IPv4Address(first | numbers.getrandbits(32) >> length))
                asked.append(IPv4Address(numbers.randrange(1 << 24, 224 << 24)))
            else:
                asked.append(IPv6Address(first | numbers.getrandbits(128) >> length))
                asked.append(IPv6Address(_random_ipv6(numbers)))
        numbers.shuffle(asked)
        return asked


def text_of(prefix: Prefix) -> str:
    """Return an address, or a network with its length."""
    version, first, length = prefix
    family, size = (AF_INET, 4) if version == 4 else (AF_INET6, 16)
    text = inet_ntop(family, first.to_bytes(size, "big"))
    return text if length == 8 * size else f"{text}/{length}"


def _random_ipv6(numbers: random.Random) -> int:
    return numbers.choice(_IPV6_ROOTS) << 112 | numbers.getrandbits(112)
