"""Form of the hot code in use: compiled, or the same source as plain Python."""

import importlib.util
from pathlib import Path
from typing import Final

__all__ = [
    "COMPILED",
    "form",
]

COMPILED: Final = "compiled"
"""Result of `form` where all hot modules are compiled."""

REMEDY: Final = (
    "the hot code is not compiled, and needs several times the CPU time; install a C compiler and "
    "Python's headers (on Debian: apt-get install gcc python3-dev), then "
    "pip install --force-reinstall --no-cache-dir --no-deps spoakit"
)
"""Advice for users of the uncompiled form."""


def form() -> str:
    """Return "compiled", "not compiled", or the names of hot modules that are not compiled."""
    root = Path(__file__).parent
    hot = [
        ".".join(("spoakit", *path.relative_to(root).with_suffix("").parts))
        for path in sorted(root.rglob("*_cy.py"))
    ]
    slow = [name for name in hot if not _is_compiled(name)]
    if not slow:
        return COMPILED
    if slow == hot:
        return "not compiled"
    return f"compiled but for {', '.join(slow)}"


def _is_compiled(module: str) -> bool:
    spec = importlib.util.find_spec(module)
    return spec is not None and spec.origin is not None and not spec.origin.endswith(".py")
