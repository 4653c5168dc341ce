import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from spoakit import Agent
from spoakit.agent.combine import combine

pytestmark = pytest.mark.slow

pytest.importorskip("mypy")

ROOT = Path(__file__).parents[2]
CASES = Path(__file__).parent / "typing_cases"
PLANTED = re.compile(r"# error: (.+)$")
FOUND = re.compile(r"^(?P<file>[^:]+):(?P<line>\d+): error: .*\[(?P<code>[\w-]+)\]$")


@pytest.fixture(scope="module")
def findings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[tuple[int, str]]]:
    """Return what mypy finds in each case, as lines and error codes."""
    cases = sorted(CASES.glob("*.py"))
    cache = tmp_path_factory.mktemp("mypy")
    command = [sys.executable, "-m", "mypy", "--strict", "--no-pretty", f"--cache-dir={cache}"]
    ran = subprocess.run(
        [*command, *map(str, cases)], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert ran.returncode in (0, 1), ran.stderr
    found: dict[str, list[tuple[int, str]]] = {case.name: [] for case in cases}
    for line in ran.stdout.splitlines():
        if (match := FOUND.match(line)) and Path(match["file"]).name in found:
            found[Path(match["file"]).name].append((int(match["line"]), match["code"]))
    return found


def planted(case: Path) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(case.read_text().splitlines(), 1):
        if match := PLANTED.search(line):
            yield from ((number, code) for code in match[1].split(", "))


def test_mypy_has_nothing_to_say_about_right_code(
    findings: dict[str, list[tuple[int, str]]],
) -> None:
    assert findings["right.py"] == []


def test_mypy_finds_every_planted_mistake_and_no_other(
    findings: dict[str, list[tuple[int, str]]],
) -> None:
    expected = list(planted(CASES / "mistakes.py"))
    assert len(expected) >= 11
    assert findings["mistakes.py"] == expected


def test_right_code_makes_agents_that_can_be_served_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spec = importlib.util.spec_from_file_location("right", CASES / "right.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "right", module)
    spec.loader.exec_module(module)
    agents = [value for value in vars(module).values() if isinstance(value, Agent)]
    assert len(combine(agents)) == 10
