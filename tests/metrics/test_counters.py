import os
import signal

import pytest

from spoakit.metrics.counters import Counters, MetricKind, counter, gauge

EVENTS = counter("test_events_total", "Events of the tests.")
OPEN = gauge("test_open", "Open things of the tests.")


def test_totals_sum_the_rows() -> None:
    counters = Counters(3)
    for index in range(3):
        counters.row(index).add(EVENTS, index + 1)
        counters.row(index).add(OPEN)
    totals = counters.totals()
    assert totals["test_events_total"] == 6
    assert totals["test_open"] == 3


def test_what_a_killed_process_counted_stays_and_its_successor_counts_on() -> None:
    counters = Counters(2)
    for _ in range(2):
        pid = os.fork()
        if pid == 0:
            counters.row(1).add(EVENTS, 20)
            os.kill(os.getpid(), signal.SIGKILL)
        os.waitpid(pid, 0)
    assert counters.row(1).get(EVENTS) == 40
    assert counters.totals()["test_events_total"] == 40


def test_the_gauges_of_a_dead_worker_are_cleared_and_its_counters_kept() -> None:
    counters = Counters(2)
    for index in range(2):
        counters.row(index).add(EVENTS, 5)
        counters.row(index).set(OPEN, 7)
    counters.reset_gauges(0)
    assert counters.row(0).get(OPEN) == 0
    assert counters.row(1).get(OPEN) == 7
    assert counters.totals()["test_events_total"] == 10


def test_gauges_go_down_again() -> None:
    row = Counters(1).row(0)
    row.add(OPEN, 3)
    row.add(OPEN, -2)
    assert row.get(OPEN) == 1


def test_a_counter_wraps_at_64_bits() -> None:
    row = Counters(1).row(0)
    row.add(EVENTS, 2**64 - 1)
    row.add(EVENTS, 3)
    assert row.get(EVENTS) == 2


def test_registering_twice_gives_the_same_slot() -> None:
    assert counter("test_events_total", "Events of the tests.") == EVENTS


def test_a_name_cannot_stand_for_two_metrics() -> None:
    with pytest.raises(ValueError, match="'test_events_total' is registered already, as counter"):
        gauge("test_events_total", "Events of the tests.")


def test_the_block_lists_its_metrics() -> None:
    metrics = {metric.name: metric for metric in Counters(1).metrics}
    assert metrics["test_open"].kind is MetricKind.GAUGE
    assert metrics["test_events_total"].help == "Events of the tests."
    assert metrics["test_events_total"].slot == EVENTS
