import gc
import logging
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from spoakit.logs import Throttle, flush_throttles, forget_throttled


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def throttle(clock: Clock, caplog: pytest.LogCaptureFixture) -> Iterator[Throttle]:
    caplog.set_level(logging.INFO, logger="spoakit.test")
    yield Throttle(logging.getLogger("spoakit.test"), max_kinds=3, clock=clock)
    gc.collect()


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


def run_configured(debug: bool, code: str) -> list[str]:
    script = (
        "import logging; from spoakit.logs import configure_logging; "
        f"configure_logging({debug}); log = logging.getLogger('spoakit.test'); {code}"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout == ""
    return done.stderr.splitlines()


def test_logs_go_to_stderr_with_time_and_process_id() -> None:
    [line] = run_configured(False, "log.debug('hidden'); log.info('seen %s', 1)")
    date, time, rest = line.split(" ", 2)
    assert len(date) == 10
    assert len(time) == 12
    pid, rest = rest.split(" ", 1)
    assert pid[1:-1].isdigit()
    assert rest == "INFO spoakit.test: seen 1"


def test_debug_shows_debug_lines() -> None:
    [line] = run_configured(True, "log.debug('seen')")
    assert line.endswith("DEBUG spoakit.test: seen")


def test_a_log_that_nobody_reads_holds_up_nothing_and_what_was_lost_is_counted() -> None:
    script = (
        "import logging, sys; from spoakit.logs import configure_logging; "
        "configure_logging(); log = logging.getLogger('spoakit.test'); "
        "[log.info('x' * 1000) for _ in range(1000)]; print(flush=True); "
        "sys.stdin.readline(); log.info('read again')"
    )
    command, pipe = [sys.executable, "-c", script], subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.readline()
        written = os.read(process.stderr.fileno(), 1 << 20).count(b"\n")
        _, rest = process.communicate(b"\n")
    [lost, last] = rest.splitlines()
    assert lost.endswith(b"%d lines of this log were lost: nobody read them" % (1000 - written))
    assert last.endswith(b"read again")


def test_a_peer_cannot_forge_log_lines() -> None:
    [line] = run_configured(False, r"log.info('got %s', 'x\n2024 \x1b[31mfake')")
    assert line.endswith(r"got x\x0a2024 \x1b[31mfake")


def test_long_messages_are_cut() -> None:
    [line] = run_configured(False, "log.info('got %s', 'x' * 1_000_000)")
    assert len(line) < 4300
    assert line.endswith("xxx... (995908 characters more)")
