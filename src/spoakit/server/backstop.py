"""The end of a process that hangs, when nobody else is left or able to end it."""

import faulthandler
import logging
import sys
from typing import Final

from spoakit.server.worker_process import is_traced

logger = logging.getLogger("spoakit.server")

_STANDARD_ERROR: Final = 2


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
        faulthandler.dump_traceback_later(seconds, exit=True, file=_STANDARD_ERROR)
    except RuntimeError as error:
        logger.warning("no backstop against a hanging event loop: %s", error)


def disarm_backstop() -> None:
    """Leave this process alone."""
    faulthandler.cancel_dump_traceback_later()
