"""setup.py: what it builds, and what it removes of earlier builds."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import spoakit

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
MODULE = "src/spoakit/apps/mirror/http/_response_cy"  # the smallest one

pytest.importorskip("Cython", reason="without Cython nothing is compiled")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Return a copy of the project that has one hot module."""
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("__init__.py", "py.typed", "_cython.py"):
        (tmp_path / "src/spoakit").mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / "src/spoakit" / name, tmp_path / "src/spoakit")
    target = tmp_path / f"{MODULE}.py"
    target.parent.mkdir(parents=True)
    shutil.copy(ROOT / f"{MODULE}.py", target)
    return tmp_path


def build(tree: Path, mode: str, *command: str, **environment: str) -> int:
    done = subprocess.run(
        [sys.executable, "setup.py", "-q", *command],
        cwd=tree,
        env={**os.environ, "SPOAKIT_EXT": mode, **environment},
        capture_output=True,
        timeout=200,
        check=False,
    )
    return done.returncode


def built(tree: Path) -> list[Path]:
    return sorted((tree / MODULE).parent.glob("_response_cy*.so"))


def change(tree: Path) -> None:
    """Give the source a newer time than what is built of it."""
    source = (tree / MODULE).with_suffix(".py")
    source.write_text(f"{source.read_text()}# changed\n")
    for path in built(tree):
        os.utime(path, (1, 1))


def test_the_version_is_that_of_the_package() -> None:
    command = [sys.executable, "setup.py", "--version"]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert shown.splitlines()[-1] == spoakit.__version__


def test_a_build_that_fails_leaves_no_module_of_an_earlier_source(tree: Path) -> None:
    assert build(tree, "require", "build_ext", "--inplace") == 0
    [module] = built(tree)
    assert module.stat().st_size < 200_000, "it has its symbols"
    made_at = module.stat().st_mtime_ns
    assert build(tree, "auto", "build_ext", "--inplace", CC="false") == 0
    assert [path.stat().st_mtime_ns for path in built(tree)] == [made_at], "it was up to date"
    change(tree)
    assert build(tree, "auto", "build_ext", "--inplace", CC="false") == 0
    assert built(tree) == []
    assert build(tree, "require", "build_ext", "--inplace", CC="false") != 0


def test_no_module_of_an_earlier_build_is_installed(tree: Path) -> None:
    place = tree / "build/lib/spoakit/apps/mirror/http"
    place.mkdir(parents=True)
    (place / "_response_cy.cpython-311-x86_64-linux-gnu.so").touch()
    beside = (tree / MODULE).with_name("_response_cy.cpython-311-x86_64-linux-gnu.so")
    beside.touch()
    assert build(tree, "disable", "build_py", "--build-lib", "build/lib") == 0
    assert [path.name for path in place.glob("_response_cy*")] == ["_response_cy.py"]
    assert beside.exists(), "the compiled environment next to it still needs it"


def test_an_unknown_mode_is_refused(tree: Path) -> None:
    assert build(tree, "maybe", "build_py") != 0
