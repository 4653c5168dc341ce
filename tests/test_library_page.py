"""docs/reference/library.md lists all public names."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_page_is_what_the_docstrings_say(tmp_path: Path) -> None:
    made = tmp_path / "library.md"
    subprocess.run([sys.executable, ROOT / "scripts/library_page.py", made], check=True)
    assert made.read_text() == (ROOT / "docs/reference/library.md").read_text(), (
        "run: python scripts/library_page.py"
    )
