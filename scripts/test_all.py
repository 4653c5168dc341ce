"""Run the whole suite with every HAProxy and Python >= 3.11, each of these in a venv of its own."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

OLDEST = (3, 11)
ROOT = Path(__file__).parent.parent
ENVIRONMENTS = ROOT / ".cache" / "venvs"


def installed() -> dict[tuple[int, int], str]:
    """Return the newest-looking command for each version, from the PATH and pyenv."""
    commands = [f"python3.{minor}" for minor in range(OLDEST[1], 30)]
    found = [path for command in commands if (path := shutil.which(command))]
    found += map(str, sorted(Path.home().glob(".pyenv/versions/3.*/bin/python3")))
    pythons: dict[tuple[int, int], str] = {}
    for path in found:
        shown = subprocess.run([path, "--version"], capture_output=True, text=True, check=False)
        if shown.returncode == 0 and (version := re.search(r"(\d+)\.(\d+)", shown.stdout)):
            key = int(version[1]), int(version[2])
            if key >= OLDEST:
                pythons.setdefault(key, path)
    return pythons


def run(*command: str | Path) -> bool:
    print("+", *command, flush=True)
    environment = {**os.environ, "SPOAKIT_ALL_VERSIONS": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode == 0


def test(python: str, name: str) -> bool:
    makes = f"VENV={ENVIRONMENTS / name}", f"PURE={ENVIRONMENTS / name}-pure", f"PYTHON={python}"
    return run("make", "test", *makes)


def main() -> int:
    results = {
        f"{major}.{minor}": test(python, f"{major}.{minor}")
        for (major, minor), python in sorted(installed().items())
    }
    for name, passed in results.items():
        print(f"Python {name}: {'passed' if passed else 'FAILED'}")
    return 0 if results and all(results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
