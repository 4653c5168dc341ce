"""The access log: one line for each copy, written where it cannot hold up the event loop."""

import asyncio
import logging
import os
import stat
import threading
import time
from collections.abc import Iterator
from queue import SimpleQueue
from typing import Final, Protocol

from spoakit.apps.mirror._request_cy import Request
from spoakit.logs import Throttle

logger = logging.getLogger("spoakit.mirror")

_FLUSH_INTERVAL: Final = 0.1
_BATCH_SIZE: Final = 64 * 1024
# What may have been handed to the thread and not been written.
_MAX_BEHIND: Final = 4 * 1024 * 1024
# What Linux and macOS write to a pipe in one piece, not mixed with the lines of other workers
# (POSIX: PIPE_BUF). Lines longer than that are written alone.
_PIPE_SIZE: Final = 4096 if os.uname().sysname == "Linux" else 512
_CLOSE_TIMEOUT: Final = 1.0


class Answer(Protocol):
    """What a line tells of an answer; a connection that awaits or has read one is this."""

    @property
    def version(self) -> str:
        """The HTTP version, as "1.1"."""

    @property
    def status(self) -> int:
        """The status, 0 for no answer."""

    @property
    def received(self) -> int:
        """The size of the body in bytes."""

    @property
    def sent_at(self) -> float:
        """When the request was sent, on ``time.perf_counter()``'s clock."""


class AccessLog:
    """Gather lines and write them in batches: after 100 ms, or when 64 KiB are together.

    A thread does the writing: a slow disk or a full pipe blocks whoever writes to it, and making
    standard output non-blocking would make it so for every process that shares it. While the
    thread is 4 MiB behind lines are dropped, and so are those that could not be written; both are
    counted, and logged at most once a second.

    Args:
        descriptor: the open file to write to; it stays open.
        worker: the worker's number, from 1; each line begins with it, as in the C program.
    """

    __slots__ = (
        "_batches",
        "_descriptor",
        "_dropped",
        "_handed_over",
        "_handed_over_lines",
        "_lines",
        "_lost",
        "_prefix",
        "_reported",
        "_size",
        "_started_at",
        "_thread",
        "_throttle",
        "_timer",
        "_write_size",
        "_written",
        "_written_lines",
    )

    def __init__(self, descriptor: int = 1, worker: int = 1) -> None:
        self._descriptor = descriptor
        self._prefix = f"[{worker:2d}]"
        self._started_at = time.perf_counter()
        self._lines: list[str] = []
        self._size = 0
        self._timer: asyncio.TimerHandle | None = None
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
        self._write_size = _BATCH_SIZE if regular else _PIPE_SIZE
        self._batches: SimpleQueue[list[str] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._write_batches, name="access-log", daemon=True)
        self._thread.start()

    @property
    def dropped(self) -> int:
        """The number of lines that were not written."""
        return self._dropped + self._lost

    def write(self, answer: Answer, request: Request, origin: str, result: str, now: float) -> None:
        """Add a request's line.

        Args:
            answer: its answer, or what there is of one.
            request: the request.
            origin: the target's scheme and authority.
            result: "ok", or what went wrong.
            now: ``time.perf_counter()``.
        """
        line = request.access_line(
            self._prefix,
            now - self._started_at,
            origin,
            answer.version,
            answer.status,
            answer.received,
            now - answer.sent_at,
            result,
        )
        self._lines.append(line)
        self._size += len(line)
        if self._size >= _BATCH_SIZE:
            self._flush()
        elif self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(_FLUSH_INTERVAL, self._flush)

    def close(self) -> None:
        """Write what is left, for at most a second."""
        self._flush()
        self._batches.put(None)
        self._thread.join(_CLOSE_TIMEOUT)
        if self._thread.is_alive():
            # It is stuck in a write, and ends with the process.
            self._dropped += self._handed_over_lines - self._written_lines
        self._report()

    def _flush(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        lines, size = self._lines, self._size
        self._lines, self._size = [], 0
        if self._handed_over - self._written + size > _MAX_BEHIND:
            self._dropped += len(lines)
        elif lines:
            self._handed_over += size
            self._handed_over_lines += len(lines)
            self._batches.put(lines)
        self._report()

    def _report(self) -> None:
        if self.dropped > self._reported:
            self._reported = self.dropped
            self._throttle.warning(
                "lines", "access log: %d lines could not be written so far", self._reported
            )

    def _write_batches(self) -> None:
        while (lines := self._batches.get()) is not None:
            for count, piece in _join(lines, self._write_size):
                try:
                    rest = memoryview(piece)
                    while rest:
                        rest = rest[os.write(self._descriptor, rest) :]
                except OSError:
                    self._lost += count
                self._written += len(piece)
                self._written_lines += count


def _join(lines: list[str], size: int) -> Iterator[tuple[int, bytes]]:
    """Join lines to pieces of at most `size` bytes; yield each with its number of lines."""
    start = length = 0
    for index, line in enumerate(lines):
        if length + len(line) > size and index > start:
            yield index - start, _encode(lines[start:index])
            start, length = index, 0
        length += len(line)
    yield len(lines) - start, _encode(lines[start:])


def _encode(lines: list[str]) -> bytes:
    return "".join(lines).encode("latin-1", "replace")
