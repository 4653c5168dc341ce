"""Metrics of a process itself."""

import os
from typing import Final

from spoakit.logs import suppressed_lines
from spoakit.metrics.families import counter, gauge
from spoakit.metrics.memory import WorkerMetrics

MEMORY = gauge(
    "spoakit_resident_memory_bytes",
    "Memory that a worker holds, shared pages included.",
    merge="worker",
)
THROTTLED = counter(
    "spoakit_throttled_lines_total",
    "Lines of the log that were suppressed, since a kind of line is logged once a second.",
)

_PAGE: Final = os.sysconf("SC_PAGE_SIZE")


class ProcessMetrics:
    """Collector of the metrics of this process: its memory and its throttled log lines.

    Args:
        metrics: the metrics of this process.
    """

    __slots__ = ("_metrics", "_suppressed")

    def __init__(self, metrics: WorkerMetrics) -> None:
        self._metrics = metrics
        self._suppressed = suppressed_lines()
        metrics.on_publish(self._collect)

    def close(self) -> None:
        """Collect for the last time."""
        self._collect()
        self._metrics.forget(self._collect)

    def _collect(self) -> None:
        suppressed = suppressed_lines()
        self._metrics.add(THROTTLED, suppressed - self._suppressed)
        self._suppressed = suppressed
        self._metrics.set(MEMORY, resident_bytes())


def resident_bytes() -> int:
    """Return the memory of this process in bytes; 0 if the system does not report it."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * _PAGE
    except OSError:
        return 0
