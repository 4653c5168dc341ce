"""Forking, so that a child never runs its parent's code, and a dead pipe ends neither."""

import logging
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn, TextIO

from spoakit.logs import flush_throttles

logger = logging.getLogger("spoakit.server")


def fork(child: Callable[[], int]) -> int:
    """Fork; return the child's process id. The child calls `child` and exits with its result.

    An exception in the child is logged, and its exit code is 1. The caller's ``except`` and
    ``finally`` blocks, which remove the service's files, never run in the child.

    Raises:
        OSError: (in the parent only) the system has no memory or process left.
    """
    flush_standard_streams()  # or the child would write the parent's buffers again
    pid = os.fork()
    if pid == 0:
        _run_and_exit(child)
    return pid


def _run_and_exit(child: Callable[[], int]) -> NoReturn:
    code = 1
    try:
        try:
            code = child()
        except BaseException:
            logger.exception("process %d failed", os.getpid())
        flush_throttles(final=True)
        logging.shutdown()
        flush_standard_streams()
    finally:
        os._exit(code)


def flush_standard_streams() -> None:
    """Flush standard output and standard error, and discard text that cannot be written.

    Either may be missing, closed, on a full disk, or a pipe without a reader. Text left in a buffer
    would fail again when the interpreter ends, and change the exit code to 120.
    """
    for stream in (sys.stdout, sys.stderr):
        if stream is None:
            continue
        try:
            stream.flush()
        except (OSError, ValueError):
            # An object that replaces a stream may have no descriptor.
            with suppress(OSError, ValueError):
                _discard_buffer(stream)


def _discard_buffer(stream: TextIO) -> None:
    """Empty the buffer of a stream into /dev/null; later text goes to its file again."""
    descriptor = stream.fileno()
    original = os.dup(descriptor)
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, descriptor)
        os.close(null)
        stream.flush()
    finally:
        os.dup2(original, descriptor)
        os.close(original)
