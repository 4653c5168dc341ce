"""Formats of lines: text, JSON and the journal's."""

import json
import os
import re
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest

from spoakit.exceptions import ConfigurationError
from spoakit.log_output import configure_logging
from tests.support.logging_programs import run_configured

pytestmark = pytest.mark.slow


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
        b"%d lines of this log were lost: its reader is too slow, or the disk is full"
        % (1000 - written)
    )
    assert last.endswith(b"read again")


def test_a_peer_cannot_forge_log_lines() -> None:
    [line] = run_configured(False, r"log.info('got %s', 'x\n2024 \x1b[31mfake')")
    assert line.endswith(r"got x\n2024 \x1b[31mfake")


def test_long_messages_are_cut() -> None:
    [line] = run_configured(False, "log.info('got %s', 'x' * 1_000_000)")
    assert 4080 < len(line) < 4096
    assert line.endswith("xxx... (1000004 characters in all)")


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
