"""Metrics of all processes of a service, in one block of shared memory.

Each process owns a row, in anonymous memory that the supervisor maps before it forks. A process
counts in its own memory, and publishes its figures once a second, and when the supervisor pings it.
So a published row is the state between two rounds of the event loop, in which the figures add up.
No locks are needed, other processes can read all rows at any time, and the figures of a dead worker
remain: its replacement continues from them.

A row has two copies of counters and gauges, one of which is published, so that a worker that is
killed while it publishes leaves a consistent state. There is one copy of each histogram. The row
also has the values of labels, since a worker finds new ones while it runs.
"""

import mmap
import os
import time
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from spoakit.metrics._histogram_cy import BLOCK, HistogramCells
from spoakit.metrics.families import (
    OTHER,
    Counter,
    Family,
    Gauge,
    Histogram,
    declared,
)

_CELL: Final = 8
# Cells of the header.
_GENERATION, _ACTIVE, _WRITING, _HEADER = range(4)
# Label values are stored once in each row: a length, then the text.
_TEXT_SIZE: Final = 64
_TEXTS: Final = 256
# The key of a series is the numbers of its label values, which begin at 1.
_KEY: Final = 4
_KEY_SIZE: Final = 2 * _KEY
_OTHER_NUMBER: Final = 1
# Publishing takes some microseconds, so a reader retries for a short time only.
_MAX_TRIES: Final = 200
_PAUSE: Final = 0.0001

Labels = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Position:
    """Position of a family's series in a row.

    Attributes:
        first: the index of its first cell, or of its first histogram.
        first_key: the index of its first key; -1 without labels.
    """

    first: int
    first_key: int


class _Layout:
    """Layout of a row: the positions of all families declared so far, and its size in bytes."""

    def __init__(self) -> None:
        self.families = declared()
        self.places: dict[Family, _Position] = {}
        cells = blocks = keys = 0
        for family in self.families:
            first_key = keys if family.labels else -1
            keys += family.limit if family.labels else 0
            if isinstance(family, Histogram):
                self.places[family] = _Position(blocks, first_key)
                blocks += family.limit
            else:
                self.places[family] = _Position(cells, first_key)
                cells += family.limit
        self.cells = cells
        self.copies_at = _HEADER * _CELL
        self.histograms_at = self.copies_at + 2 * cells * _CELL
        self.keys_at = self.histograms_at + blocks * BLOCK * _CELL
        self.texts_at = self.keys_at + keys * _KEY_SIZE
        self.size = self.texts_at + _TEXTS * _TEXT_SIZE


class SharedMetrics:
    """Shared block: a row for each process, with room for all metrics declared so far.

    The server makes it; others need one to count without a server: ``SharedMetrics(1).worker(0)``.
    To be made before forking, after all modules that count are imported.

    Args:
        rows: the number of processes.

    Attributes:
        size: the size of the block in bytes.
    """

    def __init__(self, rows: int) -> None:
        self._layout = _Layout()
        self.size = rows * self._layout.size
        # Shared and anonymous: forked processes write to the same pages, and there is no file.
        memory = memoryview(mmap.mmap(-1, max(1, self.size)))
        size = self._layout.size
        self._rows = [
            _Row(memory[index * size : (index + 1) * size], self._layout) for index in range(rows)
        ]
        self._own: dict[int, WorkerMetrics] = {}

    @property
    def families(self) -> Sequence[Family]:
        """The families that the block has room for."""
        return self._layout.families

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self._rows)

    def worker(self, index: int) -> "WorkerMetrics":
        """Return the metrics of the calling process, which owns this row from now on.

        A row has one owner at a time. A replacement continues from the published counters.
        """
        known = self._own.get(index)
        if known is None or not known.belongs_to_process:
            known = self._own[index] = WorkerMetrics(
                self._rows[index], self._layout, index, all_rows=self._rows
            )
        return known

    def on_ended(self, index: int) -> list[tuple[Gauge, Labels, float]]:
        """Clear the gauges of a process that has ended; its counters remain.

        Returns:
            Its unfinished work as it last published, which now counts as lost: gauges, label values
            and figures. Empty if it ended in order.
        """
        row = self._rows[index]
        lost = [
            (family, labels, row.cell(number))
            for family in self._layout.families
            if isinstance(family, Gauge) and family.lost_as is not None
            for number, labels in row.series(family)
            if row.cell(number)
        ]
        WorkerMetrics(row, self._layout, index, count_lost=True).publish()
        return lost

    def read(self, index: int) -> "PublishedRow":
        """Return the last published row of a process; this process publishes its own first."""
        mine = self._own.get(index)
        if mine is not None and mine.belongs_to_process:
            mine.publish()
        return self._rows[index].read()

    def value(self, index: int, family: Counter | Gauge) -> float:
        """Return the last published value of a process's counter or gauge without labels."""
        return self._rows[index].cell(self._layout.places[family].first)


