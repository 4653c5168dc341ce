"""End of a worker that is out of memory, so that the supervisor replaces it."""

import os
import select
from asyncio import AbstractEventLoop
from typing import Any, Final, NoReturn

EXIT_CODE: Final = 70
"""Exit code of a worker that ran out of memory (EX_SOFTWARE)."""

# Created in advance, since they are needed when memory is exhausted.
_MESSAGE: Final = b"spoakit: out of memory, the worker ends at once\n"
_STDERR: Final = 2
_POLL: Final = select.poll()
_POLL.register(_STDERR, select.POLLOUT)
_POLL.poll(0)  # the first call allocates its table
# Freed before the last call of poll, which allocates a list of tuples.
_RESERVE: Final = [[(number, number)] for number in range(1000, 2000)]


def end_on_memory_error(loop: AbstractEventLoop, context: dict[str, Any]) -> None:
    """Exception handler of a worker's event loop: end the process on a MemoryError.

    A MemoryError of a handler costs its message alone, and does not reach the event loop. Any other
    one means that the process is out of memory: it would fail every request, and might not even
    have the memory to stop.
    """
    if isinstance(context.get("exception"), MemoryError):
        _end()
    loop.default_exception_handler(context)


def _end() -> NoReturn:
    try:
        _RESERVE.clear()
        # A write would block if nobody reads the log.
        if _POLL.poll(0):
            os.write(_STDERR, _MESSAGE)
    finally:
        os._exit(EXIT_CODE)
