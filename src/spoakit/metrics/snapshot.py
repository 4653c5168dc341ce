"""Snapshots: the merged metrics of all processes at one time."""

import time
from array import array
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from itertools import accumulate
from typing import Final, Self

from spoakit.metrics._histogram_cy import BLOCK, BUCKETS, bucket_bounds, merge
from spoakit.metrics.families import Counter, Family, Gauge, Histogram, find
from spoakit.metrics.memory import Labels, PublishedRow, SharedMetrics

# Indexes of the buckets that end at 1, 2, 5, 10, ...
_SHOWN_BUCKETS: Final = tuple(
    0 if decade == step == 0 else decade * 48 + step for decade in range(8) for step in (0, 14, 34)
)


@cache
def _bounds() -> list[float]:
    return bucket_bounds()


class Distribution:
    """Distribution of the values of a histogram.

    Attributes:
        count: the number of values.
        sum: the sum of the values.
    """

    __slots__ = ("_cells", "_lowest", "count", "sum")

    def __init__(self, cells: "array[float]", lowest: float) -> None:
        self._cells = cells
        self._lowest = lowest
        self.count = round(sum(cells[:BUCKETS]))
        self.sum: float = cells[BUCKETS]

    def quantile(self, share: float) -> float:
        """Return the quantile for a share, 0 to 1; NaN without values.

        Its precision is the width of a bucket, 3 to 7 %. Values above the highest bound count as
        that bound.
        """
        if not self.count:
            return float("nan")
        rank = share * self.count
        bounds = _bounds()
        passed = 0.0
        for index, cell in enumerate(self._cells[:BUCKETS]):
            if cell and passed + cell >= rank:
                if index == BUCKETS - 1:
                    break
                lower = bounds[index - 1] if index else 0.0
                part = (rank - passed) / cell
                return self._lowest * (lower + (bounds[index] - lower) * part)
            passed += cell
        return self._lowest * bounds[-1]

    def cumulative(self) -> list[tuple[float, int]]:
        """Return 25 upper bounds, with the number of values below each.

        They are 1, 2, 5, 10, ... times the lowest bound, up to the highest.
        """
        counts = list(accumulate(self._cells[:BUCKETS]))
        bounds = _bounds()
        return [
            (round(bounds[index] * self._lowest, 12), round(counts[index]))
            for index in (*_SHOWN_BUCKETS, BUCKETS - 2)
        ]

    def since(self, earlier: "Distribution | None") -> "Distribution":
        """Return the distribution of the values since an earlier one."""
        if earlier is None:
            return self
        cells = array(
            "d", (now - then for now, then in zip(self._cells, earlier._cells, strict=True))
        )
        return Distribution(cells, self._lowest)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Merged metrics of all processes at one time.

    Attributes:
        at: the time when it was taken, on ``time.monotonic()``'s clock.
        values: counters and merged gauges, by family and label values.
        by_worker: gauges with ``merge="worker"``, by family, worker (from 1) and label values.
        distributions: histograms, by family and label values.
        rows: the published rows of all processes; the last one is the supervisor's.
    """

    at: float
    values: dict[Family, dict[Labels, float]]
    by_worker: dict[Family, dict[int, dict[Labels, float]]]
    distributions: dict[Family, dict[Labels, Distribution]]
    rows: list[PublishedRow] = field(repr=False)

    @classmethod
    def take(cls, metrics: SharedMetrics) -> Self:
        """Take a snapshot of the figures that all processes have published last."""
        rows = [metrics.read(index) for index in range(len(metrics))]
        values: dict[Family, dict[Labels, float]] = {}
        by_worker: dict[Family, dict[int, dict[Labels, float]]] = {}
        distributions: dict[Family, dict[Labels, Distribution]] = {}
        for family in metrics.families:
            if isinstance(family, Histogram):
                distributions[family] = _merged(rows, family)
            elif isinstance(family, Gauge) and family.merge == "worker":
                # The last of several rows is the supervisor's.
                by_worker[family] = {
                    index + 1: row.values[family]
                    for index, row in enumerate(rows[: max(1, len(rows) - 1)])
                }
            else:
                merge = max if isinstance(family, Gauge) and family.merge == "max" else _plus
                values[family] = _merged_values((row.values[family] for row in rows), merge)
        return cls(time.monotonic(), values, by_worker, distributions, rows)

    def value(self, name: str, /, **labels: object) -> float:
        """Return the value of a counter or gauge, or the number of values of a histogram.

        Args:
            name: the declared name.
            labels: the values of its labels; without them, the sum of all series.

        Raises:
            KeyError: the metric is not declared.
            TypeError: a label is missing or unknown.
        """
        family = find(name)
        if isinstance(family, Histogram):
            found: Mapping[Labels, float] = {
                values: each.count for values, each in self.distributions[family].items()
            }
        elif family in self.by_worker:
            found = _merged_values(self.by_worker[family].values(), _plus)
        else:
            found = self.values[family]
        if not labels:
            return sum(found.values())
        return found.get(family.order_values(labels), 0.0)

    def distribution(self, name: str, /, **labels: object) -> Distribution:
        """Return the distribution of a histogram.

        Raises:
            KeyError: the histogram is not declared.
            TypeError: a label is missing or unknown.
        """
        family = find(name)
        if not isinstance(family, Histogram):
            raise KeyError(f"{name} is not a histogram")
        found = self.distributions[family].get(family.order_values(labels))
        return Distribution(array("d", bytes(BLOCK * 8)), family.lowest) if found is None else found

    def since(self, earlier: "Snapshot | None") -> "Snapshot":
        """Return the growth of counters and histograms since an earlier snapshot."""
        if earlier is None:
            return self
        values = {
            family: {
                labels: value - earlier.values.get(family, {}).get(labels, 0.0)
                if isinstance(family, Counter)
                else value
                for labels, value in series.items()
            }
            for family, series in self.values.items()
        }
        distributions = {
            family: {
                labels: each.since(earlier.distributions.get(family, {}).get(labels))
                for labels, each in series.items()
            }
            for family, series in self.distributions.items()
        }
        return Snapshot(self.at, values, self.by_worker, distributions, self.rows)


def _plus(first: float, second: float) -> float:
    return first + second


def _merged_values(
    parts: Iterable[dict[Labels, float]], merge: Callable[[float, float], float]
) -> dict[Labels, float]:
    merged: dict[Labels, float] = {}
    for part in parts:
        for labels, value in part.items():
            merged[labels] = merge(merged[labels], value) if labels in merged else value
    return merged


def _merged(rows: list[PublishedRow], family: Histogram) -> dict[Labels, Distribution]:
    totals: dict[Labels, array[float]] = {}
    for row in rows:
        for labels, cells in row.histograms[family].items():
            if labels in totals:
                merge(totals[labels], cells)
            else:
                totals[labels] = array("d", cells)
    return {labels: Distribution(cells, family.lowest) for labels, cells in totals.items()}
