"""The soak finds nothing in a moment, and tells what goes wrong; `make soak` takes an hour."""

import os
import re
import signal
from contextlib import ExitStack
from pathlib import Path
from urllib.request import urlopen

import pytest

from benchmarks.subjects import REPOSITORY
from benchmarks.tools import build
from soak.run import Soak, soak
from soak.scene import Scene

pytestmark = [pytest.mark.slow, pytest.mark.e2e]


def test_a_short_round_finds_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    problems = soak(tmp_path, minutes=0, rate=100, seconds=0.2)
    printed = capsys.readouterr().out
    assert problems == 0, printed
    assert "requests, 0 problems" in printed


def test_what_goes_wrong_is_told(tmp_path: Path) -> None:
    def uncopied_request(scene: Scene) -> None:
        with urlopen(f"http://127.0.0.1:{scene.origin.port}/"):
            pass

    def killed_agent(scene: Scene) -> None:
        for process in (scene.iprep.process.popen.pid, *scene.iprep.workers):
            os.kill(process, signal.SIGKILL)

    with ExitStack() as stack:
        scene = Scene(build(REPOSITORY / ".cache" / "benchmarks"), tmp_path, stack)
        short = Soak(scene, rate=100, seconds=0.2)
        short.meet(uncopied_request)
        short.meet(killed_agent)
        scene.mirror.log.write_text("Traceback (most recent call last)\n")
        short.problems += scene.stop_agents()
    lines = [problem.partition("\n")[0] for problem in short.problems]
    first_lines = [re.sub(r"\d+ of \d+ requests have", "requests have", line) for line in lines]
    assert first_lines == [
        "uncopied_request: 21 of 20 requests were served",
        "uncopied_request: 20 copies of 21 requests",
        "killed_agent: requests have no score",
        "mirror.log has an error:",
        "spoa-iprep ended with -9",
    ]
