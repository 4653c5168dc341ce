"""The rooms of the house: imports point downward only (docs/explanation/architecture.md)."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import spoakit

SOURCE = Path(spoakit.__file__).parent

# From the bottom to the top. Those on one level do not know each other. `spoakit` is the
# package itself, whose names users import.
LEVELS = (
    {"exceptions", "_cython", "compilation"},
    {"logs", "metrics"},
    {"log_output"},
    {"spop"},
    {"agent"},
    {"spoakit"},
    {"server"},
    {"service"},
    {"testing"},
    {"apps"},
    {"cli"},
)
LEVEL_OF = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}

# `spoakit.run` and `spoakit.serve` are looked up only when a program uses them.
LATE_AND_UPWARD = {("spoakit", "service")}


@dataclass(frozen=True)
class Import:
    """One import, as it is written."""

    path: Path
    line: int
    module: str
    late: bool

    @property
    def importer(self) -> str:
        return room_of(self.path.relative_to(SOURCE).with_suffix("").parts)

    @property
    def imported(self) -> str:
        return room_of(tuple(self.module.split(".")[1:]))

    def __str__(self) -> str:
        return f"{self.path.relative_to(SOURCE)}:{self.line} imports {self.module}"


def room_of(parts: tuple[str, ...]) -> str:
    return "spoakit" if not parts or parts[0] == "__init__" else parts[0]


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def names_of(node: ast.Import | ast.ImportFrom) -> Iterator[str]:
    """Yield the modules an import statement names."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif node.module == "spoakit":
        # A module, or a name of the package itself.
        for alias in node.names:
            yield f"spoakit.{alias.name}" if alias.name in LEVEL_OF else "spoakit"
    else:
        assert node.level == 0, "relative imports hide where they point"
        yield node.module or ""


def imports_of(path: Path) -> Iterator[Import]:
    """Yield a file's imports; those for the type checker alone cost nothing and bind nothing."""

    def walk(node: ast.AST, late: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from (Import(path, node.lineno, name, late) for name in names_of(node))
        late = late or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        children = (
            node.orelse
            if isinstance(node, ast.If) and is_type_checking(node)
            else ast.iter_child_nodes(node)
        )
        for child in children:
            yield from walk(child, late)

    return walk(ast.parse(path.read_text()), False)


IMPORTS = [each for path in sorted(SOURCE.rglob("*.py")) for each in imports_of(path)]
OWN = [each for each in IMPORTS if each.module.split(".")[0] == "spoakit"]


def test_every_room_has_its_level() -> None:
    rooms = {room_of(path.relative_to(SOURCE).parts) for path in SOURCE.rglob("*.py")}
    assert {room.removesuffix(".py") for room in rooms} - {"__init__"} <= set(LEVEL_OF)


def test_imports_point_downward() -> None:
    upward = [
        str(each)
        for each in OWN
        if each.importer != each.imported
        and LEVEL_OF[each.imported] >= LEVEL_OF[each.importer]
        and not (each.late and (each.importer, each.imported) in LATE_AND_UPWARD)
    ]
    assert upward == []


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


@pytest.mark.parametrize("module", ["asyncio", "socket", "logging", "selectors", "threading", "os"])
def test_the_protocol_knows_no_input_and_output(module: str) -> None:
    found = [
        str(each)
        for each in IMPORTS
        if each.importer == "spop" and each.module.split(".")[0] == module
    ]
    assert found == []