@dataclass(frozen=True, slots=True)
class PublishedRow:
    """Published figures of one process.

    Attributes:
        values: counters and gauges, by family and label values.
        histograms: the cells of histograms, by family and label values.
        generation: the number of times that it has published.
    """

    values: dict[Family, dict[Labels, float]]
    histograms: dict[Family, dict[Labels, "array[float]"]]
    generation: int


class _Row:
    """Row of shared memory; see the module's docstring."""

    def __init__(self, memory: memoryview, layout: _Layout) -> None:
        self._layout = layout
        self._memory = memory
        self._header = memory[: layout.copies_at].cast("Q")
        size = layout.cells * _CELL
        copies = (memory[layout.copies_at + n * size :][:size].cast("d") for n in range(2))
        self._copies = tuple(copies)
        self._histograms = memory[layout.histograms_at : layout.keys_at].cast("d")
        self._keys = memory[layout.keys_at : layout.texts_at].cast("H")
        self._texts = memory[layout.texts_at :]
        self._read_texts: list[str] = []
        self._read_series: dict[Family, list[tuple[int, Labels]]] = {
            family: [] if family.labels else [(place.first, ())]
            for family, place in layout.places.items()
        }

    def publish(self, cells: "array[float]", histograms: dict[int, "array[float]"]) -> None:
        """Publish the owner's cells, and its histograms by index."""
        header = self._header
        inactive = 1 - header[_ACTIVE]
        header[_WRITING] = 1
        self._copies[inactive][:] = memoryview(cells)
        for number, block in histograms.items():
            self._histograms[number * BLOCK : (number + 1) * BLOCK] = memoryview(block)
        header[_ACTIVE] = inactive
        header[_GENERATION] += 1
        header[_WRITING] = 0

    def cells(self) -> "array[float]":
        """Return a copy of the published counters and gauges."""
        return _copy(self._copies[self._header[_ACTIVE]])

    def block(self, number: int) -> "array[float]":
        """Return a copy of a published histogram."""
        return _copy(self._histograms[number * BLOCK : (number + 1) * BLOCK])

    def cell(self, number: int) -> float:
        """Return a published counter or gauge."""
        value: float = self._copies[self._header[_ACTIVE]][number]
        return value

    def texts(self) -> list[str]:
        """Return the label values, in the order of their numbers."""
        found = self._read_texts
        while len(found) < _TEXTS and (size := self._texts[at := len(found) * _TEXT_SIZE]):
            # The length includes itself, so that it is not 0 for an empty text.
            found.append(str(self._texts[at + 1 : at + size], "utf-8", "replace"))
        return found

    def write_text(self, index: int, text: bytes) -> None:
        """Store one more label value, of at most 63 bytes."""
        at = index * _TEXT_SIZE
        self._texts[at + 1 : at + 1 + len(text)] = text
        self._texts[at] = 1 + len(text)

    def write_key(self, family: Family, series: int, numbers: Sequence[int]) -> None:
        """Store the key of a new series."""
        at = (self._layout.places[family].first_key + series) * _KEY
        # The first number is written last, since it marks the key as complete.
        for index in reversed(range(len(numbers))):
            self._keys[at + index] = numbers[index]

    def series(self, family: Family) -> list[tuple[int, Labels]]:
        """Return the index of the cell or histogram of each series, and its label values.

        They are in the order of their creation; series are never removed.
        """
        found = self._read_series[family]
        place, count = self._layout.places[family], len(family.labels)
        if not count:
            return found
        texts = self.texts()
        while len(found) < family.limit:
            at = (place.first_key + len(found)) * _KEY
            key = self._keys[at : at + count]
            if not key[0] or max(key) > len(texts):
                break  # no more series, or one that is being created
            labels = tuple(texts[number - 1] for number in key)
            found.append((place.first + len(found), labels))
        return found

    def read(self) -> PublishedRow:
        """Return the published row, which is consistent unless its owner was killed meanwhile."""
        for _ in range(_MAX_TRIES):
            generation = self._header[_GENERATION]
            if not self._header[_WRITING]:
                row = self._read(generation)
                if self._header[_GENERATION] == generation and not self._header[_WRITING]:
                    return row
            time.sleep(_PAUSE)
        return self._read(self._header[_GENERATION])  # its owner was stopped or killed

    def _read(self, generation: int) -> PublishedRow:
        cells = self.cells()
        values: dict[Family, dict[Labels, float]] = {}
        histograms: dict[Family, dict[Labels, array[float]]] = {}
        for family in self._layout.families:
            if isinstance(family, Histogram):
                histograms[family] = {
                    labels: self.block(number) for number, labels in self.series(family)
                }
            else:
                values[family] = {labels: cells[number] for number, labels in self.series(family)}
        return PublishedRow(values, histograms, generation)


