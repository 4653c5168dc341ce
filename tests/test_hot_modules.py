"""The hot modules: what setup.py compiles, what there is, and which form is in use.

The Makefile says with SPOAKIT_EXPECT (compiled or pure) which form its leg must have; without
it, either is right.
"""

import importlib
import os
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from types import ModuleType

import pytest

import spoakit
from tests.support.forms import SAME_IN_BOTH_FORMS, Form

ROOT = Path(__file__).parents[1]
PACKAGE = Path(spoakit.__file__).parent
SOURCES = sorted(PACKAGE.rglob("*_cy.py"))
NAMES = sorted(".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts) for path in SOURCES)

every_module = pytest.mark.parametrize("name", NAMES)
every_source = pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)


def compiled_files(source: Path) -> list[Path]:
    """Return the compiled forms that stand beside a source and shadow it."""
    candidates = (source.with_suffix(suffix) for suffix in EXTENSION_SUFFIXES)
    return [path for path in candidates if path.exists()]


def is_compiled(module: ModuleType) -> bool:
    return str(module.__file__).endswith(tuple(EXTENSION_SUFFIXES))


def test_setup_compiles_every_hot_module(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("Cython", reason="without Cython nothing is compiled")
    setup_arguments: dict[str, list[object]] = {}
    monkeypatch.setattr("setuptools.setup", lambda **given: setup_arguments.update(given))
    monkeypatch.setenv("SPOAKIT_EXT", "require")
    monkeypatch.chdir(ROOT)
    exec(compile((ROOT / "setup.py").read_text(), "setup.py", "exec"), {})
    extensions = setup_arguments["ext_modules"]
    assert sorted(getattr(each, "name", "") for each in extensions) == NAMES
    assert not any(getattr(each, "optional", None) for each in extensions)


@every_module
def test_all_hot_modules_have_the_form_that_is_expected(name: str) -> None:
    compiled = is_compiled(importlib.import_module(name))
    assert os.environ.get("SPOAKIT_EXPECT") in (None, "compiled" if compiled else "pure")


@every_source
def test_no_compiled_form_is_older_than_its_source(source: Path) -> None:
    stale = [
        str(path)
        for path in compiled_files(source)
        if path.stat().st_mtime < source.stat().st_mtime
    ]
    assert stale == [], "these shadow newer sources: build again"


def test_no_compiled_form_outlives_its_source() -> None:
    orphans = [
        str(path)
        for path in PACKAGE.rglob("*_cy.*")
        if path.name.endswith(tuple(EXTENSION_SUFFIXES))
        and not path.with_name(path.name.partition(".")[0] + ".py").exists()
    ]
    assert orphans == []


@every_module
def test_a_hot_module_says_which_form_it_has(form: Form, name: str) -> None:
    module = form(name)
    if hasattr(module, "COMPILED"):
        assert module.COMPILED is is_compiled(module)


@pytest.mark.parametrize("pattern", SAME_IN_BOTH_FORMS)
def test_what_the_uncompiled_leg_leaves_out_is_there_and_names_no_hot_module(pattern: str) -> None:
    files = list((ROOT / "tests").glob(pattern))
    assert files
    for file in files:
        assert "_cy" not in file.read_text(), file
