"""spoakit.server.process_metrics: what a process tells of itself."""

import logging

from spoakit.logs import Throttle
from spoakit.metrics.memory import SharedMetrics
from spoakit.metrics.snapshot import Snapshot
from spoakit.server.process_metrics import ProcessMetrics


def test_memory_and_lines_held_back_are_counted_from_its_making() -> None:
    throttle = Throttle(logging.getLogger("test.process"))
    for _ in range(3):
        throttle.warning("before", "one of many")
    metrics = SharedMetrics(1)
    process = ProcessMetrics(metrics.worker(0))
    for _ in range(5):
        throttle.warning("kind", "one of many")
    taken = Snapshot.take(metrics)
    assert taken.value("spoakit_throttled_lines_total") == 4
    assert 1e6 < taken.value("spoakit_resident_memory_bytes") < 1e10
    process.close()
    throttle.warning("kind", "one of many")
    assert Snapshot.take(metrics).value("spoakit_throttled_lines_total") == 4
