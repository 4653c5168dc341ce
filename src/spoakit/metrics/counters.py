"""Counters of all workers in one block of shared memory.

Each worker owns a row of unsigned 64-bit integers, one per metric, in anonymous memory that the
supervisor maps before it forks. So there is one writer to a cell (no locks), the supervisor can
read all rows at any time, and the figures of a worker that died stay: its successor counts on in
its row.

Modules register their metrics when they are imported, and keep the slot:

    FRAMES = counter("spoakit_frames_total", "NOTIFY frames received.")
    ...
    row.add(FRAMES, 3)
"""

import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final

_CELL_SIZE: Final = 8
_MASK: Final = 2**64 - 1


class MetricKind(Enum):
    """Kind of a figure: counters only grow, gauges are the state of a living worker."""

    COUNTER = "counter"
    GAUGE = "gauge"


@dataclass(frozen=True, slots=True)
class Metric:
    """A registered metric; its position in a row is its `slot`."""

    slot: int
    name: str
    help: str
    kind: MetricKind


_registry: dict[str, Metric] = {}


def counter(name: str, help: str) -> int:
    """Register a figure that only grows, and return its slot.

    Registering again with the same help returns the same slot.

    Raises:
        ValueError: the name stands for something else already.
    """
    return _register(name, help, MetricKind.COUNTER)


def gauge(name: str, help: str) -> int:
    """Register a figure that goes up and down and dies with its worker, and return its slot.

    Raises:
        ValueError: the name stands for something else already.
    """
    return _register(name, help, MetricKind.GAUGE)


def _register(name: str, help: str, kind: MetricKind) -> int:
    metric = _registry.get(name)
    if metric is None:
        metric = _registry[name] = Metric(len(_registry), name, help, kind)
    elif (metric.help, metric.kind) != (help, kind):
        raise ValueError(f"metric {name!r} is registered already, as {metric.kind.value}")
    return metric.slot


class CounterRow:
    """One worker's figures. Only that worker writes here.

    Attributes:
        index: the worker's number, from 0; the supervisor's is the number of workers.
    """

    __slots__ = ("_cells", "index")

    def __init__(self, cells: memoryview, index: int) -> None:
        self._cells = cells
        self.index = index

    def add(self, slot: int, n: int = 1) -> None:
        """Add `n` to a counter or gauge; a gauge takes negative `n` too."""
        cells = self._cells
        cells[slot] = (cells[slot] + n) & _MASK

    def set(self, slot: int, value: int) -> None:
        """Set a gauge, 0 to 2**64 - 1."""
        self._cells[slot] = value

    def get(self, slot: int) -> int:
        """Return the figure in `slot`."""
        value: int = self._cells[slot]
        return value


class Counters:
    """The shared block: `rows` rows with a cell for every metric registered so far.

    Make it before forking, after all modules that count are imported.
    """

    __slots__ = ("_rows", "metrics")

    def __init__(self, rows: int) -> None:
        self.metrics: Sequence[Metric] = tuple(_registry.values())
        width = max(1, len(self.metrics)) * _CELL_SIZE
        # Shared and anonymous: children write into the same pages, and no file is left behind.
        memory = memoryview(mmap.mmap(-1, rows * width))
        self._rows = [
            CounterRow(memory[index * width : (index + 1) * width].cast("Q"), index)
            for index in range(rows)
        ]

    def row(self, index: int) -> CounterRow:
        """Return a worker's row; a restarted worker gets its predecessor's."""
        return self._rows[index]

    def reset_gauges(self, index: int) -> None:
        """Clear the gauges of a worker that is gone; its counters stay."""
        row = self._rows[index]
        for metric in self.metrics:
            if metric.kind is MetricKind.GAUGE:
                row.set(metric.slot, 0)

    def totals(self) -> dict[str, int]:
        """Return each metric's sum over all rows, by name."""
        return {
            metric.name: sum(row.get(metric.slot) for row in self._rows) for metric in self.metrics
        }
