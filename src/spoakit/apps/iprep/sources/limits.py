"""Limits of lists: a line that is cut off or mistaken must not list a quarter of the Internet."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from spoakit.apps.checks import check_range
from spoakit.apps.iprep.addresses import PRIVATE, Range, parse_range
from spoakit.apps.iprep.sources.entries import Entries

# Bits that are set behind a shorter prefix mean that its end was cut off: "45.199.0.0/2".
_WHOLE_PREFIX4: Final = 16
_WHOLE_PREFIX6: Final = 32
_SHOWN: Final = 80


@dataclass(frozen=True, slots=True)
class ListLimits:
    """Sizes that the ranges of a list may have.

    Addresses that are not of the public Internet are not limited: sources do not count for them.

    Attributes:
        prefix4: the shortest prefix of an IPv4 network, 0 to 32. No range may be larger.
        prefix6: the shortest prefix of an IPv6 network, 0 to 128, likewise.
        max_share: the most that the list may have of the public addresses of IPv4, or of IPv6, in
            percent.
    """

    prefix4: int = 6
    prefix6: int = 12
    max_share: float = 5.0

    def __post_init__(self) -> None:
        check_range("min-prefix.ipv4", self.prefix4, 0, 32)
        check_range("min-prefix.ipv6", self.prefix6, 0, 128)
        check_range("max-share", self.max_share, 0, 100)

    @property
    def unchecked_bits(self) -> tuple[int, int]:
        """The most free bits of an IPv4 and an IPv6 network that `parse` never refuses."""
        return 32 - max(self.prefix4, _WHOLE_PREFIX4), 128 - max(self.prefix6, _WHOLE_PREFIX6)

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
        shortest = self.prefix4 if version == 4 else self.prefix6
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
            special = _SPECIAL[version]
            public = 2 ** (32 if version == 4 else 128) - _size(special)
            # The sum of sizes costs little; only where that is too large ranges are sorted.
            if most * 100 <= self.max_share * public:
                continue
            share = 100 * (_size((*_ranges(entries, version), *special)) - _size(special)) / public
            if share > self.max_share:
                return (
                    f"it has {share:.3g} percent of all public IPv{version} addresses, more than "
                    f"max-share = {self.max_share:g}; raise that if it is meant"
                )
        return ""


_SPECIAL: Final = {
    family: tuple((first, last) for version, first, last, _ in PRIVATE if version == family)
    for family in (4, 6)
}


def _is_special(version: int, first: int, last: int) -> bool:
    return any(low <= first and last <= high for low, high in _SPECIAL[version])


def _size(ranges: Iterable[tuple[int, int]]) -> int:
    """Return the number of addresses of ranges, each counted once."""
    size, end = 0, -1
    for first, last in sorted(ranges):
        if last > end:
            size += last - max(first - 1, end)
            end = last
    return size


def _ranges(entries: Entries, version: int) -> Iterable[tuple[int, int]]:
    if version == 4:
        return zip(entries.first4, entries.last4, strict=True)
    halves = zip(*entries.first6, *entries.last6, strict=True)
    return ((a << 64 | b, c << 64 | d) for a, b, c, d in halves)


def _most4(entries: Entries) -> int:
    """Return the number of IPv4 addresses, those in several ranges counted several times."""
    return sum(entries.last4) - sum(entries.first4) + len(entries.first4)


def _most6(entries: Entries) -> int:
    """Return a number that the IPv6 addresses cannot exceed, by their upper halves."""
    upper = sum(entries.last6[0]) - sum(entries.first6[0]) + len(entries.first6[0])
    return upper << 64
