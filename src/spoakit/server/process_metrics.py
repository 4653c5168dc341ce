"""Metrics of a process itself."""

import os
from typing import Final

from spoakit.logs import lines_held_back
from spoakit.metrics.families import counter, gauge
from spoakit.metrics.memory import WorkerMetrics

MEMORY = gauge(
    "spoakit_resident_memory_bytes",
    "Memory that a worker holds, shared pages included.",
    merge="worker",
)
THROTTLED = counter(
    "spoakit_throttled_lines_total",
    "Lines of the log that were held back, since one of their kind is logged once a second.",
)

_PAGE: Final = os.sysconf("SC_PAGE_SIZE")


class ProcessMetrics:
    """Collector of the metrics of this process, from now on.

    Args:
        metrics: the process's.
    """

    __slots__ = ("_held_back", "_metrics")

    def __init__(self, metrics: WorkerMetrics) -> None:
        self._metrics = metrics
        self._held_back = lines_held_back()
        metrics.on_publish(self._collect)

    def close(self) -> None:
        """Collect for the last time."""
        self._collect()
        self._metrics.forget(self._collect)

    def _collect(self) -> None:
        held_back = lines_held_back()
        self._metrics.add(THROTTLED, held_back - self._held_back)
        self._held_back = held_back
        self._metrics.set(MEMORY, resident_bytes())


def resident_bytes() -> int:
    """Return how much memory this process holds; 0 where the system does not tell."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * _PAGE
    except OSError:
        return 0
