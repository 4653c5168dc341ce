"""spoakit.server.forking: a child runs what it is for, and nothing of its parent's."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from spoakit.server.forking import flush_standard_streams, fork


def exit_code_of(child: Callable[[], int]) -> int:
    _, status = os.waitpid(fork(child), 0)
    return os.waitstatus_to_exitcode(status)


def raising(error: BaseException) -> Callable[[], int]:
    def child() -> int:
        raise error

    return child


def test_a_child_exits_with_the_code_it_returns() -> None:
    assert exit_code_of(lambda: 7) == 7


@pytest.mark.parametrize(
    "error", [OSError("no"), SystemExit(0), KeyboardInterrupt(), MemoryError(), GeneratorExit()]
)
def test_nothing_that_a_child_raises_reaches_what_its_parent_would_do(
    error: BaseException, tmp_path: Path
) -> None:
    file = tmp_path / "socket"
    file.touch()
    try:
        assert exit_code_of(raising(error)) == 1
    except BaseException:
        file.unlink()  # in the child: the assertion below fails in the parent then
        raise
    assert file.exists()


class Broken:
    """A stream whose every method raises."""

    def __init__(self, error: BaseException) -> None:
        self._error = error

    def __getattr__(self, name: str) -> Any:
        raise self._error

    def write(self, text: str) -> int:
        raise self._error


@pytest.mark.parametrize("error", [OSError("disk full"), ValueError("closed"), RuntimeError("?")])
def test_a_child_ends_although_its_streams_are_broken(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def child() -> int:
        monkeypatch.setattr(sys, "stdout", Broken(error))
        monkeypatch.setattr(sys, "stderr", Broken(error))
        return 5

    assert exit_code_of(child) == 5


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_stream_may_be_missing(stream: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, stream, None)
    assert exit_code_of(lambda: 0) == 0


PROGRAM = """
import os, sys
from spoakit.server.forking import flush_standard_streams
print("text that stays in the buffer")
flush_standard_streams()
print("more of it")
flush_standard_streams()
sys.exit(3)
"""


def run_with_stdout(descriptor: int) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"},
        stdout=descriptor,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )


def test_a_dead_pipe_does_not_change_an_exit_code() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    ended = run_with_stdout(writer)
    os.close(writer)
    assert (ended.returncode, ended.stderr) == (3, "")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
def test_a_full_disk_does_not_change_an_exit_code() -> None:
    with open("/dev/full", "wb") as full:
        ended = run_with_stdout(full.fileno())
    assert (ended.returncode, ended.stderr) == (3, "")


def test_what_can_be_written_is(capfd: pytest.CaptureFixture[str]) -> None:
    sys.stdout.write("seen")
    flush_standard_streams()
    assert capfd.readouterr().out == "seen"
