"""spoakit run --reload: the command runs anew when its code changes."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import spoakit
from spoakit.cli import spoakit as command
from spoakit.testing import EngineClient
from tests.support.processes import children_of, wait_for_line

pytestmark = pytest.mark.slow

AGENT = """
from spoakit import Action, Agent

agent = Agent("one")
number = agent.variable("txn.number", int)

@agent.message("one")
def answer() -> Action:
    return number.set({})
"""
SOURCE = Path(spoakit.__file__).parent.parent


def replace(path: Path, text: str) -> None:
    new = path.with_suffix(".new")
    new.write_text(text)
    new.rename(path)


@pytest.fixture
def running(tmp_path: Path) -> Iterator["subprocess.Popen[str]"]:
    (tmp_path / "agents.py").write_text(AGENT.format(1))
    # An option may be shortened, and operands may stand behind --.
    arguments = ["run", "--relo", "--unix", "agent.sock", "--", "agents:agent"]
    with subprocess.Popen(
        [sys.executable, "-m", "spoakit.cli.spoakit", *arguments],
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(SOURCE), "PYTHONDONTWRITEBYTECODE": "1"},
    ) as process:
        yield process
        process.terminate()
        process.communicate(timeout=30)


def ask(folder: Path) -> object:
    with EngineClient(unix=str(folder / "agent.sock")) as engine:
        engine.hello()
        return engine.call("one")["txn.number"]


def test_a_change_restarts_it_and_a_broken_module_waits_for_the_next(
    running: "subprocess.Popen[str]", tmp_path: Path
) -> None:
    wait_for_line(running, "listening on")
    assert ask(tmp_path) == 1
    replace(tmp_path / "agents.py", AGENT.format(2))
    wait_for_line(running, "agents.py changed: restarting")
    wait_for_line(running, "listening on")
    assert ask(tmp_path) == 2
    replace(tmp_path / "agents.py", "def :\n")
    wait_for_line(running, "SyntaxError")
    assert running.poll() is None
    replace(tmp_path / "agents.py", AGENT.format(3))
    wait_for_line(running, "listening on")
    assert ask(tmp_path) == 3
    [child] = children_of(running.pid)
    running.send_signal(signal.SIGTERM)
    running.communicate(timeout=30)
    assert running.returncode == 0
    assert not Path(f"/proc/{child}").exists()
    assert not (tmp_path / "agent.sock").exists()


def test_it_does_not_go_to_the_background(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "path", sys.path[:])
    assert command.main(["run", "--reload", "-D", "agents:agent"]) == 64
    assert "--reload runs in the foreground" in capsys.readouterr().err


def test_without_watchfiles_it_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "watchfiles", None)
    monkeypatch.setattr(sys, "path", sys.path[:])
    assert command.main(["run", "--reload", "agents:agent"]) == 64
    assert "pip install 'spoakit[reload]'" in capsys.readouterr().err
