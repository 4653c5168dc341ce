"""Throttled lines: the first of a kind at once, the others in a summary."""

import logging

import pytest

from spoakit.logs import Throttle, flush_throttles, forget_throttled
from tests.support.logging_programs import Clock


def test_the_first_line_of_a_kind_is_logged_at_once(
    throttle: Throttle, caplog: pytest.LogCaptureFixture
) -> None:
    throttle.warning("a", "first %d", 1)
    throttle.error("b", "second")
    throttle.info("c", "100%")
    assert caplog.messages == ["first 1", "second", "100%"]
    assert [record.levelname for record in caplog.records] == ["WARNING", "ERROR", "INFO"]


def test_the_next_line_after_the_interval_tells_what_was_held_back(
    throttle: Throttle, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(1235):
        throttle.warning("a", "no %d", number)
    assert caplog.messages == ["no 0"]
    clock.now += 1.0
    throttle.warning("a", "no %d", 1235)
    assert caplog.messages[1:] == ["no 1235 (and 1234 more like it in the last second)"]


def test_a_flush_after_the_interval_summarises_what_was_held_back(
    throttle: Throttle, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(4):
        throttle.warning("a", "no %d", number)
    throttle.flush()
    assert len(caplog.messages) == 1
    clock.now += 12.0
    throttle.flush()
    throttle.flush()
    assert caplog.messages[1:] == ["no 3 (and 2 more like it in the last 12 seconds)"]


def test_a_single_line_held_back_is_logged_as_it_is(
    throttle: Throttle, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    throttle.warning("a", "one")
    throttle.warning("a", "two")
    clock.now += 1.0
    throttle.flush()
    assert caplog.messages == ["one", "two"]


def test_a_summary_opens_a_new_interval(
    throttle: Throttle, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    throttle.warning("a", "one")
    throttle.warning("a", "two")
    clock.now += 1.0
    throttle.flush()
    throttle.warning("a", "three")
    assert caplog.messages == ["one", "two"]


def test_a_quiet_kind_is_forgotten_and_logs_at_once_again(
    throttle: Throttle, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    throttle.warning("a", "one")
    clock.now += 1.0
    throttle.flush()
    throttle.warning("a", "two")
    assert caplog.messages == ["one", "two"]


def test_the_final_flush_waits_for_no_interval(
    throttle: Throttle, caplog: pytest.LogCaptureFixture
) -> None:
    forget_throttled()  # what other tests left behind
    throttle.warning("a", "one")
    throttle.warning("a", "two")
    flush_throttles(final=True)
    assert caplog.messages == ["one", "two"]


def test_too_many_kinds_share_one(
    throttle: Throttle, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(100):
        throttle.warning(number, "kind %d", number)
    assert caplog.messages == ["kind 0", "kind 1", "kind 2", "kind 3"]
    clock.now += 1.0
    throttle.flush()
    assert caplog.messages[4:] == ["kind 99 (and 95 more like it in the last second)"]


def test_lines_below_the_level_are_not_counted(
    throttle: Throttle, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR, logger="spoakit.test")
    for _ in range(3):
        throttle.warning("a", "unwanted")
    throttle.flush(final=True)
    assert caplog.messages == []


def test_a_forked_process_can_forget_what_its_parent_holds_back(
    throttle: Throttle, caplog: pytest.LogCaptureFixture
) -> None:
    throttle.warning("a", "one")
    throttle.warning("a", "two")
    forget_throttled()
    throttle.flush(final=True)
    assert caplog.messages == ["one"]
