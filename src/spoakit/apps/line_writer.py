"""Writing of a log's lines where it cannot hold up the event loop."""

import logging
import os
import threading
from collections.abc import Iterator
from queue import Empty, SimpleQueue
from typing import Final

from spoakit.apps.line_output import Output
from spoakit.logs import Throttle

_DEFAULT_LOGGER: Final = logging.getLogger("spoakit")

# What may have been handed to the thread and not been written.
_MAX_BEHIND: Final = 4 * 1024 * 1024
_CLOSE_TIMEOUT: Final = 1.0
# Seconds between two attempts to end a torn line, where there are no other lines to write.
_RETRY: Final = 0.25


class LogWriter:
    """Write batches of lines in a thread.

    A slow disk or a full pipe blocks whoever writes to it, and making standard output non-blocking
    would make it so for every process that shares it. While the thread is 4 MiB behind lines are
    dropped, and so are those that could not be written; both are counted, and logged at most once a
    second.

    Args:
        descriptor: the open file to write to; it stays open.
        name: of the log, for reports of lost lines.
        logger: where these are reported.
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
        # Sums of bytes and lines, lost ones among those written: the loop adds to the first two,
        # the thread to the others.
        self._handed_over = 0
        self._handed_over_lines = 0
        self._written = 0
        self._written_lines = 0
        self._lost = 0
        self._output = Output(descriptor)
        # Batches of lines, descriptors of the files that those behind them go to, None at the end.
        self._batches: SimpleQueue[bytes | int | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name.replace(" ", "-"), daemon=True)
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

    def redirect(self, descriptor: int | None) -> None:
        """Write what is put from now on to another file.

        Args:
            descriptor: the open file, which is closed when nothing more goes to it; None for the
                first one.
        """
        self._batches.put(self._descriptor if descriptor is None else descriptor)

    def report(self) -> None:
        """Log how many lines were lost, if any have been since the last time."""
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
        """Write what is left, for at most a second."""
        self._batches.put(None)
        self._thread.join(_CLOSE_TIMEOUT)
        if self._thread.is_alive():
            # It is stuck in a write, and ends with the process.
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
    """Yield pieces that are whole lines, of at most `size` bytes or one line."""
    view = memoryview(lines)
    start = 0
    while len(lines) - start > size:
        end = lines.rfind(b"\n", start, start + size) + 1 or lines.find(b"\n", start) + 1
        yield view[start:end]
        start = end
    yield view[start:]
