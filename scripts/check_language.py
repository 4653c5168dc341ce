"""Check the English of docstrings, comments and texts against the rules of CONTRIBUTING.

`make lint` calls it. It prints file:line for each finding, and exits with 1 if there are any.
"""

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
PATHS = (
    "src/spoakit/*.py",
    "src/spoakit/agent",
    "src/spoakit/cli",
    "src/spoakit/metrics",
    "src/spoakit/server",
    "src/spoakit/spop",
    "src/spoakit/testing",
)

# A docstring begins with a noun or an imperative verb.
FIRST_WORDS = {
    *("What", "Who", "Whose", "Which", "Where", "When", "Why", "How", "From", "Whether"),
    *("That", "Those", "Nothing", "Is", "Has", "Had"),
}

# Each phrase with the advice that is printed for it.
PHRASES = (
    (r"(?<!there )\b(?:is|are|was|were) no (?!longer\b|more than\b|doubt\b)", "say 'is not a'"),
    (r"\b(?:is|are|was|were|be|been) told\b|\btold (?:of|by)\b|\bto be told\b", "name the action"),
    (r"\bso many\b", "say how many"),
    (r"\b(?:whoever|whomever|whichever|whatsoever)\b", "name the subject"),
    (r"\btakes? a restart\b", "say 'must be restarted'"),
    (r"\b(?:that|those) of\b", "repeat the noun"),
    (r"(?:^|[.;:]\s+)(?:Of|of) (?:these|those|them|such)\b", "begin with the subject"),
    (r"\bsuch an?\b|\bas such\b|\bof such\b", "say 'a … like this', or repeat the noun"),
    (r"\bthat which\b|\bthose (?:which|who|whose)\b", "name the things"),
    (r"\b(?:has|have) nothing to say\b|\bto be had\b|\bas it is had\b", "use a plain verb"),
    (r"\bwhat there is\b|\bwhat is (?:said|asked|told|had)\b", "name the thing"),
    (r"\bsays nothing\b|\bknows nothing\b|\bis there for\b", "say what is missing"),
    (r"\bneeds? not\b", "say 'does not need to'"),
    (r"\bfarewells?\b|\bmishaps?\b|\bhindered\b|\bheld back\b", "use the field's word"),
)
RULES = tuple((re.compile(pattern, re.IGNORECASE), advice) for pattern, advice in PHRASES)

Finding = tuple[int, str]


def check_text(text: str, line: int) -> Iterator[Finding]:
    """Find the phrases in a text that begins in `line`; they may go over a line's end."""
    joined = re.sub(r"\n[ \t]*(?:#:?)?[ \t]?", lambda found: "\n", text)
    for rule, advice in RULES:
        for found in rule.finditer(joined.replace("\n", " ")):
            yield line + joined.count("\n", 0, found.start()), f"{found[0].strip()!r}: {advice}"


def check_docstrings(tree: ast.Module) -> Iterator[Finding]:
    """Find docstrings that do not begin with a noun or an imperative verb."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            words = (ast.get_docstring(node) or "").split()
            if words and words[0].rstrip(",:") in FIRST_WORDS:
                line = node.body[0].lineno
                yield line, f"a docstring begins with {words[0]!r}: use a noun or a verb"


def texts(source: str) -> Iterator[tuple[str, int]]:
    """Comments, those on adjacent lines as one, and strings, each with its first line."""
    comment, first, last = "", 0, 0
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            if token.start[0] == last + 1:
                comment += "\n" + token.string
            else:
                yield comment, first
                comment, first = token.string, token.start[0]
            last = token.start[0]
        elif tokenize.tok_name[token.type] in ("STRING", "FSTRING_MIDDLE"):
            yield token.string, token.start[0]
    yield comment, first


def check_source(source: str) -> list[Finding]:
    """Return the findings in a Python source, in the order of their lines."""
    findings = list(check_docstrings(ast.parse(source)))
    for text, line in texts(source):
        findings += check_text(text, line)
    return sorted(findings)


def files() -> Iterator[Path]:
    """Python files below `PATHS`."""
    for pattern in PATHS:
        for path in sorted(ROOT.glob(pattern)):
            yield from sorted(path.rglob("*.py")) if path.is_dir() else [path]


def main() -> int:
    count = 0
    for path in files():
        if path == Path(__file__):
            continue
        for line, finding in check_source(path.read_text()):
            print(f"{path.relative_to(ROOT)}:{line}: {finding}")
            count += 1
    return min(count, 1)


if __name__ == "__main__":
    sys.exit(main())
