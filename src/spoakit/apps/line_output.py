"""Output of whole lines to a file that several processes write to."""

import os
import select
import stat
from typing import Final

from spoakit.exceptions import ConfigurationError

BATCH_SIZE: Final = 128 * 1024
"""Bytes in a batch of lines for the writing thread, which each batch wakes.

With half of it a mirror at full load uses 4 % more CPU.
"""

# Bytes written to a file at once, unless a line is longer: a batch and the line that filled it.
_FILE_SIZE: Final = 2 * BATCH_SIZE

# Bytes that Linux and macOS write to a pipe atomically, not mixed with the lines of other workers
# (POSIX: PIPE_BUF). A longer line is written alone.
_PIPE_SIZE: Final = 4096 if os.uname().sysname == "Linux" else 512


class Output:
    """Open file for whole lines.

    A failed write may leave a torn line in the file: ours, or one of another worker, whose write
    failed for the same reason. The next write then begins with a line feed, so that its first line
    is not appended to the torn one.

    Args:
        descriptor: the open file.

    Attributes:
        write_size: the bytes per write with which lines of several workers do not mix.
        has_failed: whether the last write failed.
        reason: the error of the last failed write.
    """

    __slots__ = ("_descriptor", "has_failed", "reason", "write_size")

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        is_regular = stat.S_ISREG(os.fstat(descriptor).st_mode)
        self.write_size = _FILE_SIZE if is_regular else _PIPE_SIZE
        self.has_failed = False
        self.reason = ""

    def write(self, lines: bytes | memoryview) -> int:
        """Write whole lines; return the number of lost lines, a torn one included."""
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
        """Try to end the torn line of a failed write."""
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
    """Open a file for appending; return its descriptor.

    Args:
        name: the name of the log for errors, as "access log".
        path: the path of the file.

    Raises:
        ConfigurationError: the file cannot be opened.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOCTTY
    try:
        # O_NONBLOCK makes a named pipe without a reader an error instead of a wait.
        descriptor = os.open(path, flags | os.O_NONBLOCK, 0o644)
    except OSError as error:
        raise ConfigurationError(f"{name} {path!r} cannot be opened: {error.strerror}") from None
    os.set_blocking(descriptor, True)
    return descriptor


def check_lines(name: str, path: str) -> None:
    """Refuse a file that a worker could not open; see `open_lines`.

    Raises:
        ConfigurationError: the file cannot be opened.
    """
    # To open and close a named pipe would send its reader an end of file.
    if not os.path.exists(path) or not stat.S_ISFIFO(os.stat(path).st_mode):
        os.close(open_lines(name, path))
