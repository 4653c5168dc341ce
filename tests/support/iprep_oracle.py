"""Scores of random lists, compared with those that Python's `ipaddress` leads to.

Nothing of the project decides here which addresses a line has, whether it is refused, and which of
several ranges holds: each list is kept as ranges of numbers, and asked range by range.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_network
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any, Final, NamedTuple, TypeAlias

from spoakit.apps.iprep.config.loader import settings_of
from spoakit.apps.iprep.scoring.policy import Listing, Rule, score_of
from spoakit.apps.iprep.scoring.reputation import OpenSnapshot
from spoakit.apps.iprep.snapshot.builder import build_snapshot

LISTS: Final = 50
"""The lists of a snapshot: to build a table costs more than to read one of them."""

_ADDRESSES: Final = 100
_STARTS: Final = {4: int(IPv4Address("8.8.0.0")), 6: int(IPv6Address("2a00::"))}
_BITS: Final = {4: 32, 6: 128}
# By docs/reference/iprep-configuration.md, which is all that is known of the limits here.
_SHORTEST: Final = {4: 6, 6: 12}
_WHOLE: Final = {4: 16, 6: 32}
# A line that every list has, so that none is without a line that can be used.
_USED: Final = "192.0.2.255"

Address: TypeAlias = IPv4Address | IPv6Address


class Line(NamedTuple):
    """A line of a list.

    Attributes:
        text: its range.
        version: 4 or 6.
        first: the first address of the range.
        last: the last one.
        refused: whether it is too large, or seems to be cut off.
        masked: whether it is used without the bits behind its prefix.
        score: the score in it; None without.
    """

    text: str
    version: int
    first: int
    last: int
    refused: bool = False
    masked: bool = False
    score: int | None = None


@dataclass
class RandomList:
    """A list, as it is in the configuration, and its lines."""

    table: dict[str, Any]
    lines: list[Line]

    def score(self, address: Address) -> int | None:
        """Return the score of an address, None of one that the list does not have."""
        number = int(address)
        found = [
            (-line.first, line.last, self._score(line))
            for line in self.lines
            if line.version == address.version
            and line.first <= number <= line.last
            and not line.refused
        ]
        # The innermost holds: it begins last, and of those it is the shortest; then the worst.
        return min(found)[2] if found else None

    def _score(self, line: Line) -> int:
        score: int = self.table["score"] if line.score is None else line.score
        return score


class RandomLists:
    """Lists of addresses that are close to each other, and a policy, all from a seed."""

    def __init__(self, seed: int) -> None:
        self._random = random = Random(seed)
        self._span = random.choice((16, 200, 5000, 2**20))
        self.lists = [self._list(f"list{number}") for number in range(LISTS)]
        self.allow = [self._line() for _ in range(random.choice((0, 0, 2)))]
        self.unknown = random.choice((0, 50, 73, 100))
        self.combine = random.choice(("lowest", "weighted"))

    def write(self, folder: Path) -> dict[str, Any]:
        """Write the files of the lists; return the configuration."""
        for each in self.lists:
            (folder / each.table["path"]).write_text(self._content(each), newline="")
        policy = {
            "allow": [line.text for line in self.allow],
            "combine": self.combine,
            "unknown": self.unknown,
            "block-private": self._random.random() < 0.5,
        }
        return {"policy": policy, "source": [each.table for each in self.lists]}

    def addresses(self) -> Iterator[Address]:
        """Yield addresses in ranges, at their ends and beside them, and others."""
        random = self._random
        lines = [line for each in self.lists for line in each.lines if not line.refused]
        for line in random.sample(lines, min(len(lines), _ADDRESSES // 2)):
            first, last = line.first, line.last
            number = random.choice((first - 1, first, (first + last) // 2, last, last + 1))
            address = _address(line.version, number)
            if address.is_global:  # otherwise sources do not count
                yield address
        for version in (4, 6):
            for _ in range(_ADDRESSES // 4):
                yield self._address(version)

    def score(self, address: Address, scores: Sequence[int | None]) -> int:
        """Return the score that the policy makes of those of the lists."""
        listed = [
            (score, each.table)
            for score, each in zip(scores, self.lists, strict=True)
            if score is not None
        ]
        number = int(address)
        if any(table["allow"] for _, table in listed) or any(
            line.version == address.version and line.first <= number <= line.last
            for line in self.allow
        ):
            return 100
        if not listed:
            return self.unknown
        if self.combine == "lowest":
            return min(score for score, _ in listed)
        lacking: float = sum((100 - score) * table["weight"] for score, table in listed)
        return max(0, round(self.unknown - lacking))

    def _list(self, name: str) -> RandomList:
        random = self._random
        kind = random.choice(("list", "drop", "csv", "json"))
        table: dict[str, Any] = {
            "name": name,
            "type": kind,
            "path": name,
            "score": random.randrange(101),
            "weight": random.choice((0, 0.1, 0.333, 1, 2.5)),
            "allow": random.random() < 0.05,
        }
        lines = [self._line() for _ in range(random.choice((0, 1, 5, 20, 60)))]
        if kind == "csv":
            table |= {"columns": {"address": "ip", "score": "score"}, "filter": {"kind": ["a"]}}
            scores = [random.choice((None, random.randrange(101))) for _ in lines]
            lines = [line._replace(score=score) for line, score in zip(lines, scores, strict=True)]
            # Equal ranges with other scores.
            lines += [line._replace(score=random.randrange(101)) for line in lines[:3]]
        if kind == "json":
            table["select"] = ["used[]", "lists[].range"]
        return RandomList(table, lines)

    def _line(self) -> Line:
        random = self._random
        version = random.choice((4, 6))
        bits = _BITS[version]
        address, kind = self._address(version), random.random()
        if kind < 0.3:
            return Line(str(address), version, int(address), int(address))
        if kind < 0.65:
            return self._network(version, address)
        other = self._address(version)
        first, last = sorted((int(address), int(other)))
        if random.random() < 0.1:
            last = first + 2 ** random.randrange(bits - 3)
        dash = random.choice(("-", " - ", "- "))
        return Line(
            f"{_address(version, first)}{dash}{_address(version, last)}",
            version,
            first,
            last,
            last - first >= 2 ** (bits - _SHORTEST[version]),
        )

    def _network(self, version: int, address: Address) -> Line:
        random, bits = self._random, _BITS[version]
        length = bits - random.randrange(self._span.bit_length() + 2)
        if random.random() < 0.1:
            length = random.randint(0, bits)
        network = ip_network(f"{address}/{length}", strict=False)
        first, last = int(network.network_address), int(network.broadcast_address)
        has_host_bits = random.random() < 0.3 and int(address) != first
        refused = length < _SHORTEST[version] or (has_host_bits and length < _WHOLE[version])
        written = address if has_host_bits else network.network_address
        masked = has_host_bits and not refused
        return Line(f"{written}/{length}", version, first, last, refused, masked)

    def _address(self, version: int) -> Address:
        return _address(version, _STARTS[version] + self._random.randrange(self._span))

    def _content(self, each: RandomList) -> str:
        random, lines = self._random, each.lines
        if each.table["type"] == "drop":
            records: list[dict[str, object]] = [{"cidr": line.text} for line in lines]
            records += [{"cidr": _USED}, {"type": "metadata", "records": len(lines) + 1}]
            return "\n".join(map(json.dumps, records))
        if each.table["type"] == "json":
            ranges = [{"range": line.text} for line in lines]
            return json.dumps({"used": [_USED], "lists": [*ranges, {"other": "x"}]})
        if each.table["type"] == "csv":
            scores = ["" if line.score is None else str(line.score) for line in lines]
            rows = [f"a,{line.text},{score}" for line, score in zip(lines, scores, strict=True)]
            rows.insert(random.randint(0, len(rows)), "b,8.8.0.0/20,0")
            return "\n".join(("kind,ip,score", *rows, f"a,{_USED},"))
        ends = ("", " ", "\r", " # x", "\t;x")
        texts = [f"{line.text}{random.choice(ends)}" for line in lines]
        return "\n".join((*texts, _USED))


def check_lists(seed: int) -> int:
    """Compare the scores of addresses in `LISTS` lists; return the number of addresses.

    Raises:
        AssertionError: the scores differ; the text names the seed and the address.
    """
    lists = RandomLists(seed)
    with TemporaryDirectory() as name:
        folder = Path(name)
        settings = settings_of(lists.write(folder), folder)
        snapshot = build_snapshot(folder, settings, None)
        for each, report in zip(lists.lists, snapshot.reports, strict=True):
            counts = (
                1 + sum(not line.refused for line in each.lines),
                sum(line.refused for line in each.lines),
                sum(line.masked for line in each.lines),
            )
            found = report.entries, report.failed_lines, report.masked
            assert (found, report.error) == (counts, ""), (seed, each.table, report)
        opened = OpenSnapshot(folder, snapshot, {})
        try:
            return sum(_check(lists, opened, address, seed) for address in lists.addresses())
        finally:
            opened.close()


def _check(lists: RandomLists, opened: OpenSnapshot, address: Address, seed: int) -> bool:
    verdict = opened.find(address).verdict
    assert verdict.rule is not Rule.PRIVATE, (seed, address)
    scores = [
        score_of(result) if result.state is Listing.LISTED else None for result in verdict.results
    ]
    expected = [each.score(address) for each in lists.lists]
    assert scores == expected, (seed, address)
    assert verdict.score == lists.score(address, expected), (seed, address)
    return True


def _address(version: int, number: int) -> Address:
    return IPv4Address(number) if version == 4 else IPv6Address(number)