class WorkerMetrics:
    """Metrics of one process: its own figures, and their publishing.

    A resource of an agent gets them by a parameter of this type. They serve code that counts often,
    or elsewhere, or reads figures; else the declarations' own `add`, `set` and `observe` do. The
    values of labels are cut to 63 bytes of UTF-8. A process keeps 256 of them and a family `limit`
    series; what has no room counts as "other".

    Attributes:
        index: the index of its row, from 0; the supervisor's is the number of workers.
    """

    def __init__(
        self,
        row: _Row,
        layout: _Layout,
        index: int,
        *,
        count_lost: bool = False,
        all_rows: Sequence[_Row] = (),
    ) -> None:
        self.index = index
        self._all_rows = all_rows
        self._pid = os.getpid()
        self._row = row
        self._layout = layout
        self._cells = row.cells()
        self._blocks: dict[int, array[float]] = {}
        self._observed: dict[int, HistogramCells] = {}
        texts = row.texts()
        self._texts = {text: number + 1 for number, text in enumerate(texts)}
        if not texts:
            self._text_number(OTHER)  # reserves room for it
        self._series = {
            family: {labels: number for number, labels in row.series(family)}
            for family in layout.families
        }
        self._collectors: list[Callable[[], None]] = []
        self._clear_gauges(count_lost)

    @property
    def belongs_to_process(self) -> bool:
        """True in the process that created it; a forked process has a copy that it must not use."""
        return self._pid == os.getpid()

    def add(self, family: Counter | Gauge, amount: float = 1, *values: str) -> None:
        """Add to a counter or gauge.

        Args:
            family: declared before the service started.
            amount: what is added; of a gauge, it may be negative.
            values: of the family's labels, in their order.

        Raises:
            LookupError: the family was declared after the service had started.
            TypeError: a label has no value, or there are more values than labels.
        """
        self._cells[self._series_number(family, values)] += amount

    def set(self, family: Counter | Gauge, value: float, *values: str) -> None:
        """Set a gauge, or a counter that is counted elsewhere and was 0 there at the start.

        Raises:
            LookupError, TypeError: see `add`.
        """
        self._cells[self._series_number(family, values)] = value

    def observe(self, family: Histogram, value: float, *values: str) -> None:
        """Count a value into a histogram, in the unit that the histogram's name ends with.

        Raises:
            LookupError, TypeError: see `add`.
        """
        self.histogram(family, *values).observe(value)

    def get(self, family: Counter | Gauge, *values: str) -> float:
        """Return a figure as it is now, in this process.

        Raises:
            LookupError, TypeError: see `add`.
        """
        return self._cells[self._series_number(family, values)]

    def totals(self, family: Counter | Gauge) -> dict[Labels, float]:
        """Return the sums over all processes as last published, by label values.

        This process publishes first.
        """
        self.publish()
        sums: dict[Labels, float] = {}
        for row in self._all_rows:
            for number, labels in row.series(family):
                sums[labels] = sums.get(labels, 0.0) + row.cell(number)
        return sums

    def histogram(self, family: Histogram, *values: str) -> HistogramCells:
        """Return a histogram, for code that counts into it often.

        Raises:
            LookupError, TypeError: see `add`.
        """
        number = self._series_number(family, values)
        found = self._observed.get(number)
        if found is None:
            block = self._blocks[number] = self._row.block(number)
            found = self._observed[number] = HistogramCells(memoryview(block), family.lowest)
        return found

    def label_of(self, family: Family, value: str) -> str:
        """Return the label value under which a value is counted: itself, or "other".

        It makes several families use the same label values.
        """
        number = self._series_number(family, (value,))
        return next(labels[0] for labels, each in self._series[family].items() if each == number)

    def on_publish(self, collect: Callable[[], None]) -> None:
        """Have a function called before each publishing, to count what is kept elsewhere.

        Publishing is once a second, in the event loop; the function must be short.
        """
        self._collectors.append(collect)

    def forget(self, collect: Callable[[], None]) -> None:
        """Remove a function registered by `on_publish`."""
        self._collectors.remove(collect)

    def publish(self) -> None:
        """Publish all figures. Call it between two rounds of the event loop."""
        for collect in self._collectors:
            collect()
        self._row.publish(self._cells, self._blocks)

    def _clear_gauges(self, count_lost: bool) -> None:
        """Clear a predecessor's gauges, and count its unfinished work as lost if asked for."""
        for family in self._layout.families:
            if not isinstance(family, Gauge):
                continue
            for labels, number in list(self._series[family].items()):
                value, self._cells[number] = self._cells[number], 0.0
                if value and count_lost and family.lost_as is not None:
                    counter, reason = family.lost_as
                    values = (*labels, reason) if counter.labels else ()
                    self.add(counter, value, *values)

    def _series_number(self, family: Family, values: Labels) -> int:
        """Return the index of a series' cell or histogram; create the series if it is new."""
        known = self._series.get(family)
        if known is None:
            raise LookupError(
                f"metric {family.name} was declared after the service had started; declare it at "
                "the top level of a module that is imported before the start"
            )
        number = known.get(values)
        return self._new_series(family, known, values) if number is None else number

    def _new_series(self, family: Family, known: dict[Labels, int], values: Labels) -> int:
        """Create a series; over the limit, return the index of the series for others."""
        if len(values) != len(family.labels):
            raise TypeError(f"{family.name}: needs {len(family.labels)} label values, got {values}")
        if len(known) >= family.limit - 1 and values[0] != OTHER:
            values = (OTHER,) * len(values)
            if values in known:
                return known[values]
        numbers = [self._text_number(_cut(value)) for value in values]
        shown = tuple(
            OTHER if number == _OTHER_NUMBER else _cut(value)
            for number, value in zip(numbers, values, strict=True)
        )
        if shown in known:
            return known[shown]
        self._row.write_key(family, len(known), numbers)
        known[shown] = self._layout.places[family].first + len(known)
        return known[shown]

    def _text_number(self, text: str) -> int:
        """Return the number of a label value; store a new one, or return the number of "other"."""
        number = self._texts.get(text)
        if number is None:
            if len(self._texts) == _TEXTS:
                return _OTHER_NUMBER
            self._row.write_text(len(self._texts), text.encode())
            number = self._texts[text] = len(self._texts) + 1
        return number


