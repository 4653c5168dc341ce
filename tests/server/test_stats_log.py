import logging

import pytest

from spoakit.metrics.counters import Counters, counter
from spoakit.server.stats_log import log_counters

SEEN = counter("spoakit_report_seen_total", "Seen.")
UNSEEN = counter("spoakit_report_unseen_total", "Unseen.")


@pytest.fixture(autouse=True)
def _level(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="spoakit.server")


def test_each_worker_has_its_line_and_all_have_a_sum(caplog: pytest.LogCaptureFixture) -> None:
    counters = Counters(3)
    counters.row(0).add(SEEN, 3)
    counters.row(2).add(SEEN, 4)
    log_counters(counters, 2, zeros=False)
    assert caplog.messages == [
        "worker 1: report_seen=3",
        "worker 2: nothing yet",
        "supervisor: report_seen=4",
        "all: report_seen=7",
    ]


def test_a_lone_worker_has_a_supervisor_too(caplog: pytest.LogCaptureFixture) -> None:
    counters = Counters(2)
    counters.row(0).add(SEEN, 3)
    log_counters(counters, 1, zeros=False)
    assert caplog.messages == [
        "worker 1: report_seen=3",
        "supervisor: nothing yet",
        "all: report_seen=3",
    ]


def test_all_can_be_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    log_counters(Counters(2), 1, zeros=True)
    assert len(caplog.messages) == 3
    assert all("report_seen=0 report_unseen=0" in line for line in caplog.messages)
