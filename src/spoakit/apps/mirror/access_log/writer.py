"""Writing the access log where it cannot hold up the event loop."""

import logging
import os
import stat
import threading
from collections.abc import Iterator
from queue import SimpleQueue
from typing import Final

from spoakit.logs import Throttle

logger = logging.getLogger("spoakit.mirror")

BATCH_SIZE: Final = 64 * 1024
"""What is written at once, in bytes."""

# What may have been handed to the thread and not been written.
_MAX_BEHIND: Final = 4 * 1024 * 1024
# What Linux and macOS write to a pipe in one piece, not mixed with the lines of other workers
# (POSIX: PIPE_BUF). Lines longer than that are written alone.
_PIPE_SIZE: Final = 4096 if os.uname().sysname == "Linux" else 512
_CLOSE_TIMEOUT: Final = 1.0


class LogWriter:
    """Write batches of lines in a thread.

    A slow disk or a full pipe blocks whoever writes to it, and making standard output non-blocking
    would make it so for every process that shares it. While the thread is 4 MiB behind lines are
    dropped, and so are those that could not be written; both are counted, and logged at most once a
    second.

    Args:
        descriptor: the open file to write to; it stays open.
    """

    __slots__ = (
        "_batches",
        "_descriptor",
        "_dropped",
        "_handed_over",
        "_handed_over_lines",
        "_lost",
        "_reported",
        "_thread",
        "_throttle",
        "_write_size",
        "_written",
        "_written_lines",
    )

    def __init__(self, descriptor: int = 1) -> None:
        self._descriptor = descriptor
        self._throttle = Throttle(logger)
        self._dropped = self._reported = 0
        # Sums of bytes and lines, lost ones among those written: the loop adds to the first two,
        # the thread to the others.
        self._handed_over = 0
        self._handed_over_lines = 0
        self._written = 0
        self._written_lines = 0
        self._lost = 0
        regular = stat.S_ISREG(os.fstat(descriptor).st_mode)
        self._write_size = BATCH_SIZE if regular else _PIPE_SIZE
        self._batches: SimpleQueue[bytes | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._write_batches, name="access-log", daemon=True)
        self._thread.start()

    @property
    def dropped(self) -> int:
        """The number of lines that were not written."""
        return self._dropped + self._lost

    def put(self, lines: bytes) -> None:
        """Have whole lines written, or drop them if the thread is too far behind."""
        count = lines.count(b"\n")
        if self._handed_over - self._written + len(lines) > _MAX_BEHIND:
            self._dropped += count
            return
        self._handed_over += len(lines)
        self._handed_over_lines += count
        self._batches.put(lines)

    def report(self) -> None:
        """Log how many lines were lost, if any have been since the last time."""
        if self.dropped > self._reported:
            self._reported = self.dropped
            self._throttle.warning(
                "lines", "access log: %d lines could not be written so far", self._reported
            )

    def close(self) -> None:
        """Write what is left, for at most a second."""
        self._batches.put(None)
        self._thread.join(_CLOSE_TIMEOUT)
        if self._thread.is_alive():
            # It is stuck in a write, and ends with the process.
            self._dropped += self._handed_over_lines - self._written_lines
        self.report()

    def _write_batches(self) -> None:
        while (lines := self._batches.get()) is not None:
            for piece in _split(lines, self._write_size):
                try:
                    rest = piece
                    while rest:
                        rest = rest[os.write(self._descriptor, rest) :]
                except OSError:
                    self._lost += bytes(piece).count(b"\n")
                self._written += len(piece)
                self._written_lines += bytes(piece).count(b"\n")


def _split(lines: bytes, size: int) -> Iterator[memoryview]:
    """Yield pieces that are whole lines, of at most `size` bytes or one line."""
    view = memoryview(lines)
    start = 0
    while len(lines) - start > size:
        end = lines.rfind(b"\n", start, start + size) + 1 or lines.find(b"\n", start) + 1
        yield view[start:end]
        start = end
    yield view[start:]
