"""Open file that whole lines are written to, by several processes at once."""

import os
import select
import stat
from typing import Final

from spoakit.exceptions import ConfigurationError

BATCH_SIZE: Final = 128 * 1024
"""The bytes of lines that are handed to the writing thread together, which wakes for each batch.

With half of it a mirror at full speed spends 4 % more CPU.
"""

# What is written to a file at once, but for a longer line: a batch, and the line that filled it.
_FILE_SIZE: Final = 2 * BATCH_SIZE

# What Linux and macOS write to a pipe in one piece, not mixed with the lines of other workers
# (POSIX: PIPE_BUF). Lines longer than that are written alone.
_PIPE_SIZE: Final = 4096 if os.uname().sysname == "Linux" else 512


class Output:
    """An open file that whole lines are written to.

    A write that fails may leave the beginning of a line in the file: ours, or that of another
    worker, whose write failed for the same reason. The next write begins with a line feed then, so
    that the line it writes is not appended to a torn one.

    Args:
        descriptor: the file.

    Attributes:
        write_size: the bytes that lines of several workers may have and not mix.
        has_failed: whether the last write failed.
        reason: why the last one that failed did so.
    """

    __slots__ = ("_descriptor", "has_failed", "reason", "write_size")

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        is_regular = stat.S_ISREG(os.fstat(descriptor).st_mode)
        self.write_size = _FILE_SIZE if is_regular else _PIPE_SIZE
        self.has_failed = False
        self.reason = ""

    def write(self, lines: bytes | memoryview) -> int:
        """Write whole lines; return how many of them were lost, a torn one among them."""
        rest = memoryview(b"\n" + lines if self.has_failed else lines)
        try:
            while rest:
                rest = rest[self._write_some(rest) :]
        except OSError as error:
            self.has_failed = True
            self.reason = error.strerror or str(error)
            return bytes(rest[-len(lines) :]).count(b"\n") if lines else 0
        self.has_failed = False
        return 0

    def end_line(self) -> None:
        """Try to end the line that a failed write may have torn."""
        if self.has_failed:
            self.write(b"")

    def _write_some(self, data: memoryview) -> int:
        try:
            return os.write(self._descriptor, data)
        except BlockingIOError:
            # Another process that shares the pipe has made it non-blocking.
            poll = select.poll()
            poll.register(self._descriptor, select.POLLOUT)
            poll.poll()
            return 0


def open_lines(name: str, path: str) -> int:
    """Return the descriptor of a file that is appended to.

    Args:
        name: of the log, for the error: "access log".
        path: the file.

    Raises:
        ConfigurationError: it cannot be opened.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOCTTY
    try:
        # A named pipe without a reader is an error, and not waited for.
        descriptor = os.open(path, flags | os.O_NONBLOCK, 0o644)
    except OSError as error:
        raise ConfigurationError(f"{name} {path!r} cannot be opened: {error.strerror}") from None
    os.set_blocking(descriptor, True)
    return descriptor


def check_lines(name: str, path: str) -> None:
    """Refuse a file that a worker could not open; see `open_lines`.

    Raises:
        ConfigurationError: it cannot be opened.
    """
    # Opening and closing a named pipe would be the end of the file to its reader.
    if not os.path.exists(path) or not stat.S_ISFIFO(os.stat(path).st_mode):
        os.close(open_lines(name, path))
