"""All processes' metrics at one time, put together."""

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

# 1, 2, 5, 10, ... as the numbers of the buckets that end there.
_SHOWN_BUCKETS: Final = tuple(
    0 if decade == step == 0 else decade * 48 + step for decade in range(8) for step in (0, 14, 34)
)


@cache
def _bounds() -> list[float]:
    return bucket_bounds()


class Distribution:
    """What a histogram has observed.

    Attributes:
        count: the number of values.
        sum: the values together.
    """

    __slots__ = ("_cells", "_lowest", "count", "sum")

    def __init__(self, cells: "array[float]", lowest: float) -> None:
        self._cells = cells
        self._lowest = lowest
        self.count = round(sum(cells[:BUCKETS]))
        self.sum: float = cells[BUCKETS]

    def quantile(self, share: float) -> float:
        """Return what this share of the values, 0 to 1, is at most; NaN without values.

        It is true to the width of a bucket, 3 to 7 %. What is beyond the highest bound is shown as
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
        """Return upper bounds, and how many values are below each: 1, 2, 5, 10, ... of the lowest.

        There are 25, from the lowest bound to the highest.
        """
        counts = list(accumulate(self._cells[:BUCKETS]))
        bounds = _bounds()
        return [
            (round(bounds[index] * self._lowest, 12), round(counts[index]))
            for index in (*_SHOWN_BUCKETS, BUCKETS - 2)
        ]

    def since(self, earlier: "Distribution | None") -> "Distribution":
        """Return what has been observed since an earlier time."""
        if earlier is None:
            return self
        cells = array(
            "d", (now - then for now, then in zip(self._cells, earlier._cells, strict=True))
        )
        return Distribution(cells, self._lowest)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All processes' metrics at one time, put together.

    Attributes:
        at: when it was taken, on ``time.monotonic()``'s clock.
        values: counters, and gauges that are one for all workers, by family and the values of
            their labels.
        by_worker: gauges that each worker has for itself, by family, worker (from 1) and labels.
        distributions: histograms, by family and the values of their labels.
        rows: what each process has published, in their order; the supervisor's is the last.
    """

    at: float
    values: dict[Family, dict[Labels, float]]
    by_worker: dict[Family, dict[int, dict[Labels, float]]]
    distributions: dict[Family, dict[Labels, Distribution]]
    rows: list[PublishedRow] = field(repr=False)

    @classmethod
    def take(cls, metrics: SharedMetrics) -> Self:
        """Read what all processes have published last."""
        rows = [metrics.read(index) for index in range(len(metrics))]
        values: dict[Family, dict[Labels, float]] = {}
        by_worker: dict[Family, dict[int, dict[Labels, float]]] = {}
        distributions: dict[Family, dict[Labels, Distribution]] = {}
        for family in metrics.families:
            if isinstance(family, Histogram):
                distributions[family] = _merged(rows, family)
            elif isinstance(family, Gauge) and family.merge == "worker":
                # Of several rows the last is the supervisor's.
                by_worker[family] = {
                    index + 1: row.values[family]
                    for index, row in enumerate(rows[: max(1, len(rows) - 1)])
                }
            else:
                merge = max if isinstance(family, Gauge) and family.merge == "max" else _plus
                values[family] = _merged_values((row.values[family] for row in rows), merge)
        return cls(time.monotonic(), values, by_worker, distributions, rows)

    def value(self, name: str, /, **labels: object) -> float:
        """Return a counter's or gauge's figure; a histogram's number of values.

        Args:
            name: as it was declared.
            labels: the values of its labels. Without any, all series are summed.

        Raises:
            KeyError: there is no such metric.
            TypeError: these are not its labels.
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
        return found.get(family.values_of(labels), 0.0)

    def distribution(self, name: str, /, **labels: object) -> Distribution:
        """Return what a histogram has observed.

        Raises:
            KeyError: there is no such histogram.
            TypeError: these are not its labels.
        """
        family = find(name)
        if not isinstance(family, Histogram):
            raise KeyError(f"{name} is not a histogram")
        found = self.distributions[family].get(family.values_of(labels))
        return Distribution(array("d", bytes(BLOCK * 8)), family.lowest) if found is None else found

    def since(self, earlier: "Snapshot | None") -> "Snapshot":
        """Return what counters and histograms have counted since an earlier snapshot."""
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
