"""Reloader for development: runs the command in a child, and restarts it on code changes."""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from threading import Event
from types import FrameType
from typing import Final

from spoakit.exceptions import ConfigurationError

_END_TIMEOUT: Final = 15.0
_CHILD: Final = "SPOAKIT_RELOAD_CHILD"


def is_restarted() -> bool:
    """Return whether this process is the child that `serve_and_restart` restarts."""
    return _CHILD in os.environ


def serve_and_restart(arguments: Sequence[str]) -> int:
    """Run `spoakit run` with these arguments until SIGTERM or SIGINT, restarted at each change.

    Each change of a Python file below the current directory restarts it. A module that cannot be
    imported ends the child with its traceback, and the next change starts it again.

    Raises:
        ConfigurationError: watchfiles is not installed.
    """
    try:
        from watchfiles import PythonFilter, watch
    except ImportError:
        raise ConfigurationError(
            "--reload needs watchfiles; install it with: pip install 'spoakit[reload]'"
        ) from None
    command = [sys.executable, "-m", "spoakit.cli.spoakit", "run", *arguments]
    environment = {**os.environ, _CHILD: "1"}
    stopping = Event()

    def stop(signum: int, frame: FrameType | None) -> None:
        stopping.set()

    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, stop)
    child = subprocess.Popen(command, env=environment)
    # A short timeout: after a terminal's SIGINT to both processes, our SIGTERM must reach the child
    # before it counts as a second signal.
    changes = watch(".", watch_filter=PythonFilter(), stop_event=stopping, rust_timeout=100)
    try:
        for changed in changes:
            names = ", ".join(sorted({path for _, path in changed})[:3])
            sys.stderr.write(f"{names} changed: restarting\n")
            _end(child)
            child = subprocess.Popen(command, env=environment)
    finally:
        code = _end(child)
    return code


def _end(child: "subprocess.Popen[bytes]") -> int:
    """Stop the child, which drains; return its exit code."""
    if child.poll() is None:
        child.terminate()
    try:
        return child.wait(_END_TIMEOUT)
    except subprocess.TimeoutExpired:
        child.kill()
        return child.wait()
