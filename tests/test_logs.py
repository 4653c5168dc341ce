import gc
import json
import logging
import os
import re
import socket
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest

from spoakit.exceptions import ConfigurationError
from spoakit.log_output import configure_logging
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
        "import logging; from spoakit.log_output import configure_logging; "
        f"configure_logging('{'debug' if debug else 'info'}'); "
        f"log = logging.getLogger('spoakit.test'); {code}"
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
        "import logging, sys; from spoakit.log_output import configure_logging; "
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
    assert lost.endswith(
        b"%d lines of this log were lost: nobody read them, or the disk is full" % (1000 - written)
    )
    assert last.endswith(b"read again")


def test_a_peer_cannot_forge_log_lines() -> None:
    [line] = run_configured(False, r"log.info('got %s', 'x\n2024 \x1b[31mfake')")
    assert line.endswith(r"got x\n2024 \x1b[31mfake")


def test_long_messages_are_cut() -> None:
    [line] = run_configured(False, "log.info('got %s', 'x' * 1_000_000)")
    assert 4080 < len(line) < 4096
    assert line.endswith("xxx... (1000004 characters in all)")


# --- JSON and the journal ------------------------------------------------------------------


def run_json(code: str, worker: int | None = None) -> list[dict[str, Any]]:
    script = (
        "import logging; from spoakit.logs import Throttle, flush_throttles; "
        "from spoakit.log_output import configure_logging, set_worker; "
        f"configure_logging(format='json'); {f'set_worker({worker}); ' if worker else ''}"
        f"log = logging.getLogger('spoakit.test')\n{code}"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    assert all(len(line) < 4096 for line in done.stderr.splitlines())
    return [json.loads(line) for line in done.stderr.splitlines()]


def test_a_line_of_json_has_the_documented_keys() -> None:
    [line] = run_json("log.warning('seen %s', 1, extra={'peer': '192.0.2.1:5', 'status': 4})", 2)
    assert list(line) == [
        *("time", "level", "logger", "message", "pid", "worker", "peer", "status")
    ]
    time = datetime.fromisoformat(line.pop("time"))
    assert time.utcoffset() == timedelta(0)
    assert abs((datetime.now(UTC) - time).total_seconds()) < 60
    assert line.pop("pid") > 1
    assert line == {
        "level": "warning",
        "logger": "spoakit.test",
        "message": "seen 1",
        "worker": 2,
        "peer": "192.0.2.1:5",
        "status": 4,
    }


def test_a_throttled_line_of_json_tells_how_often_it_was_repeated() -> None:
    lines = run_json(
        "throttle = Throttle(log)\n"
        "for number in range(5): throttle.error('a', 'failed', extra={'number': number})\n"
        "flush_throttles(final=True)"
    )
    assert [line.get("repeated") for line in lines] == [None, 3]
    assert [line["number"] for line in lines] == [0, 4]
    assert all(line["worker"] is None for line in lines)


@pytest.mark.parametrize(
    "code",
    [
        "log.info('x\\n{\\x00\\ud800' * 5000)",
        "log.info('\U0001f600' * 5000, extra={f'{n}' * 50: '\\x00' * 999 for n in range(99)})",
        "try: 1 / 0\nexcept Exception: log.exception('\\x01' * 5000, extra={'a': '\\x00' * 999})",
        "def f(n): return f(n - 1) if n else {}[0]\n"
        "try: f(50)\nexcept Exception: log.exception('deep', stack_info=True)",
        "class Bad:\n  def __str__(self): raise ValueError\n"
        "log.info('%s', Bad(), extra={'b': Bad()})",
        "log.info('%d', 'x', extra={'n': 10 ** 400, 'f': float('nan'), 'time': 7, 'pid': 'x'})",
    ],
)
def test_no_line_of_json_is_too_long_or_broken(code: str) -> None:
    [line] = run_json(code)
    assert line["level"] in ("info", "error")
    assert isinstance(line["pid"], int)


def test_a_traceback_in_json_keeps_its_end() -> None:
    code = "try: raise ValueError('no ' + 'x' * 9000)\nexcept Exception: log.exception('failed')"
    [line] = run_json(code)
    assert line["message"] == "failed"
    assert line["traceback"].startswith("Traceback (most recent call last):\n")
    assert line["traceback"].endswith("(9003 characters in all)")
    deep = "".join(f"def f{'_' * 150}{n}(): f{'_' * 150}{n + 1}()\n" for n in range(25))
    call = f"try: f{'_' * 150}0()\nexcept Exception: log.exception('failed')"
    [line] = run_json(f"{deep}{call}")
    assert line["traceback"].startswith("...")
    assert "NameError" in line["traceback"]


def test_the_journal_gets_the_level_and_no_second_time(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    script = (
        "import logging, os; from spoakit.log_output import configure_logging\n"
        "status = os.fstat(2); os.environ['JOURNAL_STREAM'] = f'{status.st_dev}:{status.st_ino}'\n"
        "configure_logging(); log = logging.getLogger('spoakit.test')\n"
        "log.info('seen'); log.error('failed', exc_info=ValueError('no'))\n"
        "os.dup2(os.open(f'{os.readlink(\"/proc/self/fd/2\")}.2', os.O_WRONLY | os.O_CREAT), 2)\n"
        "log.info('elsewhere')\n"
    )
    with path.open("wb") as journal:
        subprocess.run([sys.executable, "-c", script], stderr=journal, check=True)
    assert path.read_text().splitlines() == [
        "<6>INFO spoakit.test: seen",
        "<3>ERROR spoakit.test: failed",
        "<3>  ValueError: no",
    ]
    assert re.match(r"20\d\d-", path.with_name("journal.2").read_text())


@pytest.mark.parametrize(
    ("level", "lines"), [("debug", 4), ("info", 3), ("warning", 2), ("error", 1)]
)
def test_a_level_shows_what_is_as_grave(level: str, lines: int) -> None:
    script = (
        "import logging; from spoakit.log_output import configure_logging\n"
        f"configure_logging({level!r}); log = logging.getLogger('spoakit.test')\n"
        "log.debug(''), log.info(''), log.warning(''), log.error('')"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    assert len(done.stderr.splitlines()) == lines


def test_an_unknown_level_or_format_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="log level must be one of debug, info, warn"):
        configure_logging(cast(Any, "loud"))
    with pytest.raises(ConfigurationError, match="log format must be one of text, json, got 'x'"):
        configure_logging("info", cast(Any, "x"))


# --- exceptions ----------------------------------------------------------------------------


def raised(error: BaseException) -> BaseException:
    """Return an exception with a traceback."""
    try:
        raise error
    except BaseException as caught:
        return caught


def test_a_line_shows_its_exception_and_a_summary_the_one_logged_before(
    throttle: Throttle, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(3):
        throttle.error("a", "call %d failed", number, error=raised(ValueError(f"no {number}")))
    clock.now += 1.0
    throttle.flush()
    assert caplog.messages == [
        "call 0 failed: ValueError: no 0",
        "call 2 failed: ValueError: no 0 (and 1 more like it in the last second)",
    ]
    for record in caplog.records:
        assert record.exc_text is not None
        lines = record.exc_text.splitlines()
        assert (lines[0], lines[-1]) == ("Traceback (most recent call last):", "ValueError: no 0")
        assert "in raised" in lines[1]


def test_a_line_after_the_interval_shows_its_own_exception(
    throttle: Throttle, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(3):
        clock.now += 1.0
        throttle.error("a", "failed", error=raised(ValueError(f"no {number}")))
    assert [message.split(" (")[0] for message in caplog.messages] == [
        f"failed: ValueError: no {number}" for number in range(3)
    ]


def test_an_exception_held_back_among_too_many_kinds_is_only_named(
    throttle: Throttle, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(10):
        error = KeyError(number) if number == 9 else ValueError(number)
        throttle.error(number, "%d failed", number, error=raised(error))
    clock.now += 1.0
    throttle.flush()
    assert caplog.messages[-1] == "9 failed: KeyError (and 5 more like it in the last second)"


def test_an_exception_that_is_held_back_is_neither_formatted_nor_kept(
    throttle: Throttle, caplog: pytest.LogCaptureFixture
) -> None:
    class CountedError(Exception):
        shown = 0

        def __str__(self) -> str:
            CountedError.shown += 1
            return "counted"

    references = []
    for _ in range(100):
        error = raised(CountedError())
        throttle.error("a", "failed", error=error)
        references.append(weakref.ref(error))
        del error
    assert CountedError.shown <= 3
    gc.collect()
    assert [reference() for reference in references] == [None] * 100


def test_what_led_to_an_exception_follows_it(
    throttle: Throttle, caplog: pytest.LogCaptureFixture
) -> None:
    group = ExceptionGroup("both", [ValueError(1), OSError(2)])

    def fail() -> None:
        try:
            raise KeyError("first")
        except KeyError as error:
            raise group from error

    with pytest.raises(ExceptionGroup) as caught:
        fail()
    throttle.error("a", "failed", error=caught.value)
    assert caplog.records[0].exc_text is not None
    lines = [line for line in caplog.records[0].exc_text.splitlines() if line[0] != " "]
    assert lines == [
        "Traceback (most recent call last):",
        "ExceptionGroup: both (2 sub-exceptions)",
        "Exception 1 of this group (most recent call last):",
        "ValueError: 1",
        "Exception 2 of this group (most recent call last):",
        "OSError: 2",
        "Caused by (most recent call last):",
        "KeyError: 'first'",
    ]


def endless() -> BaseException:
    """Return an exception that is the cause of its own cause."""
    first, second = raised(ValueError(1)), raised(ValueError(2))
    first.__cause__, second.__cause__ = second, first
    return first


def wide() -> BaseException:
    group: ExceptionGroup[Exception]
    group = ExceptionGroup("wide", [ValueError(n) for n in range(100)])
    for _ in range(3):
        group = ExceptionGroup("wide", [group] * 100)
    return raised(group)


class ShamError(Exception):
    """An exception whose attributes fail."""

    __suppress_context__ = property(lambda self: 1 / 0)

    def __str__(self) -> str:
        raise ShamError


def sham() -> BaseException:
    error = raised(ShamError())
    error.__context__ = ValueError()
    return error


@pytest.mark.parametrize("make", [endless, wide, sham, lambda: raised(ValueError("x" * 10**7))])
def test_of_an_exception_only_so_much_is_logged(
    make: Callable[[], BaseException], throttle: Throttle, caplog: pytest.LogCaptureFixture
) -> None:
    throttle.error("a", "failed", error=make())
    [record] = caplog.records
    assert len(record.getMessage()) < 1100
    assert record.exc_text is not None
    assert len(record.exc_text) < 8300


def test_an_exceptions_text_cannot_forge_log_lines() -> None:
    forged = r"'a\n2026-01-01 00:00:00.000 [1] INFO FORGED\r\x85\u2028b'"
    for code in (
        f"throttle.error('kind', 'failed', error=failed(ValueError({forged})))",
        f"log.error('failed', exc_info=failed(ValueError({forged})))",
        f"log.error('failed', exc_info=ValueError({forged}))",
        f"log.error('failed', exc_info=failed(noted({forged})))",
        f"log.error('failed', exc_info=failed(ExceptionGroup('g', [ValueError({forged})])))",
        f"log.error({forged}, stack_info=True)",
        f"log.handle(logging.makeLogRecord(dict(known, exc_text={forged})))",
    ):
        script = (
            "from spoakit.logs import Throttle\n"
            "throttle = Throttle(log)\n"
            "known = dict(name='root', levelno=20, levelname='INFO', msg='failed')\n"
            "def noted(text):\n    error = ValueError(); error.add_note(text); return error\n"
            "def failed(error):\n"
            "    try: raise error\n"
            "    except Exception as caught: return caught\n"
            f"{code}\n"
        )
        for debug in (False, True):
            first, *rest = run_configured(debug, f"exec({script!r})")
            assert re.match(r"\d{4}-\d\d-\d\d [\d:.]+ \[\d+\] \w+ (spoakit\.test|root): ", first)
            assert all(line.startswith("  ") for line in rest), rest
            assert "\x85" not in "".join((first, *rest))


def test_a_line_whose_arguments_cannot_be_shown_is_still_a_line() -> None:
    lines = run_configured(False, "log.info('%d', 'text'); log.info(5); log.info('%s', 1, 2)")
    assert [line.partition("test: ")[2] for line in lines] == [
        "%d (its arguments cannot be shown: TypeError)",
        "5",
        "%s (its arguments cannot be shown: TypeError)",
    ]


# --- where lines go ------------------------------------------------------------------------


@pytest.mark.parametrize("make", [os.pipe, lambda: [s.detach() for s in socket.socketpair()]])
@pytest.mark.parametrize("room", [1, 2, 5, 15])
@pytest.mark.parametrize("character", ["x", "é", "\U0001f600", "\n", "\udc80"])
def test_no_line_waits_for_a_reader(
    make: Callable[[], Sequence[int]], room: int, character: str
) -> None:
    reader, writer = make()
    os.set_blocking(writer, False)
    with suppress(BlockingIOError):
        while True:
            os.write(writer, b"." * 4095 + b"\n")
    os.set_blocking(writer, True)
    for _ in range(room):
        os.read(reader, 4096)
    script = (
        f"import logging; from spoakit.log_output import *; configure_logging()\n"
        f"log = logging.getLogger('spoakit.test'); text = {character!a}\n"
        "for size in range(0, 9000, 450): log.info(text * size)\n"
        "for size in range(0, 9000, 450): log.info('failed', exc_info=ValueError(text * size))\n"
        "for size in range(0, 9000, 450): log.info('stack', stack_info=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], stderr=writer, timeout=30, check=True)
    assert done.returncode == 0
    assert os.get_blocking(writer)
    os.close(writer)
    with open(reader, "rb") as pipe:
        lines = pipe.read().splitlines(keepends=True)
    # Whole lines, however little room there was.
    assert all(line.endswith(b"\n") and len(line) <= 4096 for line in lines)
    assert all(line.startswith((b".", b"20", b"  ")) for line in lines)


def test_lines_of_several_processes_do_not_mix() -> None:
    reader, writer = os.pipe()
    script = (
        "import logging, sys; from spoakit.log_output import *; configure_logging()\n"
        "log = logging.getLogger('spoakit.test')\n"
        "for size in range(1000): log.info(sys.argv[1] * (3 * size % 4000))\n"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", script, letter], stderr=writer) for letter in "abcd"
    ]
    os.close(writer)
    with open(reader, "rb") as pipe:
        lines = pipe.read().splitlines()
    assert [process.wait(30) for process in processes] == [0] * 4
    assert len(lines) >= 100
    for line in lines:
        assert re.fullmatch(rb"20\S+ \S+ \[\d+\] \w+ spoakit.*: (a*|b*|c*|d*|\d+ lines .*)", line)


def shell(redirection: str) -> subprocess.CompletedProcess[bytes]:
    """Log with standard error redirected, and print what happens to the log's caller."""
    script = (
        "import logging, sys; from spoakit.log_output import *; configure_logging()\n"
        "log = logging.getLogger('spoakit.test')\n"
        "for size in range(100): log.error('x' * size, exc_info=ValueError('x'), stack_info=True)\n"
        "logging.shutdown(); print('fine', flush=True)\n"
    )
    return subprocess.run(
        ["/bin/sh", "-c", f'"$0" -c "$1" {redirection}', sys.executable, script],
        stdout=subprocess.PIPE,
        timeout=30,
        check=False,
    )


@pytest.mark.parametrize("redirection", ["2>&-", "2>/dev/full", "2>/dev/null", "2</dev/null"])
def test_a_log_that_cannot_be_written_raises_nothing(redirection: str) -> None:
    done = shell(redirection)
    assert done.stdout == b"fine\n"


def test_a_log_whose_reader_has_gone_raises_nothing() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    script = (
        "import logging; from spoakit.log_output import *; configure_logging()\n"
        "[logging.error('x') for _ in range(3)]; print('fine')"
    )
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=writer, timeout=30, check=False)
    os.close(writer)
    assert done.stdout == b"fine\n"


def test_a_log_that_is_closed_under_way_goes_on_elsewhere(tmp_path: Path) -> None:
    path = tmp_path / "log"
    script = (
        "import logging, os, sys; from spoakit.log_output import *; configure_logging()\n"
        "log = logging.getLogger('spoakit.test')\n"
        "os.close(2); log.info('lost'); log.info('lost')\n"
        "os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND); log.info('x' * 5000)\n"
        "log.info('short')"
    )
    subprocess.run([sys.executable, "-c", script, path], timeout=30, check=True)
    lost, long, short = path.read_text().splitlines()
    assert "2 lines of this log were lost" in lost
    assert long.endswith("xxx... (5000 characters in all)")
    assert short.endswith("short")


def test_a_record_that_a_socket_took_in_part_is_ended_before_the_next() -> None:
    reader, writer = socket.socketpair()
    writer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4608)
    script = (
        "import logging, sys; from spoakit.log_output import *; configure_logging()\n"
        "log = logging.getLogger('spoakit.test')\n"
        "for size in range(200): log.info('x' * (37 * size % 4000))\n"
        "print(flush=True); sys.stdin.readline()\n"
        "for size in range(3): log.info('y')\n"
    )
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", script]
    with (
        reader,
        writer,
        subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=writer.fileno()) as process,
    ):
        assert process.stdout
        process.stdout.readline()
        writer.close()
        reader.setblocking(False)
        data = b""
        with suppress(BlockingIOError):
            while True:
                data += reader.recv(1 << 20)
        process.communicate(b"\n", 30)
        reader.setblocking(True)
        while more := reader.recv(1 << 20):
            data += more
    assert data.endswith(b"spoakit.test: y\n")
    for line in data.splitlines():
        assert re.match(rb"20\d\d-\d\d-\d\d ", line)


def test_a_filter_that_raises_costs_its_line_alone(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    logger = logging.getLogger("spoakit.test.filtered")

    def refuse(record: logging.LogRecord) -> bool:
        raise RuntimeError("a bad filter")

    throttle = Throttle(logger)
    logger.addFilter(refuse)
    try:
        throttle.warning("kind", "lost")
        throttle.error("other kind", "lost", error=ValueError("lost"))
    finally:
        logger.removeFilter(refuse)
    throttle.warning("third kind", "kept")
    assert caplog.messages == ["kept"]
    assert capsys.readouterr().err.count("RuntimeError: a bad filter") == 2


def test_a_line_of_another_worker_that_a_full_disk_tore_is_not_continued(tmp_path: Path) -> None:
    path = tmp_path / "log"
    script = (
        "import logging, os, resource; from spoakit.log_output import *; configure_logging()\n"
        "log = logging.getLogger('spoakit.test')\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (300, resource.RLIM_INFINITY))\n"
        "if not (worker := os.fork()): log.info('x' * 400); os._exit(0)\n"
        "os.waitpid(worker, 0); log.info('lost')\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)\n"
        "log.info('after')"
    )
    with path.open("ab") as file:
        subprocess.run([sys.executable, "-c", script], stderr=file, timeout=30, check=True)
    torn, lost, after = path.read_text().splitlines()
    assert len(torn) == 300
    assert re.fullmatch("20.*: 1 lines of this log were lost: .*", lost)
    assert re.fullmatch("20.*: after", after)
