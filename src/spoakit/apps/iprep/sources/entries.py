"""Entries of a source: ranges of addresses, numbers of networks, and their values."""

from array import array
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from spoakit.apps.iprep.addresses import Range
from spoakit.apps.iprep.exceptions import SourceError

MAX_ERRORS: Final = 10
"""How many of the lines that do not parse are kept to be shown."""

MAX_VALUES: Final = 65_535
"""How many different values a source may have."""

_LOW: Final = 2**64 - 1
_WIDEST_SHOWN: Final = 80


class Value(NamedTuple):
    """What a source says of an entry beyond having it.

    Attributes:
        score: 0 (worst) to 100; None where the source has none for it.
        category: its kind, in the words of the settings or the source; "" for none.
    """

    score: int | None = None
    category: str = ""


class LineError(NamedTuple):
    """A line that does not parse.

    Attributes:
        line: its number, from 1.
        reason: what is wrong, with the text of it.
        unit: the word for a line.
    """

    line: int
    reason: str
    unit: str = "line"

    def __str__(self) -> str:
        return f"{self.unit} {self.line}: {self.reason}"


@dataclass(slots=True)
class Entries:
    """The entries of a source, in no order; they may overlap.

    Attributes:
        first4: the first address of each IPv4 range.
        last4: the last one.
        first6: the first address of each IPv6 range: its upper and its lower 64 bits.
        last6: the last one.
        asns: numbers of autonomous systems.
        values: what is said of entries, the lowest score first (None is above all); empty where
            the source has only entries.
        values4: for each IPv4 range the place of its value in `values`; empty if that is.
        values6: the same for IPv6.
        asn_values: the same for `asns`.
        lines: how many lines were read, empty ones and comments too.
        failed: how many did not parse, and were left out.
        skipped: how many a filter left out.
        masked: how many networks had bits set behind their prefix, which were taken away.
        errors: the first ten of those that failed.
        warnings: what else an operator should know of.
        unit: the word for what `lines` counts.
    """

    first4: "array[int]" = field(default_factory=lambda: array("I"))
    last4: "array[int]" = field(default_factory=lambda: array("I"))
    first6: "tuple[array[int], array[int]]" = field(
        default_factory=lambda: (array("Q"), array("Q"))
    )
    last6: "tuple[array[int], array[int]]" = field(default_factory=lambda: (array("Q"), array("Q")))
    asns: "array[int]" = field(default_factory=lambda: array("I"))
    values: tuple[Value, ...] = ()
    values4: "array[int]" = field(default_factory=lambda: array("H"))
    values6: "array[int]" = field(default_factory=lambda: array("H"))
    asn_values: "array[int]" = field(default_factory=lambda: array("H"))
    lines: int = 0
    failed: int = 0
    skipped: int = 0
    masked: int = 0
    errors: list[LineError] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    unit: str = "line"

    def __len__(self) -> int:
        """Return the number of entries."""
        return len(self.first4) + len(self.first6[0]) + len(self.asns)

    def add(self, entry: Range) -> None:
        """Add a range as `parse_range` returns it."""
        version, first, last, masked = entry
        self.masked += masked
        if version == 4:
            self.first4.append(first)
            self.last4.append(last)
            return
        self.first6[0].append(first >> 64)
        self.first6[1].append(first & _LOW)
        self.last6[0].append(last >> 64)
        self.last6[1].append(last & _LOW)

    def fail(self, line: int, reason: str) -> None:
        """Count a line that does not parse; `line` is its number, from 1."""
        self.failed += 1
        if len(self.errors) < MAX_ERRORS:
            self.errors.append(LineError(line, reason, self.unit))

    def checked(self) -> "Entries":
        """Return the entries themselves, when all has been read.

        Raises:
            SourceError: nothing could be used.
        """
        if self.failed and not self.skipped and not len(self):
            raise SourceError(
                f"none of its {self.lines} {self.unit}s can be used; {self.errors[0]}"
            )
        return self


class ValuedEntries:
    """Entries that get a value each."""

    def __init__(self, entries: Entries) -> None:
        self._entries = entries
        self._places: dict[Value, int] = {}

    def add(self, entry: Range, value: Value) -> None:
        """Add a range with a value.

        Raises:
            ValueError: it is one value too many.
        """
        place = self._place(value)
        self._entries.add(entry)
        (self._entries.values4 if entry[0] == 4 else self._entries.values6).append(place)

    def add_asn(self, number: int, value: Value) -> None:
        """Add the number of a network with a value.

        Raises:
            ValueError: it is one value too many.
        """
        self._entries.asn_values.append(self._place(value))
        self._entries.asns.append(number)

    def finish(self) -> None:
        """Put the values in order; where all say nothing, there are none."""
        order = sorted(self._places, key=_badness)
        if order == [Value()]:
            self._places.clear()
            del self._entries.values4[:], self._entries.values6[:], self._entries.asn_values[:]
            return
        renumbered = {self._places[value]: place for place, value in enumerate(order)}
        entries = self._entries
        entries.values = tuple(order)
        entries.values4 = array("H", map(renumbered.__getitem__, entries.values4))
        entries.values6 = array("H", map(renumbered.__getitem__, entries.values6))
        entries.asn_values = array("H", map(renumbered.__getitem__, entries.asn_values))

    def _place(self, value: Value) -> int:
        place = self._places.get(value)
        if place is not None:
            return place
        if len(self._places) == MAX_VALUES:
            raise ValueError(
                f"{value.category[:_WIDEST_SHOWN]!r} is one more than {MAX_VALUES} "
                "different categories and scores"
            )
        place = self._places[value] = len(self._places)
        return place


def _badness(value: Value) -> tuple[float, str]:
    return (float("inf") if value.score is None else value.score), value.category
