"""packaging/: the units are what systemd takes, and the extras what the code imports."""

import ast
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

import spoakit
from spoakit.cli import entry

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
SOURCE = Path(spoakit.__file__).parent
UNITS = sorted((ROOT / "packaging/systemd").glob("*.service"))


@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.name)
def test_systemd_has_nothing_to_say_about_a_unit(unit: Path, tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is not installed")
    text = unit.read_text()
    [program] = re.findall(r"^ExecStart=/opt/spoakit/bin/(\S+)", text, re.M)
    (tmp_path / program).symlink_to(sys.executable)
    # An instance, where it is a template.
    copy = tmp_path / unit.name.replace("@", "@hello")
    copy.write_text(text.replace("/opt/spoakit/bin", str(tmp_path)))
    done = subprocess.run(
        [analyze, "verify", "--man=no", str(copy)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_each_program_has_a_unit() -> None:
    assert [unit.stem for unit in UNITS] == ["spoa-iprep", "spoa-mirror", "spoakit@"]


def requirements() -> dict[str, set[str]]:
    """Return the names of the distributions that the package and each extra need."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = {"": project["dependencies"], **project["optional-dependencies"]}
    return {
        name: {re.split(r"[\[<>=;~! ]", each)[0] for each in needed}
        for name, needed in groups.items()
    }


def imported(folder: str) -> set[str]:
    """Return the distributions beyond the standard library that a folder's files import."""
    found = set()
    for path in (SOURCE / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found.add(node.module.partition(".")[0])
    known = packages_distributions()
    others = found - sys.stdlib_module_names - {"spoakit", "cython"}
    return {known[name][0].lower() for name in others}


@pytest.mark.parametrize("folder", ["spop", "agent", "metrics", "server"])
def test_the_library_needs_uvloop_alone(folder: str) -> None:
    assert imported(folder) <= requirements()[""] == {"uvloop"}


@pytest.mark.parametrize("app", ["mirror", "iprep"])
def test_an_application_needs_what_its_extra_has(app: str) -> None:
    # pycares comes with aiodns.
    assert imported(f"apps/{app}") - {"pycares"} == requirements()[app]


def test_all_is_all() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    extras = tomllib.loads(text)["project"]["optional-dependencies"]
    assert extras["all"] == [f"spoakit[{','.join(sorted(extras.keys() - {'all'}))}]"]


@pytest.mark.parametrize(
    ("app", "missing"), [("mirror", "re2"), ("mirror", "hpack"), ("iprep", "maxminddb")]
)
def test_a_command_names_the_extra_that_is_not_installed(app: str, missing: str) -> None:
    script = (
        f"import sys; sys.modules[{missing!r}] = None; from spoakit.cli import entry; "
        f"sys.exit(entry.{app}())"
    )
    command = [sys.executable, "-c", script, "-V"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == (
        f"ERROR: spoa-{app} needs {missing}; install it with: pip install 'spoakit[{app}]'\n"
    )


def test_a_command_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["spoa-mirror", "-V"])
    assert entry.mirror() == 0
    assert "spoa-mirror v" in capsys.readouterr().out
