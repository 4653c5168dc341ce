"""Backstop: ends a process that hangs, when no supervisor does."""

import faulthandler
import logging
import os
import socket
import stat
import struct
import sys
from contextlib import suppress
from typing import Final

from spoakit.server.worker_process import is_traced

logger = logging.getLogger("spoakit.server")

_STANDARD_ERROR: Final = 2
# Timeout of a write to a socket that nobody reads; a traceback makes some hundred writes.
_SEND_TIMEOUT: Final = struct.pack("@ll", 0, 10_000)


def backstop_for(worker_timeout: float) -> float:
    """Return the seconds after which a worker ends itself: twice the timeout, at least 5 s more.

    By then its supervisor, if it is alive, has replaced it.
    """
    return max(2 * worker_timeout, worker_timeout + 5.0) if worker_timeout else 0.0


def arm_backstop(seconds: float) -> None:
    """End this process after a time, unless called again before.

    A thread in C does it without the interpreter, so it ends endless loops and calls into C that
    never return. It writes the tracebacks of all threads to standard error; the exit code is 1. A
    process that is stopped, or whose machine sleeps, for longer ends when it continues. A process
    with a tracer or debugger is left alone.

    Args:
        seconds: elapsed time; 0 disarms the backstop.
    """
    faulthandler.cancel_dump_traceback_later()
    if not seconds or sys.gettrace() is not None or is_traced("self"):
        return
    try:
        faulthandler.dump_traceback_later(seconds, exit=True, file=_output.descriptor())
    except RuntimeError as error:
        logger.warning("no backstop: a hanging event loop will not be ended: %s", error)


class _Output:
    """Standard error, as a descriptor whose writes never block.

    A blocked write of the traceback would keep a hung process alive. O_NONBLOCK would apply to all
    processes that share standard error, so it is opened once more.
    """

    def __init__(self) -> None:
        self._descriptor = -1
        self._identity: tuple[int, int] | None = None

    def descriptor(self) -> int:
        """Return the descriptor; it changes when standard error is redirected."""
        try:
            status = os.fstat(_STANDARD_ERROR)
        except OSError:
            return _STANDARD_ERROR  # closed: nothing waits
        if stat.S_ISSOCK(status.st_mode):
            _limit_waiting(_STANDARD_ERROR)
            return _STANDARD_ERROR
        identity = status.st_dev, status.st_ino
        if identity != self._identity:
            self._reopen()
            self._identity = identity
        return self._descriptor if self._descriptor >= 0 else _STANDARD_ERROR

    def _reopen(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        flags = os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        # A pipe without a reader is refused, and only Linux has this path.
        for path in (f"/proc/self/fd/{_STANDARD_ERROR}", os.devnull):
            with suppress(OSError):
                self._descriptor = os.open(path, flags)
                return


def _limit_waiting(descriptor: int) -> None:
    """Limit the time that a write to a socket blocks; a socket cannot be opened once more."""
    with suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as duplicate:
        duplicate.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _SEND_TIMEOUT)


_output: Final = _Output()
