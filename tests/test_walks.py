"""The walks in docs/explanation/architecture.md are short, and name what exists."""

import ast
import re
from pathlib import Path

import pytest

import spoakit

SOURCE = Path(spoakit.__file__).parent
PAGE = Path(__file__).parents[1] / "docs/explanation/architecture.md"

_HOP = re.compile(r"^\d+\. +`(\S+\.py)` `([\w.]+)`: ", re.M)
_MOST_HOPS = 16


def walks() -> dict[str, list[tuple[str, str]]]:
    """Return the files and functions of each walk."""
    section = PAGE.read_text().partition("\n## Three walks\n")[2].partition("\n## ")[0]
    parts = re.split(r"^### (.+)$", section, flags=re.M)[1:]
    return {title: _HOP.findall(text) for title, text in zip(parts[::2], parts[1::2], strict=True)}


def names_of(path: Path) -> set[str]:
    """Return the names of a file's classes and functions: "function", "Class.method"."""
    names = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{name}" for name in functions_of(node.body)}
    return names | functions_of(ast.parse(path.read_text()).body)


def functions_of(body: list[ast.stmt]) -> set[str]:
    return {each.name for each in body if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)}


def test_there_are_three_walks() -> None:
    assert len(walks()) == 3


@pytest.mark.parametrize("title", walks())
def test_a_walk_is_short(title: str) -> None:
    assert 0 < len(walks()[title]) <= _MOST_HOPS


@pytest.mark.parametrize("title", walks())
def test_a_walk_names_what_exists(title: str) -> None:
    missing = [
        f"{path}: {name}" for path, name in walks()[title] if name not in names_of(SOURCE / path)
    ]
    assert missing == []
