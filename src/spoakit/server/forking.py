"""Fork, so that a child never runs its parent's code, and no dead pipe ends either of them."""

import logging
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn, TextIO

from spoakit.logs import flush_throttles

logger = logging.getLogger("spoakit.server")


def fork(child: Callable[[], int]) -> int:
    """Fork; return the child's process id. The child calls `child` and exits with what it returns.

    Whatever is raised in the child is logged and makes its exit code 1: nothing of the caller's,
    such as an ``except`` or a ``finally`` that removes the service's files, ever runs there.

    Raises:
        OSError: (in the parent alone) the system has no memory or process left.
    """
    flush_standard_streams()  # or the child would write the parent's text once more
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
    """Flush standard output and standard error, and discard what cannot be written.

    Either may be missing, closed, on a full disk, or a pipe without a reader. Text that stays in a
    buffer would fail again when the interpreter ends, and turn the exit code into 120.
    """
    for stream in (sys.stdout, sys.stderr):
        if stream is None:
            continue
        try:
            stream.flush()
        except (OSError, ValueError):
            # Whatever takes the place of a stream may have no descriptor.
            with suppress(OSError, ValueError):
                _discard_buffer(stream)


def _discard_buffer(stream: TextIO) -> None:
    """Empty the buffer of a stream into /dev/null; what is written later goes where it went."""
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
