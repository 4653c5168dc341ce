"""Log lines that show metrics to people.

There is a line for each message, target, source and so on (each value of a family's first label, if
that is one of `SUBJECTS`), for each worker, and for everything else. Counters are shown with their
growth and rate in the interval, histograms with the percentiles of the interval.
"""

import logging
from collections.abc import Iterator
from math import isnan
from typing import Final

from spoakit.metrics.families import Counter, Family, Gauge
from spoakit.metrics.memory import Labels, SharedMetrics
from spoakit.metrics.snapshot import Distribution, Snapshot

logger = logging.getLogger("spoakit.server")

SUBJECTS: Final = ("message", "target", "source", "zone")
"""Labels with a line for each value."""

_PERCENTILES: Final = ((0.5, "p50"), (0.99, "p99"), (0.999, "p99.9"))
_TIMES: Final = ((1.0, 1.0, "s"), (1e-3, 1e3, "ms"), (0.0, 1e6, "us"))
_SIZES: Final = ((2.0**30, "GiB"), (2.0**20, "MiB"), (2.0**10, "KiB"))


class StatsLog:
    """Writer of the lines, which show the time since its last lines, or since the start.

    Args:
        metrics: the metrics of the service; the last row is the supervisor's.
    """

    def __init__(self, metrics: SharedMetrics) -> None:
        self._metrics = metrics
        self._last = Snapshot.take(metrics)

    def write(self, *, everything: bool) -> None:
        """Write the lines.

        Args:
            everything: also show figures that have not changed in the interval.
        """
        now, last = Snapshot.take(self._metrics), self._last
        self._last = now
        lines = list(describe(now, last, everything=everything))
        logger.info("in the last %.1f s:%s", now.at - last.at, "" if lines else " nothing")
        for line in lines:
            logger.info("%s", line)


def describe(now: Snapshot, last: Snapshot, *, everything: bool) -> Iterator[str]:
    """Yield the lines for the time between two snapshots."""
    seconds = max(now.at - last.at, 1e-3)
    interval = now.since(last)
    subjects: dict[tuple[str, str], list[str]] = {}
    for family in now.values:
        for labels, value in now.values[family].items():
            grown = interval.values[family][labels] if isinstance(family, Counter) else value
            if value and (everything or grown):
                name = figure_name(family, labels, subject=False)
                shown = f"{name} {_figure(family, value, grown, seconds)}"
                subjects.setdefault(_subject(family, labels), []).append(shown)
    for histogram, series in (now if everything else interval).distributions.items():
        for labels, distribution in series.items():
            recent = interval.distributions[histogram][labels]
            shown_of = recent if recent.count else distribution
            if shown_of.count:
                name = figure_name(histogram, labels, subject=False)
                shown = f"{name} {_percentiles(histogram, shown_of)}"
                subjects.setdefault(_subject(histogram, labels), []).append(shown)
    for worker in range(1, len(now.rows)):
        shown_gauges = [
            f"{figure_name(gauge, labels, subject=False)} {_figure(gauge, value, value, seconds)}"
            for gauge, workers in now.by_worker.items()
            for labels, value in workers.get(worker, {}).items()
            if value
        ]
        if shown_gauges:
            subjects[f"worker {worker}", ""] = shown_gauges
    for (kind, which), figures in sorted(subjects.items()):
        yield f"{kind}{f' {which}' if which else ''}: {', '.join(figures)}"


def _subject(family: Family, labels: Labels) -> tuple[str, str]:
    if family.labels and family.labels[0] in SUBJECTS:
        return family.labels[0], labels[0]
    return "all", ""


def figure_name(family: Family, labels: Labels, *, subject: bool = True) -> str:
    """Return the name of a figure in a line: "responses 2xx", "handler".

    Args:
        family: its family.
        labels: the values of its labels.
        subject: append the subject, for text outside of the subject's line.
    """
    name = family.name.removeprefix("spoakit_").removeprefix("mirror_").removeprefix("iprep_")
    for end in ("_total", "_seconds", "_bytes"):
        name = name.removesuffix(end)
    has_subject = bool(family.labels) and family.labels[0] in SUBJECTS
    own = labels[1:] if has_subject else labels
    whose = f"of {family.labels[0]} {labels[0]}" if has_subject and subject else ""
    return " ".join(part for part in (name.replace("_", " "), *own, whose) if part)


def _figure(family: Family, value: float, grown: float, seconds: float) -> str:
    shown = _amount(family.name.removesuffix("_total"), value)
    if isinstance(family, Gauge):
        return shown
    added = _amount(family.name.removesuffix("_total"), grown)
    return f"{shown} (+{added}, {_amount(family.name.removesuffix('_total'), grown / seconds)}/s)"


def _percentiles(family: Family, distribution: Distribution) -> str:
    shown = (
        f"{name} {_amount(family.name, distribution.quantile(share))}"
        for share, name in _PERCENTILES
    )
    return " ".join(shown)


def _amount(name: str, value: float) -> str:
    """Return a figure with the unit in its family's name."""
    if isnan(value):
        return "-"
    if name.endswith("_seconds"):
        shown, unit = next((value * by, unit) for least, by, unit in _TIMES if value >= least)
        return f"{shown:,.0f} {unit}" if shown >= 100 else f"{shown:.3g} {unit}"
    if name.endswith("_bytes"):
        for least, unit in _SIZES:
            if value >= least:
                return f"{value / least:.1f} {unit}"
        return f"{value:.0f} B"
    return f"{value:,.0f}" if value == int(value) else f"{value:,.1f}"
