"""Metrics of all processes of a service in one block of shared memory.

Each process owns a row, in anonymous memory that the supervisor maps before it forks. A process
counts in memory of its own, and publishes from time to time: once a second, and when it is asked
to. So a published row is a state between two rounds of the event loop, in which the figures add up;
nobody takes locks; others can read all rows at any time; and the figures of a worker that has died
stay: its successor counts on from what was published.

A row has two copies of counters and gauges, of which one is the published one, so that a worker
killed while it publishes leaves the last state behind. It has one of the histograms, each of which
is a state by itself. The values of labels stand in the row as well, since a worker meets them as it
runs.
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
# The header's cells.
_GENERATION, _ACTIVE, _WRITING, _HEADER = range(4)
# The values of labels are kept once for each row: a length, and so much text.
_TEXT_SIZE: Final = 64
_TEXTS: Final = 256
# A series has the numbers of its labels' values, which begin at 1.
_KEY: Final = 4
_KEY_SIZE: Final = 2 * _KEY
_NUMBER_OF_OTHER: Final = 1
# A row is published within some microseconds.
_MAX_TRIES: Final = 200
_PAUSE: Final = 0.0001

Labels = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a family's series stand in a row.

    Attributes:
        first: the number of its first cell, or of its first histogram.
        first_key: the number of its first key; -1 without labels.
    """

    first: int
    first_key: int


class _Layout:
    """Places of all families that were declared when it was made, and their size together."""

    def __init__(self) -> None:
        self.families = declared()
        self.places: dict[Family, _Place] = {}
        cells = blocks = keys = 0
        for family in self.families:
            first_key = keys if family.labels else -1
            keys += family.limit if family.labels else 0
            if isinstance(family, Histogram):
                self.places[family] = _Place(blocks, first_key)
                blocks += family.limit
            else:
                self.places[family] = _Place(cells, first_key)
                cells += family.limit
        self.cells = cells
        self.copies_at = _HEADER * _CELL
        self.histograms_at = self.copies_at + 2 * cells * _CELL
        self.keys_at = self.histograms_at + blocks * BLOCK * _CELL
        self.texts_at = self.keys_at + keys * _KEY_SIZE
        self.size = self.texts_at + _TEXTS * _TEXT_SIZE


class SharedMetrics:
    """The shared block: a row for each process, with room for every metric declared so far.

    The server makes it; others need one to count without a server: ``SharedMetrics(1).worker(0)``.
    To be made before forking, after all modules that count are imported.

    Args:
        rows: how many processes there are.

    Attributes:
        size: the bytes of the block.
    """

    def __init__(self, rows: int) -> None:
        self._layout = _Layout()
        self.size = rows * self._layout.size
        # Shared and anonymous: children write into the same pages, and no file is left behind.
        memory = memoryview(mmap.mmap(-1, max(1, self.size)))
        size = self._layout.size
        self._rows = [
            _Row(memory[index * size : (index + 1) * size], self._layout) for index in range(rows)
        ]
        self._mine: dict[int, WorkerMetrics] = {}

    @property
    def families(self) -> Sequence[Family]:
        """All that can be counted."""
        return self._layout.families

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self._rows)

    def worker(self, index: int) -> "WorkerMetrics":
        """Return what the process that calls this is to count by; a successor counts on.

        A row has one such process at a time.
        """
        known = self._mine.get(index)
        if known is None or not known.is_of_this_process:
            known = self._mine[index] = WorkerMetrics(
                self._rows[index], self._layout, index, all_rows=self._rows
            )
        return known

    def on_ended(self, index: int) -> list[tuple[Gauge, Labels, float]]:
        """Clear the gauges of a process that has ended; its counters stay.

        Returns:
            What it had in its hands as it last published, which is counted as lost now: gauges, the
            values of their labels, and their figures. Nothing, if it ended in order.
        """
        row = self._rows[index]
        lost = [
            (family, labels, row.cell(number))
            for family in self._layout.families
            if isinstance(family, Gauge) and family.lost_as is not None
            for number, labels in row.series_of(family)
            if row.cell(number)
        ]
        WorkerMetrics(row, self._layout, index, count_lost=True).publish()
        return lost

    def read(self, index: int) -> "PublishedRow":
        """Return what a process has published last; what this one counts is published for that."""
        mine = self._mine.get(index)
        if mine is not None and mine.is_of_this_process:
            mine.publish()
        return self._rows[index].read()

    def value(self, index: int, family: Counter | Gauge) -> float:
        """Return one process's counter or gauge without labels, as published last."""
        return self._rows[index].cell(self._layout.places[family].first)


