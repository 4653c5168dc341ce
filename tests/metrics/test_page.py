"""docs/reference/metrics.md says what is declared."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_page_is_what_the_declarations_say(tmp_path: Path) -> None:
    made = tmp_path / "metrics.md"
    subprocess.run([sys.executable, ROOT / "scripts/metrics_page.py", made], check=True)
    assert made.read_text() == (ROOT / "docs/reference/metrics.md").read_text(), (
        "run: python scripts/metrics_page.py"
    )
