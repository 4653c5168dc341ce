"""The rooms of the house: imports point downward only (docs/explanation/architecture.md).

Every import counts: late ones, those for the type checker alone, and those of compiled modules
(``cython.cimports``, and ``cimport`` in .pxd files).
"""

import ast
import importlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import spoakit

SOURCE = Path(spoakit.__file__).parent

# From the bottom to the top. Those on one level do not know each other. `spoakit` is the
# package itself, whose names users import: `run` and `serve` stand above the server.
LEVELS = (
    {"exceptions", "_cython", "compilation"},
    {"logs", "metrics"},
    {"log_output"},
    {"spop"},
    {"agent"},
    {"server"},
    {"service"},
    {"spoakit"},
    {"testing"},
    {"apps"},
    {"cli"},
)
LEVEL_OF = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}


@dataclass(frozen=True)
class Import:
    """One name that a file imports; `name` is empty where the module itself is imported."""

    path: Path
    line: int
    module: str
    name: str = ""

    @property
    def importer(self) -> str:
        return room_of(module_of(self.path))

    @property
    def imported(self) -> str:
        return room_of(self.module)

    def __str__(self) -> str:
        names = " ".join(filter(None, (self.module, self.name)))
        return f"{self.path.relative_to(SOURCE)}:{self.line} imports {names}"


def module_of(path: Path) -> str:
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(module: str) -> str:
    return (*module.split("."), "spoakit")[1]


MODULES = {module_of(path): path for path in sorted(SOURCE.rglob("*.py"))}


def imports_of(path: Path) -> Iterator[Import]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (Import(path, node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide where they point"
            module = (node.module or "").removeprefix("cython.cimports.")
            yield from (named(path, node.lineno, module, alias.name) for alias in node.names)
    declarations = path.with_suffix(".pxd")
    if declarations.exists():
        for number, line in enumerate(declarations.read_text().splitlines(), 1):
            if found := re.match(r"from (\S+) cimport (.+)", line):
                for name in found[2].split(", "):
                    yield named(declarations, number, found[1], name)


def named(path: Path, line: int, module: str, name: str) -> Import:
    """Return the import of a name, which may be a module of a package."""
    if f"{module}.{name}" in MODULES:
        return Import(path, line, f"{module}.{name}")
    return Import(path, line, module, name)


IMPORTS = [each for path in MODULES.values() for each in imports_of(path)]
OWN = [each for each in IMPORTS if each.module.split(".")[0] == "spoakit"]


def test_every_room_has_its_level() -> None:
    assert {room_of(module) for module in MODULES} == set(LEVEL_OF)


def test_every_import_is_of_a_module() -> None:
    assert {each.module for each in OWN} <= set(MODULES)


def test_imports_point_downward() -> None:
    upward = [
        str(each)
        for each in OWN
        if each.importer != each.imported and LEVEL_OF[each.imported] >= LEVEL_OF[each.importer]
    ]
    assert upward == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = TopologicalSorter[str]()
    for each in OWN:
        graph.add(module_of(each.path), each.module)
    graph.prepare()  # a CycleError names the modules of a circle


def test_no_app_imports_another() -> None:
    # What is in no app's folder is for all of them, and knows none.
    apps = {path.name for path in (SOURCE / "apps").iterdir() if path.is_dir()}
    across = [
        str(each)
        for each in OWN
        if each.module.startswith("spoakit.apps.")
        and each.importer == "apps"
        and each.module.split(".")[2] in apps - {each.path.relative_to(SOURCE).parts[1]}
    ]
    assert across == []


# Modules for users, whose names are in their `__all__` and on docs/reference/library.md.
PUBLIC = {
    name: frozenset(importlib.import_module(name).__all__)
    for name in (
        "spoakit",
        "spoakit.compilation",
        "spoakit.exceptions",
        "spoakit.log_output",
        "spoakit.logs",
        "spoakit.metrics",
        "spoakit.server",
        "spoakit.spop",
        "spoakit.testing",
    )
}

# What a hot module of an application calls without going through Python: the one class of another
# room whose attributes its .pxd file has. Cython knows it by this module only.
CIMPORTED = {("spoakit.metrics._histogram_cy", "HistogramCells")}

# Stands in for Cython where it is not installed, in every hot module.
SHIM = "spoakit._cython"


def is_public(each: Import) -> bool:
    return each.module in PUBLIC and (not each.name or each.name in PUBLIC[each.module])


def is_for_hot_code(each: Import) -> bool:
    return each.path.stem.endswith("_cy") and (
        each.module == SHIM or (each.module, each.name) in CIMPORTED
    )


def test_applications_and_commands_use_public_names_only() -> None:
    rooms = {"apps", "cli"}
    private = [
        str(each)
        for each in OWN
        if each.importer in rooms
        and each.imported not in rooms
        and not is_public(each)
        and not is_for_hot_code(each)
    ]
    assert private == []


@pytest.mark.parametrize("module", ["asyncio", "socket", "logging", "selectors", "threading", "os"])
def test_the_protocol_knows_no_input_and_output(module: str) -> None:
    found = [
        str(each)
        for each in IMPORTS
        if each.importer == "spop" and each.module.split(".")[0] == module
    ]
    assert found == []