@dataclass(frozen=True, slots=True)
class PublishedRow:
    """What one process has published.

    Attributes:
        values: the counters and gauges by family and the values of their labels.
        histograms: the cells of the histograms, likewise.
        generation: how often it has published.
    """

    values: dict[Family, dict[Labels, float]]
    histograms: dict[Family, dict[Labels, "array[float]"]]
    generation: int


class _Row:
    """The shared memory of one process; see the module."""

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
        """Publish a process's cells, and its histograms by their numbers."""
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
        """Return a copy of a histogram."""
        return _copy(self._histograms[number * BLOCK : (number + 1) * BLOCK])

    def cell(self, number: int) -> float:
        """Return a published counter or gauge."""
        value: float = self._copies[self._header[_ACTIVE]][number]
        return value

    def texts(self) -> list[str]:
        """Return the values of labels that are kept, in the order of their numbers."""
        found = self._read_texts
        while len(found) < _TEXTS and (size := self._texts[at := len(found) * _TEXT_SIZE]):
            # The length counts itself, so that an empty text is there as well.
            found.append(str(self._texts[at + 1 : at + size], "utf-8", "replace"))
        return found

    def write_text(self, index: int, text: bytes) -> None:
        """Keep one more value of a label, of at most 63 bytes."""
        at = index * _TEXT_SIZE
        self._texts[at + 1 : at + 1 + len(text)] = text
        self._texts[at] = 1 + len(text)

    def write_key(self, family: Family, series: int, numbers: Sequence[int]) -> None:
        """Write down the numbers of a series' values, before it is first counted."""
        at = (self._layout.places[family].first_key + series) * _KEY
        # The first one says that it is there.
        for index in reversed(range(len(numbers))):
            self._keys[at + index] = numbers[index]

    def series_of(self, family: Family) -> list[tuple[int, Labels]]:
        """Return the number of the cell or histogram of each series, and its labels' values.

        They are in the order in which they came, and none ever goes.
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
                break  # nothing, or one that has come just now and is not published yet
            labels = tuple(texts[number - 1] for number in key)
            found.append((place.first + len(found), labels))
        return found

    def read(self) -> PublishedRow:
        """Return what is published, all of one time where the process lives."""
        for _ in range(_MAX_TRIES):
            generation = self._header[_GENERATION]
            if not self._header[_WRITING]:
                row = self._read(generation)
                if self._header[_GENERATION] == generation and not self._header[_WRITING]:
                    return row
            time.sleep(_PAUSE)
        return self._read(self._header[_GENERATION])  # it was stopped or killed just then

    def _read(self, generation: int) -> PublishedRow:
        cells = self.cells()
        values: dict[Family, dict[Labels, float]] = {}
        histograms: dict[Family, dict[Labels, array[float]]] = {}
        for family in self._layout.families:
            if isinstance(family, Histogram):
                histograms[family] = {
                    labels: self.block(number) for number, labels in self.series_of(family)
                }
            else:
                values[family] = {
                    labels: cells[number] for number, labels in self.series_of(family)
                }
        return PublishedRow(values, histograms, generation)


class WorkerMetrics:
    """The metrics of one process, which counts by them and publishes them.

    A resource of an agent gets them by a parameter of this type. They serve code that counts often,
    or elsewhere, or reads figures; else the declarations' own `add`, `set` and `observe` do. The
    values of labels are cut to 63 bytes of UTF-8. A process keeps 256 of them and a family `limit`
    series; what has no room counts as "other".

    Attributes:
        index: the number of its row, from 0; the supervisor's is the number of workers.
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
            self._number_of(OTHER)  # so that there is room for it
        self._series = {
            family: {labels: number for number, labels in row.series_of(family)}
            for family in layout.families
        }
        self._collectors: list[Callable[[], None]] = []
        self._clear_gauges(count_lost)

    @property
    def is_of_this_process(self) -> bool:
        """Whether the process that asks made it: a forked one has a copy that is not its own."""
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
        """Return the sums of all processes, by the values of the labels, as they published last.

        What this one counts is published for that.
        """
        self.publish()
        sums: dict[Labels, float] = {}
        for row in self._all_rows:
            for number, labels in row.series_of(family):
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
        """Return the label of the series that a value is counted by: itself, or "other".

        For several families that are to name the same things.
        """
        number = self._series_number(family, (value,))
        return next(labels[0] for labels, each in self._series[family].items() if each == number)

    def on_publish(self, collect: Callable[[], None]) -> None:
        """Have a function called before each publishing, to count what is kept elsewhere.

        Publishing is once a second, in the event loop; the function must be short.
        """
        self._collectors.append(collect)

    def forget(self, collect: Callable[[], None]) -> None:
        """Have a function called no more."""
        self._collectors.remove(collect)

    def publish(self) -> None:
        """Publish all figures as they are now: between two rounds of the event loop."""
        for collect in self._collectors:
            collect()
        self._row.publish(self._cells, self._blocks)

    def _clear_gauges(self, count_lost: bool) -> None:
        """Clear a predecessor's gauges; count what it had in its hands as lost, if that is due."""
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
        """Return the number of a series' cell or histogram, which there is from now on."""
        known = self._series.get(family)
        if known is None:
            raise LookupError(
                f"metric {family.name} was declared after the service had started; declare it at "
                "the top level of a module that is imported before"
            )
        number = known.get(values)
        return self._new_series(family, known, values) if number is None else number

    def _new_series(self, family: Family, known: dict[Labels, int], values: Labels) -> int:
        """Take up a series; where there is no room for one more, return the one for others."""
        if len(values) != len(family.labels):
            raise TypeError(f"{family.name}: {len(family.labels)} labels, got {values}")
        if len(known) >= family.limit - 1 and values[0] != OTHER:
            values = (OTHER,) * len(values)
            if values in known:
                return known[values]
        numbers = [self._number_of(_cut(value)) for value in values]
        shown = tuple(
            OTHER if number == _NUMBER_OF_OTHER else _cut(value)
            for number, value in zip(numbers, values, strict=True)
        )
        if shown in known:
            return known[shown]
        self._row.write_key(family, len(known), numbers)
        known[shown] = self._layout.places[family].first + len(known)
        return known[shown]

    def _number_of(self, text: str) -> int:
        """Return the number by which a value of a label is kept; without room, that of others."""
        number = self._texts.get(text)
        if number is None:
            if len(self._texts) == _TEXTS:
                return _NUMBER_OF_OTHER
            self._row.write_text(len(self._texts), text.encode())
            number = self._texts[text] = len(self._texts) + 1
        return number


class CarriedCounts:
    """Counts that hot code keeps by itself, carried over to counters before they are published.

    A plain ``self.sent += 1`` costs less than `WorkerMetrics.add`. `raise_to` is called in a
    function that `WorkerMetrics.on_publish` has got.

    Args:
        metrics: of this process.
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
    """Return a value of a label as it is kept: in UTF-8, and at most 63 bytes of it."""
    raw = value.encode("utf-8", "replace")
    if len(raw) < _TEXT_SIZE:
        return raw.decode()
    return raw[: _TEXT_SIZE - 2].decode("utf-8", "ignore") + "~"
