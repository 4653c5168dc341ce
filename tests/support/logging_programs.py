"""Programs that log, and the lines that they log."""

import subprocess
import sys


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def run_configured(debug: bool, code: str) -> list[str]:
    script = (
        "import logging; from spoakit.log_output import configure_logging; "
        f"configure_logging('{'debug' if debug else 'info'}'); "
        f"log = logging.getLogger('spoakit.test'); {code}"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout == ""
    return done.stderr.splitlines()
