"""Limits of lists: a line that is cut off or mistaken must not list a quarter of the Internet."""

from array import array
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Annotated, Final

from spoakit.apps.checks import check_range
from spoakit.apps.iprep.addresses import PRIVATE, Range, parse_range
from spoakit.apps.iprep.sources.entries import Entries
from spoakit.apps.toml import Notation, Table
from spoakit.exceptions import ConfigurationError

# Bits that are set behind a shorter prefix mean that its end was cut off: "45.199.0.0/2".
_WHOLE_PREFIX4: Final = 16
_WHOLE_PREFIX6: Final = 32
_SHOWN: Final = 80


class MinPrefix(Table, frozen=True):
    """Shortest prefixes of networks; no range may be larger.

    Attributes:
        ipv4: of IPv4, 0 to 32.
        ipv6: of IPv6, 0 to 128.
    """

    ipv4: int = 6
    ipv6: int = 12


def _parse_min_prefix(value: int | MinPrefix, _: Path) -> MinPrefix:
    if isinstance(value, MinPrefix):
        return value
    if not 0 <= value <= 32:
        raise ConfigurationError(f"{value} is not in the range 0 to 32")
    # IPv4's /24 is given out to whom IPv6's /48 is.
    return MinPrefix(value, 2 * value)


class ListLimits(Table, frozen=True):
    """Sizes that the ranges of a list may have.

    Addresses that are not of the public Internet are not limited: sources do not count for them.

    Attributes:
        min_prefix: the shortest prefixes of networks; in a file, one of IPv4 stands for both.
        max_share: the most that the list may have of the public addresses of IPv4, or of IPv6, in
            percent.
    """

    min_prefix: Annotated[MinPrefix, Notation(int | MinPrefix, _parse_min_prefix)] = MinPrefix()
    max_share: float = 5.0

    def __post_init__(self) -> None:
        check_range("min-prefix.ipv4", self.min_prefix.ipv4, 0, 32)
        check_range("min-prefix.ipv6", self.min_prefix.ipv6, 0, 128)
        check_range("max-share", self.max_share, 0, 100)

    @property
    def unchecked_bits(self) -> tuple[int, int]:
        """The most free bits of an IPv4 and an IPv6 network that `parse` never refuses."""
        return 32 - max(self.min_prefix.ipv4, _WHOLE_PREFIX4), 128 - max(
            self.min_prefix.ipv6, _WHOLE_PREFIX6
        )

    def parse(self, text: str) -> Range:
        """Parse a range as `parse_range` does.

        Raises:
            ValueError: it is not a range, it is too large, or its prefix seems to be cut off.
        """
        entry = parse_range(text)
        version, first, last, masked = entry
        if first == last:
            return entry
        prefix = (32 if version == 4 else 128) - (last - first).bit_length()
        shortest = self.min_prefix.ipv4 if version == 4 else self.min_prefix.ipv6
        if prefix < shortest and not _is_special(version, first, last):
            raise ValueError(f"{text[:_SHOWN]!r} is larger than a /{shortest} (min-prefix)")
        whole = _WHOLE_PREFIX4 if version == 4 else _WHOLE_PREFIX6
        if masked and prefix < whole:
            raise ValueError(
                f"{text[:_SHOWN]!r} has bits set behind a prefix shorter than /{whole}, "
                "which may be cut off"
            )
        return entry

    def excess(self, entries: Entries) -> str:
        """Return in words that a list has too many of the public addresses, "" if it has not."""
        for version, most in ((4, _most4(entries)), (6, _most6(entries))):
            public = 2 ** (32 if version == 4 else 128) - _size(*_SPECIAL[version])
            # The sum of sizes costs little; only where that is too large ranges are sorted.
            if most * 100 <= self.max_share * public:
                continue
            share = 100 * _public_size(entries, version) / public
            if share > self.max_share:
                return (
                    f"it has {share:.3g} percent of all public IPv{version} addresses, more than "
                    f"max-share = {self.max_share:g}; raise that if it is meant"
                )
        return ""


# The first and the last addresses of the ranges that are not of the public Internet.
_SPECIAL: Final = {
    family: (
        [first for version, first, _, _ in PRIVATE if version == family],
        [last for version, _, last, _ in PRIVATE if version == family],
    )
    for family in (4, 6)
}


def _is_special(version: int, first: int, last: int) -> bool:
    return any(low <= first and last <= high for low, high in zip(*_SPECIAL[version], strict=True))


def _size(firsts: Iterable[int], lasts: Iterable[int]) -> int:
    """Return the number of addresses of ranges, each counted once.

    Args:
        firsts: the first address of each, in any order; there is at least one.
        lasts: the last address of each, in any order.
    """
    begins, ends = sorted(firsts), sorted(lasts)
    # An address that as many ranges end before as begin before it is in none of them: the gaps are
    # between the n-th end and the beginning behind the n-th, where that is greater.
    gaps = sum(begin - end - 1 for begin, end in zip(begins[1:], ends, strict=False) if begin > end)
    return ends[-1] - begins[0] + 1 - gaps


def _public_size(entries: Entries, version: int) -> int:
    """Return the number of public addresses of one version that a list has."""
    firsts, lasts = _SPECIAL[version]
    if version == 4:
        both = _size(chain(entries.first4, firsts), chain(entries.last4, lasts))
    else:
        both = _size(chain(_joined(entries.first6), firsts), chain(_joined(entries.last6), lasts))
    return both - _size(firsts, lasts)


def _joined(halves: "tuple[array[int], array[int]]") -> Iterable[int]:
    return (upper << 64 | lower for upper, lower in zip(*halves, strict=True))


def _most4(entries: Entries) -> int:
    """Return the number of IPv4 addresses, those in several ranges counted several times."""
    return sum(entries.last4) - sum(entries.first4) + len(entries.first4)


def _most6(entries: Entries) -> int:
    """Return a number that the IPv6 addresses cannot exceed, by their upper halves."""
    upper = sum(entries.last6[0]) - sum(entries.first6[0]) + len(entries.first6[0])
    return upper << 64
