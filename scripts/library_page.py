"""Write docs/reference/library.md from the docstrings of all public names.

    python scripts/library_page.py [FILE]        default: docs/reference/library.md

Run it after a public name was added, changed or removed; a test holds the page to the code.
"""

import ast
import importlib
import sys
from importlib.util import find_spec
from pathlib import Path

# Modules for users, with the sentence that says what is in them.
MODULES = {
    "spoakit": "Agents: their messages, arguments, variables, and how to run them.",
    "spoakit.server": "Serving: settings, reloads, watched files, Unix sockets, event loops.",
    "spoakit.metrics": "Metrics: [their declarations](metrics.md), and counting by them.",
    "spoakit.logs": "Log lines that a peer cannot flood the log with.",
    "spoakit.log_output": "Output of the log: levels, formats, a handler that never blocks.",
    "spoakit.exceptions": "Exceptions, which are one tree, and SPOP's status codes.",
    "spoakit.testing": "Tests of agents, from a function call to a real HAProxy.",
    "spoakit.spop": "The protocol without input and output, both ends.",
    "spoakit.compilation": "The form of the hot code.",
}

HEAD = """\
# Library

All public names, a line each; `help(NAME)` has the rest: types, units, limits, errors. The commands
and applications of spoakit use these alone. What is not listed may change in any release.

This page is made from the docstrings by `scripts/library_page.py`.
"""


def page() -> str:
    """Return the page."""
    parts = [HEAD]
    for module, purpose in MODULES.items():
        parts.append(f"\n## `{module}`\n\n{purpose}\n\n| name | |\n|---|---|\n")
        names = importlib.import_module(module).__all__
        parts += [f"| `{name}` | {purpose_of(module, name)} |\n" for name in names]
    return "".join(parts)


def purpose_of(module: str, name: str) -> str:
    """Return the first paragraph of a name's docstring, as its module's source has it.

    The string under an assignment is its docstring.

    Raises:
        LookupError: the name has no docstring.
    """
    if name == "__version__":
        return "The version of the distribution."
    tree = ast.parse(source_of(module).read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and name in (alias.name for alias in node.names):
            return purpose_of(node.module or "", name)
    text = None
    for node, following in zip(tree.body, [*tree.body[1:], ast.Pass()], strict=True):
        match node:
            case ast.ClassDef(defined) | ast.FunctionDef(defined) | ast.AsyncFunctionDef(defined):
                if defined == name:
                    text = ast.get_docstring(node) or text
            case ast.Assign([ast.Name(defined)]) | ast.AnnAssign(ast.Name(defined)):
                if defined == name and isinstance(following, ast.Expr):
                    text = ast.literal_eval(following.value)
    if text is None:
        raise LookupError(f"{module}.{name} has no docstring")
    return " ".join(text.partition("\n\n")[0].split())


def source_of(module: str) -> Path:
    """Return the source of a module; hot modules are found compiled, beside it."""
    spec = find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    path = Path(spec.origin)
    return path.with_name(f"{path.name.partition('.')[0]}.py")


if __name__ == "__main__":
    default = Path(__file__).parent.parent / "docs/reference/library.md"
    (Path(sys.argv[1]) if len(sys.argv) > 1 else default).write_text(page())
