"""spoakit.metrics.memory: the rows of several processes in shared memory."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable

import pytest

from spoakit.metrics import families
from spoakit.metrics.families import Recording, counter, gauge, histogram
from spoakit.metrics.memory import SharedMetrics
from spoakit.metrics.snapshot import Snapshot

EVENTS = counter("test_events_total", "Events of the tests.")
OPEN = gauge("test_open", "Open things of the tests.")
BY_KIND = counter("test_by_kind_total", "Events by kind.", labels=("kind", "result"), limit=4)
MANY = counter("test_many_total", "Many.", labels=("kind",), limit=500)
TOOK = histogram("test_took_seconds", "Durations of the tests.", labels=("kind",), limit=3)


def in_child(run: Callable[[], None]) -> None:
    """Run a function in a forked process that is killed at its end."""
    pid = os.fork()
    if pid == 0:
        try:
            run()
            os.kill(os.getpid(), signal.SIGKILL)
        finally:
            os._exit(1)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status)


def test_rows_are_summed() -> None:
    metrics = SharedMetrics(3)
    for index in range(3):
        metrics.worker(index).add(EVENTS, index + 1)
        metrics.worker(index).add(OPEN)
    taken = Snapshot.take(metrics)
    assert taken.value("test_events_total") == 6
    assert taken.value("test_open") == 3


def test_what_a_killed_process_published_stays_and_its_successor_counts_on() -> None:
    metrics = SharedMetrics(2)

    def work() -> None:
        worker = metrics.worker(1)
        worker.add(EVENTS, 20)
        worker.add(BY_KIND, 1, "a", "good")
        worker.observe(TOOK, 0.5, "a")
        worker.publish()
        worker.add(EVENTS, 1000)  # lost, since it is not published

    for _ in range(2):
        in_child(work)
    taken = Snapshot.take(metrics)
    assert taken.value("test_events_total") == 40
    assert taken.value("test_by_kind_total", kind="a", result="good") == 2
    assert taken.distribution("test_took_seconds", kind="a").count == 2
    assert metrics.worker(1).get(EVENTS) == 40


def test_a_process_killed_while_it_publishes_leaves_what_it_published_before() -> None:
    metrics = SharedMetrics(1)

    def work() -> None:
        worker = metrics.worker(0)
        worker.add(EVENTS, 1)
        worker.add(OPEN, 1)
        worker.publish()
        worker.add(EVENTS, 1)
        worker._row._header[2] = 1  # it has begun to write ...
        worker._row._copies[1 - worker._row._header[1]][:] = memoryview(worker._cells)

    in_child(work)
    assert Snapshot.take(metrics).value("test_events_total") == 1
    metrics.on_ended(0)
    taken = Snapshot.take(metrics)
    assert taken.value("test_events_total") == 1
    assert taken.value("test_open") == 0


def test_what_is_read_is_always_of_one_time() -> None:
    metrics = SharedMetrics(1)
    pid = os.fork()
    if pid == 0:
        worker = metrics.worker(0)
        while True:
            for kind in "ab":
                worker.add(EVENTS, 1)
                worker.add(BY_KIND, 1, kind, "good")
            worker.publish()
    try:
        seen: set[float] = set()
        while len(seen) < 20:
            taken = Snapshot.take(metrics)
            assert taken.value("test_events_total") == taken.value("test_by_kind_total")
            seen.add(taken.value("test_events_total"))
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_gauges_of_an_ended_process_are_cleared_and_its_counters_kept() -> None:
    metrics = SharedMetrics(2)

    def work(index: int) -> None:
        metrics.worker(index).add(EVENTS, 5)
        metrics.worker(index).set(OPEN, 7)
        metrics.worker(index).publish()

    for index in range(2):
        in_child(lambda index=index: work(index))  # type: ignore[misc]
    metrics.on_ended(0)
    taken = Snapshot.take(metrics)
    assert taken.value("test_open") == 7
    assert taken.value("test_events_total") == 10


def test_gauges_go_down_again() -> None:
    worker = SharedMetrics(1).worker(0)
    worker.add(OPEN, 3)
    worker.add(OPEN, -2)
    assert worker.get(OPEN) == 1


def test_a_process_has_the_sums_of_all() -> None:
    metrics = SharedMetrics(3)
    metrics.worker(0).add(BY_KIND, 5, "a", "new")

    def count() -> None:
        other = metrics.worker(1)
        other.add(BY_KIND, 2, "a", "new")
        other.add(BY_KIND, 1, "b", "old")
        other.add(EVENTS, 3)
        other.publish()

    in_child(count)
    assert metrics.worker(0).totals(BY_KIND) == {("a", "new"): 7, ("b", "old"): 1}
    assert metrics.worker(0).totals(EVENTS) == {(): 3}


def test_series_without_room_are_counted_as_others() -> None:
    metrics = SharedMetrics(1)
    worker = metrics.worker(0)
    for number in range(100):
        worker.add(BY_KIND, 1, f"kind {number}", "good")
    assert Snapshot.take(metrics).values[BY_KIND] == {
        ("kind 0", "good"): 1,
        ("kind 1", "good"): 1,
        ("kind 2", "good"): 1,
        ("other", "other"): 97,
    }


@pytest.mark.parametrize(
    "value",
    ["", " ", "x" * 500, "\u20ac" * 90, "a\x1fb", 'quote " and \\', "line\nfeed", "\udcff"],
)
def test_any_value_of_a_label_is_counted_by_itself(value: str) -> None:
    metrics = SharedMetrics(2)

    def work() -> None:
        for _ in range(3):
            metrics.worker(0).add(BY_KIND, 1, value, "good")
        metrics.worker(0).publish()

    in_child(work)
    in_child(work)
    [(labels, count)] = Snapshot.take(metrics).values[BY_KIND].items()
    assert count == 6
    assert labels[1] == "good"
    shown = value.encode("utf-8", "replace").decode()
    assert labels[0] == shown or (len(labels[0].encode()) <= 63 and labels[0][-1] == "~")


def test_declarations_count_by_the_process_that_they_are_in() -> None:
    first, second = SharedMetrics(1), SharedMetrics(1)
    EVENTS.add(1000)  # nobody's
    with Recording(first.worker(0)):
        EVENTS.add()
        BY_KIND.add(2, kind="a", result="b")
        TOOK.observe(0.25, kind="a")
        with Recording(second.worker(0)):
            EVENTS.add(5)
        OPEN.set(3)
        OPEN.add(-1)
    EVENTS.add(1000)
    taken = Snapshot.take(first)
    assert taken.value("test_events_total") == 1
    assert taken.value("test_by_kind_total", kind="a", result="b") == 2
    assert taken.value("test_took_seconds", kind="a") == 1
    assert taken.value("test_open") == 2
    assert Snapshot.take(second).value("test_events_total") == 5


def test_what_is_declared_too_late_says_so() -> None:
    worker = SharedMetrics(1).worker(0)
    late = counter("test_late_total", "Declared late.")
    try:
        with pytest.raises(LookupError, match="test_late_total was declared after the service"):
            worker.add(late)
    finally:
        del families._families["test_late_total"]


def test_a_wrong_number_of_labels_says_so() -> None:
    worker = SharedMetrics(1).worker(0)
    with pytest.raises(TypeError, match="test_by_kind_total: needs 2 label values, got"):
        worker.add(BY_KIND, 1, "a")


def test_collectors_count_before_each_publishing() -> None:
    metrics = SharedMetrics(1)
    worker = metrics.worker(0)

    def collect() -> None:
        worker.set(OPEN, 4)

    worker.on_publish(collect)
    assert Snapshot.take(metrics).value("test_open") == 4
    worker.set(OPEN, 0)
    worker.forget(collect)
    assert Snapshot.take(metrics).value("test_open") == 0


def test_32_workers_with_64_histograms_take_less_than_8_mb() -> None:
    show = (
        "import spoakit.apps.mirror.agent, spoakit.server.service;"
        "from spoakit.metrics.families import Histogram, declared;"
        "from spoakit.metrics.memory import SharedMetrics;"
        "blocks = sum(each.limit for each in declared() if isinstance(each, Histogram));"
        "print(SharedMetrics(33).size, blocks)"
    )
    shown = subprocess.run([sys.executable, "-c", show], check=True, capture_output=True, text=True)
    size, blocks = map(int, shown.stdout.split())
    assert blocks >= 64
    assert size < 8_000_000


def test_values_of_labels_that_have_no_room_are_others() -> None:
    metrics = SharedMetrics(1)
    worker = metrics.worker(0)
    for number in range(1000):
        worker.add(MANY, 1, f"value {number}")
    counted = Snapshot.take(metrics).values[MANY]
    assert sum(counted.values()) == 1000
    assert len(counted) == 256
    assert counted["other",] == 1000 - 255
