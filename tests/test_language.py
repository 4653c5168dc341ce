"""The check of language in `make lint`."""

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

_PATH = Path(__file__).parent.parent / "scripts" / "check_language.py"
_SPEC = spec_from_file_location("check_language", _PATH)
assert _SPEC is not None
assert _SPEC.loader is not None
check_language = module_from_spec(_SPEC)
_SPEC.loader.exec_module(check_language)


@pytest.mark.parametrize(
    ("source", "line"),
    [
        ('"""What a worker does."""', 1),
        ('"""Module."""\n\n\nclass A:\n    """Whether it runs."""', 5),
        ("# It is no\n# worker of ours.", 1),
        ("x = 1  # who is told of it", 1),
        ("raise ValueError('timeout=0 is no time')", 1),
        ('f"there are so many as {x}"', 1),
        ('"""Module.\n\nThe size is that of the row.\n"""', 3),
    ],
)
def test_a_finding_has_its_line(source: str, line: int) -> None:
    assert [found for found, _ in check_language.check_source(source)] == [line]


@pytest.mark.parametrize(
    "text",
    [
        "Return the worker that is no longer there.",
        "Limit of no more than ten.",
        "Index of the last frame that the caller handled.",
        "Calls and those that join them.",
        "There is no file.",
    ],
)
def test_plain_english_passes(text: str) -> None:
    assert check_language.check_source(f'"""{text}"""\n# {text}\n') == []