class CarriedCounts:
    """Counts that hot code keeps by itself, and that are added to counters when publishing.

    A plain ``self.sent += 1`` costs less than `WorkerMetrics.add`. `raise_to` is called in a
    function that `WorkerMetrics.on_publish` has got.

    Args:
        metrics: the metrics of this process.
    """

    __slots__ = ("_carried", "_metrics")

    def __init__(self, metrics: WorkerMetrics) -> None:
        self._metrics = metrics
        self._carried: dict[tuple[Counter, Labels], int] = {}

    def raise_to(self, counter: Counter, count: int, *values: str) -> None:
        """Add what a count has grown by since the last call; a series begins with its first.

        Args:
            counter: declared before the service started.
            count: since the start of the process; it never falls.
            values: of the counter's labels, in their order.

        Raises:
            LookupError, TypeError: see `WorkerMetrics.add`.
        """
        before = self._carried.get((counter, values), 0)
        if count != before:
            self._carried[counter, values] = count
            self._metrics.add(counter, count - before, *values)


def _copy(cells: "memoryview[float]") -> "array[float]":
    copied = array("d")
    copied.frombytes(cells.cast("B"))
    return copied


def _cut(value: str) -> str:
    """Return a label value as it is stored: cut to at most 63 bytes of UTF-8."""
    raw = value.encode("utf-8", "replace")
    if len(raw) < _TEXT_SIZE:
        return raw.decode()
    return raw[: _TEXT_SIZE - 2].decode("utf-8", "ignore") + "~"
