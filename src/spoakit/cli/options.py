"""What the command lines have in common: how wrong ones are refused, and which form runs."""

import argparse
import importlib.util
from pathlib import Path
from typing import Final, NoReturn

import spoakit

EX_USAGE: Final = 64
"""The exit code for a wrong command line, as in sysexits.h and the C programs."""


class Parser(argparse.ArgumentParser):
    """A parser whose errors look like the programs' own: "ERROR: what is wrong"; exit code 64."""

    def error(self, message: str) -> NoReturn:
        """Print what is wrong, and leave."""
        self.exit(EX_USAGE, f"ERROR: {message}\nTry '{self.prog} -h'.\n")


def version() -> str:
    """Return the version and the form in use: "0.1.0 (compiled)"."""
    return f"{spoakit.__version__} ({form()})"


def form() -> str:
    """Return "compiled", "not compiled", or which of the hot modules are not compiled."""
    root = Path(spoakit.__file__).parent
    hot = [
        ".".join(("spoakit", *path.relative_to(root).with_suffix("").parts))
        for path in sorted(root.rglob("*_cy.py"))
    ]
    slow = [name for name in hot if not _is_compiled(name)]
    if not slow:
        return "compiled"
    if slow == hot:
        return "not compiled"
    return f"compiled but for {', '.join(slow)}"


def _is_compiled(module: str) -> bool:
    spec = importlib.util.find_spec(module)
    return spec is not None and spec.origin is not None and not spec.origin.endswith(".py")
