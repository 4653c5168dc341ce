"""Writer of a log's lines in a thread, so that it cannot block the event loop."""

import logging
import os
import threading
from collections.abc import Iterator
from queue import Empty, SimpleQueue
from typing import Final

from spoakit.apps.line_output import Output
from spoakit.logs import Throttle

_DEFAULT_LOGGER: Final = logging.getLogger("spoakit")

# Bytes that may wait for the thread.
_MAX_BEHIND: Final = 4 * 1024 * 1024
_CLOSE_TIMEOUT: Final = 1.0
# Seconds between two attempts to end a torn line, if there are no other lines to write.
_RETRY: Final = 0.25


class LogWriter:
    """Writer of batches of lines, in a thread.

    A slow disk or a full pipe blocks its writer, and standard output cannot be made non-blocking
    without affecting every process that shares it. Lines are dropped while the thread is 4 MiB
    behind, or if they cannot be written. Dropped lines are counted, and logged at most once a
    second.

    Args:
        descriptor: the open file to write to; it stays open.
        name: the name of the log, for reports of lost lines.
        logger: the logger for these reports.
    """

    __slots__ = (
        "_batches",
        "_descriptor",
        "_dropped",
        "_handed_over",
        "_handed_over_lines",
        "_lost",
        "_name",
        "_output",
        "_reported",
        "_thread",
        "_throttle",
        "_written",
        "_written_lines",
    )

    def __init__(
        self,
        descriptor: int = 1,
        name: str = "log",
        logger: logging.Logger = _DEFAULT_LOGGER,
    ) -> None:
        self._name = name
        self._descriptor = descriptor
        self._throttle = Throttle(logger)
        self._dropped = self._reported = 0
        # Totals of bytes and lines; lost ones count as written. The event loop adds to the first
        # two, the thread to the others.
        self._handed_over = 0
        self._handed_over_lines = 0
        self._written = 0
        self._written_lines = 0
        self._lost = 0
        self._output = Output(descriptor)
        # Batches of lines; descriptors of the file for the batches after them; None at the end.
        self._batches: SimpleQueue[bytes | int | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name.replace(" ", "-"), daemon=True)
        self._thread.start()

    @property
    def dropped(self) -> int:
        """The number of lines that were not written."""
        return self._dropped + self._lost

    def put(self, lines: bytes) -> None:
        """Queue whole lines for the thread, or drop them if it is too far behind."""
        count = lines.count(b"\n")
        if self._handed_over - self._written + len(lines) > _MAX_BEHIND:
            self._dropped += count
            return
        self._handed_over += len(lines)
        self._handed_over_lines += count
        self._batches.put(lines)

    def redirect(self, descriptor: int | None) -> None:
        """Write further lines to another file.

        Args:
            descriptor: the open file, which is closed after the next redirection or at the end;
                None for the first file.
        """
        self._batches.put(self._descriptor if descriptor is None else descriptor)

    def report(self) -> None:
        """Log the number of lost lines, if it has grown since the last report."""
        if self.dropped > self._reported:
            self._reported = self.dropped
            reason = f": {self._output.reason}" if self._output.reason else ""
            self._throttle.warning(
                "lines",
                "%s: %d lines could not be written so far%s",
                self._name,
                self._reported,
                reason,
            )

    def close(self) -> None:
        """Write the remaining lines, for at most a second."""
        self._batches.put(None)
        self._thread.join(_CLOSE_TIMEOUT)
        if self._thread.is_alive():
            # The thread is blocked in a write, and ends with the process.
            self._dropped += self._handed_over_lines - self._written_lines
        self.report()

    def _run(self) -> None:
        current = self._descriptor
        while (batch := self._next()) is not None:
            if isinstance(batch, bytes):
                self._write(batch)
                continue
            self._output.end_line()
            self._output = Output(batch)
            if current not in (batch, self._descriptor):
                os.close(current)
            current = batch
        self._output.end_line()
        if current != self._descriptor:
            os.close(current)

    def _next(self) -> bytes | int | None:
        while True:
            try:
                return self._batches.get(timeout=_RETRY if self._output.has_failed else None)
            except Empty:
                self._output.end_line()

    def _write(self, lines: bytes) -> None:
        for piece in _split(lines, self._output.write_size):
            self._lost += self._output.write(piece)
            self._written += len(piece)
            self._written_lines += bytes(piece).count(b"\n")


def _split(lines: bytes, size: int) -> Iterator[memoryview]:
    """Yield chunks of whole lines, of at most `size` bytes or one line."""
    view = memoryview(lines)
    start = 0
    while len(lines) - start > size:
        end = lines.rfind(b"\n", start, start + size) + 1 or lines.find(b"\n", start) + 1
        yield view[start:end]
        start = end
    yield view[start:]
