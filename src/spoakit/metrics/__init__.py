"""Metrics of an agent over all its workers: counters, gauges and histograms with labels.

::

    from spoakit import metrics

    LOGINS = metrics.counter("logins_total", "Logins by result.", labels=("result",))

    @agent.message("check-login")
    async def check(user: str) -> Action:
        LOGINS.add(result="ok")
"""

from spoakit.metrics._histogram_cy import HistogramCells
from spoakit.metrics.families import Counter, Gauge, Histogram, counter, gauge, histogram
from spoakit.metrics.memory import CarriedCounts, SharedMetrics, WorkerMetrics
from spoakit.metrics.snapshot import Distribution, Snapshot

__all__ = [
    "CarriedCounts",
    "Counter",
    "Distribution",
    "Gauge",
    "Histogram",
    "HistogramCells",
    "SharedMetrics",
    "Snapshot",
    "WorkerMetrics",
    "counter",
    "gauge",
    "histogram",
]
