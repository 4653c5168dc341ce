"""The end of a process that hangs, when nobody else is left or able to end it."""

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
# Of a write to a socket that nobody reads; a traceback has some hundred of them.
_SEND_TIMEOUT: Final = struct.pack("@ll", 0, 10_000)


def backstop_for(worker_timeout: float) -> float:
    """Return the seconds after which a worker ends itself: twice the timeout, 5 s more at least.

    By then its supervisor, if there is one, has replaced it.
    """
    return max(2 * worker_timeout, worker_timeout + 5.0) if worker_timeout else 0.0


def arm_backstop(seconds: float) -> None:
    """End this process after a time, unless called again before.

    A thread in C does it, with no need of the interpreter: it ends an event loop in an endless
    loop, and a call into C that never returns. It writes the tracebacks of all threads to standard
    error; the exit code is 1. A process that is stopped, or a machine that sleeps, for longer than
    that is ended when it goes on. A process that is being traced is left alone.

    Args:
        seconds: elapsed time; 0 leaves the process alone.
    """
    faulthandler.cancel_dump_traceback_later()
    if not seconds or sys.gettrace() is not None or is_traced("self"):
        return
    try:
        faulthandler.dump_traceback_later(seconds, exit=True, file=_output.descriptor())
    except RuntimeError as error:
        logger.warning("no backstop against a hanging event loop: %s", error)


class _Output:
    """Standard error, as a descriptor on which no write waits for a reader.

    A traceback that nobody reads would keep a hung process from its end. O_NONBLOCK on standard
    error itself would belong to every process that shares it, so it is opened once more.
    """

    def __init__(self) -> None:
        self._descriptor = -1
        self._identity: tuple[int, int] | None = None

    def descriptor(self) -> int:
        """Return it; the same as long as standard error is."""
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
    """Limit the time that a write to a socket waits; it cannot be opened once more."""
    with suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as duplicate:
        duplicate.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _SEND_TIMEOUT)


_output: Final = _Output()
