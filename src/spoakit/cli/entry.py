"""Entry points of the applications, which explain how to install a missing extra."""

import sys
from importlib import import_module

from spoakit.cli.options import EX_FAILED


def mirror() -> int:
    """Run spoa-mirror."""
    return _run("spoa-mirror", "mirror")


def iprep() -> int:
    """Run spoa-iprep."""
    return _run("spoa-iprep", "iprep")


def _run(program: str, name: str) -> int:
    try:
        main = import_module(f"spoakit.cli.{name}").main
    except ModuleNotFoundError as error:
        missing = str(error.name).partition(".")[0]
        if missing == "spoakit":
            raise
        sys.stderr.write(
            f"ERROR: {program} needs {missing}; install it with: pip install 'spoakit[{name}]'\n"
        )
        return EX_FAILED
    return int(main())
