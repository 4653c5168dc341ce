"""Lists as texts: what is in a file, read into `Entries`.

A line that does not parse is counted, the first ten are kept with their numbers, and the rest of
the file is used. Files may be compressed with gzip, begin with a byte order mark and have CR LF at
the ends of lines.
"""

import csv
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, BinaryIO, Final, Protocol, TypeAlias

import msgspec

from spoakit.apps.iprep.exceptions import SourceError
from spoakit.apps.iprep.sources._lists_cy import read_common_lines
from spoakit.apps.iprep.sources.chunks import MAX_LINE, MAX_SIZE, chunks_of
from spoakit.apps.iprep.sources.entries import Entries, Value, ValuedEntries
from spoakit.apps.iprep.sources.limits import ListLimits
from spoakit.apps.toml import Notation, Table

MAX_ASN: Final = 2**32 - 1
_MAX_COLUMNS_SHOWN: Final = 20
_MAX_CATEGORY: Final = 255
_COMMENT_MARK: Final = re.compile(rb"\A\s*#[# \t]*")
# Those before addresses in CrowdSec's CSV; others are of users, countries and the like.
_SCOPES: Final = ("ip", "range")


def _parse_filter(
    table: dict[str, tuple[str, ...]], _: Path
) -> tuple[tuple[str | int, tuple[str, ...]], ...]:
    """Return columns and values; a key is always a text, and one of digits a column's number."""
    return tuple(
        (int(name) if name.isascii() and name.isdecimal() and len(name) < 10 else name, values)
        for name, values in table.items()
    )


Filter: TypeAlias = Annotated[
    tuple[tuple[str | int, tuple[str, ...]], ...],
    Notation(dict[str, tuple[str, ...]], _parse_filter),
]


class ListReader(Protocol):
    """What reads a list of one format."""

    def read(self, file: BinaryIO, max_size: int = MAX_SIZE) -> Entries:
        """Read a file that is open for reading, at its start.

        Args:
            file: what to read.
            max_size: the most bytes it may have, out of gzip.

        Raises:
            SourceError: nothing of it can be used: it is too large, its gzip is damaged, or none
                of its lines parses.
        """
        ...


class PlainReader:
    """Reads addresses, networks and ranges "a-b", one a line, with comments behind "#" or ";".

    FireHOL's .netset and .ipset are such lists, and so is Spamhaus' DROP as a text.

    Args:
        limits: what its ranges may be.
    """

    def __init__(self, limits: ListLimits | None = None) -> None:
        self._limits = limits or ListLimits()

    def read(self, file: BinaryIO, max_size: int = MAX_SIZE) -> Entries:
        """See `ListReader.read`."""
        entries = Entries()
        free = self._limits.unchecked_bits
        for piece in chunks_of(file, max_size):
            first4: list[int] = []
            last4: list[int] = []
            first6: list[int] = []
            last6: list[int] = []
            others: list[tuple[int, bytes]] = []
            lines, masked = read_common_lines(piece, first4, last4, first6, last6, others, *free)
            entries.first4.fromlist(first4)
            entries.last4.fromlist(last4)
            for half in (0, 1):
                entries.first6[half].fromlist(first6[half::2])
                entries.last6[half].fromlist(last6[half::2])
            for number, line in others:
                self._read_line(entries, entries.lines + number + 1, line)
            entries.lines += lines
            entries.masked += masked
        return entries.checked()

    def _read_line(self, entries: Entries, number: int, line: bytes) -> None:
        text = line.partition(b"#")[0].partition(b";")[0].strip()
        if not text:
            return
        try:
            entries.add(self._limits.parse(text.decode("ascii", "replace")))
        except ValueError as error:
            entries.fail(number, str(error))


class DropReader:
    """Reads Spamhaus' DROP lists in JSON: an object a line, with a "cidr" or an "asn".

    The last line, of the type "metadata", says how many records there are; where it is missing, or
    says more than there are lines, the list is cut off.

    Args:
        limits: what its networks may be.
    """

    def __init__(self, limits: ListLimits | None = None) -> None:
        self._limits = limits or ListLimits()

    def read(self, file: BinaryIO, max_size: int = MAX_SIZE) -> Entries:
        """See `ListReader.read`."""
        entries = Entries()
        metadata: _Record | None = None
        for line in _lines(file, entries, max_size):
            if not line.strip():
                continue
            try:
                record = _RECORD.decode(line)
                if record.type == "metadata":
                    metadata = record
                else:
                    self._add(entries, record)
            except (msgspec.DecodeError, ValueError, RecursionError) as error:
                entries.fail(entries.lines, str(error))
        entries.checked()
        found = len(entries) + entries.failed
        if metadata is None and entries.lines:
            raise SourceError("it is cut off: it has no line of the type 'metadata' at its end")
        if metadata is not None and (metadata.records or 0) > found:
            raise SourceError(
                f"it is cut off: it has {found} of the {metadata.records} records it names"
            )
        return entries

    def _add(self, entries: Entries, record: "_Record") -> None:
        if record.cidr is not None:
            entries.add(self._limits.parse(record.cidr))
        elif record.asn is None:
            raise ValueError("it has neither a 'cidr' nor an 'asn'")
        elif not 0 < record.asn <= MAX_ASN:
            raise ValueError(f"{record.asn} is not the number of a network, 1 to {MAX_ASN}")
        else:
            entries.asns.append(record.asn)


class ColumnNames(Table, frozen=True):
    """Columns of a CSV: names from its first line, or numbers from 1.

    Attributes:
        address: the address, network or range.
        last: the last address, where a range has two columns; `address` then is the first.
        score: a number; None for none.
        category: a text; None for none.
    """

    address: str | int = 1
    last: str | int | None = None
    score: str | int | None = None
    category: str | int | None = None


