"""spoakit.server.stats_log: metrics as lines that a person can read."""

import logging
from dataclasses import replace

import pytest

from spoakit.metrics.families import counter, gauge, histogram
from spoakit.metrics.memory import SharedMetrics
from spoakit.metrics.snapshot import Snapshot
from spoakit.server.stats_log import StatsLog, describe

SEEN = counter("spoakit_report_seen_total", "Seen.")
COPIES = counter("spoakit_report_copies_total", "Copies.", labels=("target", "result"))
QUEUE = gauge("spoakit_report_queue_bytes", "Queue.", labels=("target",))
TOOK = histogram("spoakit_report_took_seconds", "Took.", labels=("target",))
AGE = gauge("spoakit_report_age_seconds", "Age.", labels=("target",))
HELD = gauge("spoakit_report_held_bytes", "Held.", merge="worker")


def lines(metrics: SharedMetrics, last: Snapshot, *, everything: bool = False) -> list[str]:
    now = replace(Snapshot.take(metrics), at=last.at + 10)
    return list(describe(now, last, everything=everything))


def test_figures_of_a_target_stand_in_one_line() -> None:
    metrics = SharedMetrics(3)
    start = Snapshot.take(metrics)
    for index in range(2):
        worker = metrics.worker(index)
        worker.add(COPIES, 1000, "a", "good")
        worker.add(COPIES, 5, "a", "bad")
        worker.add(COPIES, 7, "b", "good")
        worker.set(QUEUE, 1536, "a")
        for _ in range(99):
            worker.observe(TOOK, 0.0015, "a")
        worker.observe(TOOK, 1.5, "a")
        worker.set(HELD, 30 * 2**20)
    metrics.worker(2).add(SEEN, 3)
    assert lines(metrics, start) == [
        "all: report seen 3 (+3, 0.3/s)",
        "target a: report copies good 2,000 (+2,000, 200/s), report copies bad 10 (+10, 1/s), "
        "report queue 3.0 KiB, report took p50 1.54 ms p99 1.57 ms p99.9 1.56 s",
        "target b: report copies good 14 (+14, 1.4/s)",
        "worker 1: report held 30.0 MiB",
        "worker 2: report held 30.0 MiB",
    ]


def test_only_what_has_changed_is_shown_unless_everything_is_asked_for() -> None:
    metrics = SharedMetrics(2)
    worker = metrics.worker(0)
    worker.add(COPIES, 100, "a", "good")
    worker.observe(TOOK, 0.1, "a")
    before = Snapshot.take(metrics)
    assert lines(metrics, before) == []
    worker.add(COPIES, 20, "b", "good")
    assert lines(metrics, before) == ["target b: report copies good 20 (+20, 2/s)"]
    [first, _] = lines(metrics, before, everything=True)
    assert first == (
        "target a: report copies good 100 (+0, 0/s), report took p50 104 ms p99 107 ms p99.9 107 ms"
    )


def test_long_times_are_written_out() -> None:
    metrics = SharedMetrics(2)
    start = Snapshot.take(metrics)
    for target, seconds in (("a", 4100), ("b", 0.25), ("c", 12.3456), ("d", 0.0000021)):
        metrics.worker(0).set(AGE, seconds, target)
    shown = [line.partition("age ")[2] for line in lines(metrics, start)]
    assert shown == ["4,100 s", "250 ms", "12.3 s", "2.1 us"]


def test_each_report_shows_the_time_since_the_last(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="spoakit.server")
    metrics = SharedMetrics(2)
    log = StatsLog(metrics)
    metrics.worker(0).add(SEEN, 3)
    log.write(everything=False)
    log.write(everything=False)
    log.write(everything=True)
    first, figures, second, third, again = caplog.messages
    assert first.startswith("in the last 0.0 s:")
    assert figures.startswith("all: report seen 3 (+3, ")
    assert second == "in the last 0.0 s: nothing"
    assert third == "in the last 0.0 s:"
    assert again == "all: report seen 3 (+0, 0/s)"
