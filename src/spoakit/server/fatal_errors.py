"""End of a worker that has no memory left, so that the supervisor replaces it."""

import os
import select
from asyncio import AbstractEventLoop
from typing import Any, Final, NoReturn

EXIT_CODE: Final = 70
"""Exit code of a worker that ran out of memory (EX_SOFTWARE)."""

# Made in advance: there is no memory to make them with.
_MESSAGE: Final = b"spoakit: out of memory, the worker ends at once\n"
_STDERR: Final = 2
_POLL: Final = select.poll()
_POLL.register(_STDERR, select.POLLOUT)
_POLL.poll(0)  # its own table is made by the first call
# Let go before the last call of poll, which makes a list of tuples: in its place there is room.
_RESERVE: Final = [[(number, number)] for number in range(1000, 2000)]


def end_on_memory_error(loop: AbstractEventLoop, context: dict[str, Any]) -> None:
    """Exception handler of a worker's event loop: end the process on a MemoryError.

    A handler that asks for too much memory raises one too, but that costs its message alone and
    does not come here. One raised anywhere else is met by code that cannot go on: a process that
    lives on fails every request, and may have no memory to stop with.
    """
    if isinstance(context.get("exception"), MemoryError):
        _end()
    loop.default_exception_handler(context)


def _end() -> NoReturn:
    try:
        _RESERVE.clear()
        # Nobody may be reading the log.
        if _POLL.poll(0):
            os.write(_STDERR, _MESSAGE)
    finally:
        os._exit(EXIT_CODE)