class Columns(ColumnNames, frozen=True):
    """Columns of a CSV, and the meaning of the values in them.

    Attributes:
        best: the number in the column `score` that is a score of 100.
        worst: the number that is a score of 0. Numbers between them are between.
        delimiter: the one character between columns.
        filter: columns, each with the values of which a line must have one there.
    """

    best: float = 100.0
    worst: float = 0.0
    delimiter: str = ","
    filter: Filter = ()

    def places(self) -> tuple[str | int, ...]:
        """Return the columns that are used."""
        filters = (column for column, _ in self.filter)
        used = (self.address, self.last, self.score, self.category, *filters)
        return tuple(each for each in used if each is not None)


class CsvReader:
    """Reads a CSV file (RFC 4180), in which no field spans lines; "#" begins a comment.

    Where columns are given by name, the first line must have all of them; it may be a comment.
    Addresses may have CrowdSec's scopes before them: "Ip:192.0.2.1", "Range:192.0.2.0/24".

    Args:
        columns: where in a line things are.
        limits: what its ranges may be.
    """

    def __init__(self, columns: Columns, limits: ListLimits | None = None) -> None:
        self._columns = columns
        self._limits = limits or ListLimits()
        self._names = [each for each in columns.places() if isinstance(each, str)]

    def read(self, file: BinaryIO, max_size: int = MAX_SIZE) -> Entries:
        """See `ListReader.read`."""
        entries = Entries()
        valued = ValuedEntries(entries)
        lines = _lines(file, entries, max_size)
        row = self._row_reader(lines)
        for line in lines:
            if _is_comment(line):
                continue
            try:
                cells = self._split(line)
                if not row.is_wanted(cells):
                    entries.skipped += 1
                    continue
                text, value = row.entry(cells)
                valued.add(self._limits.parse(text), value)
            except (ValueError, csv.Error) as error:
                entries.fail(entries.lines, str(error))
        valued.finish()
        return entries.checked()

    def _row_reader(self, lines: Iterator[bytes]) -> "_RowReader":
        """Read the line with the names of the columns, if names are wanted."""
        if not self._names:
            return _RowReader(self._columns, {})
        header: list[str] = []
        for line in lines:
            header = [name.strip() for name in self._split(_COMMENT_MARK.sub(b"", line))]
            if all(name in header for name in self._names):
                return _RowReader(self._columns, {name: header.index(name) for name in header})
            if not _is_comment(line):
                break
        missing = next(name for name in self._names if name not in header)
        shown = ", ".join(map(repr, header[:_MAX_COLUMNS_SHOWN]))
        raise SourceError(f"there is no column {missing!r} in its first line: {shown[:400]}")

    def _split(self, line: bytes) -> list[str]:
        text = line.decode("utf-8", "replace")
        if '"' not in text:
            return text.split(self._columns.delimiter)
        return next(csv.reader((text,), delimiter=self._columns.delimiter, skipinitialspace=True))


class _RowReader:
    """Reads a row of a CSV, whose columns have the places that their names say."""

    def __init__(self, columns: Columns, names: dict[str, int]) -> None:
        def place(column: str | int | None) -> int | None:
            if isinstance(column, str):
                return names[column]
            return None if column is None else column - 1

        self._address = place(columns.address) or 0
        self._last = place(columns.last)
        self._score = place(columns.score)
        self._category = place(columns.category)
        self._worst = columns.worst
        self._span = columns.best - columns.worst
        self._filter = [(place(column) or 0, set(values)) for column, values in columns.filter]
        self._count = 1 + max(place(column) or 0 for column in columns.places())

    def is_wanted(self, row: list[str]) -> bool:
        """Return whether the filter lets a row pass.

        Raises:
            ValueError: it lacks a column.
        """
        if len(row) < self._count:
            raise ValueError(f"it has {len(row)} columns, of which {self._count} are needed")
        return all(row[column].strip() in values for column, values in self._filter)

    def entry(self, row: list[str]) -> tuple[str, Value]:
        """Return the range of a row as a text, and its value."""
        text = row[self._address].strip()
        scope, _, scoped = text.partition(":")
        if scope.lower() in _SCOPES:
            text = scoped.strip()
        if self._last is not None:
            text = f"{text}-{row[self._last].strip()}"
        return text, Value(self._score_of(row), self._category_of(row))

    def _score_of(self, row: list[str]) -> int | None:
        if self._score is None:
            return None
        text = row[self._score].strip()
        if not text:
            return None
        try:
            share = (float(text) - self._worst) / self._span
            return round(100 * min(max(share, 0.0), 1.0))
        except ValueError:  # NaN is none either, when it is to be rounded
            raise ValueError(f"{text[:80]!r} is not a number") from None

    def _category_of(self, row: list[str]) -> str:
        return "" if self._category is None else row[self._category].strip()[:_MAX_CATEGORY]


class _Record(msgspec.Struct):
    type: str = ""
    cidr: str | None = None
    asn: int | None = None
    records: int | None = None


_RECORD: Final = msgspec.json.Decoder(_Record)


def _is_comment(line: bytes) -> bool:
    """Return whether a line of a CSV has nothing in it, or nothing but a comment."""
    text = line.lstrip()
    return not text or text.startswith(b"#")


def _lines(file: BinaryIO, entries: Entries, max_size: int) -> Iterator[bytes]:
    """Yield a file's lines without their ends, and count them in `entries`."""
    for piece in chunks_of(file, max_size):
        for line in piece[:-1].split(b"\n"):
            entries.lines += 1
            if len(line) > MAX_LINE:
                entries.fail(entries.lines, f"it is longer than {MAX_LINE} bytes")
            else:
                yield line.removesuffix(b"\r")
