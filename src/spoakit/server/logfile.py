"""Logfile, which replaces standard output and standard error."""

import logging
import os
import time
from contextlib import suppress

from spoakit.exceptions import StartupError
from spoakit.server.settings import Logfile

logger = logging.getLogger("spoakit.server")

_STREAMS = (1, 2)


class OpenLogfile:
    """File that replaces both standard streams of this process and its workers.

    All processes append, so their lines do not mix. Code that writes to descriptors 1 and 2 does
    not change. A start has two steps: `begin`, before anything is logged, and `settle`, once this
    process holds the pidfile. Until `settle` the file is not truncated, since a running service may
    own it, and the original streams are kept, for `show`.

    Raises:
        StartupError: the file cannot be written.
    """

    __slots__ = ("_begin", "_original_streams", "_path", "_truncate")

    def __init__(self, settings: Logfile) -> None:
        self._path = os.path.abspath(settings.path)
        self._truncate = settings.truncate
        self._original_streams: list[int] = []
        try:
            descriptor = self._open()
        except OSError as error:
            raise StartupError(f"logfile {self._path}: {error.strerror}") from error
        self._begin = os.fstat(descriptor).st_size
        os.close(descriptor)

    def begin(self) -> None:
        """Redirect both streams to the file."""
        for stream in _STREAMS:
            copy = os.dup(stream)
            os.set_inheritable(copy, False)
            self._original_streams.append(copy)
        self.redirect()
        self.mark("start")

    def redirect(self) -> None:
        """Open the file by its name, and redirect both streams to it.

        Raises:
            OSError: opening failed; the streams do not change.
        """
        descriptor = self._open()
        for stream in _STREAMS:
            os.dup2(descriptor, stream)
        os.close(descriptor)

    def settle(self) -> None:
        """Truncate the file up to `begin`, if asked for, and close the original streams."""
        if self._truncate:
            # A pipe or device cannot be truncated.
            with suppress(OSError):
                self._drop_former()
        self.close_original_streams()

    def show(self, text: str) -> None:
        """Write a text to the original standard error."""
        if self._original_streams:
            with suppress(OSError):
                os.write(self._original_streams[-1], text.encode(errors="surrogateescape"))

    def restore_streams(self) -> None:
        """Restore both streams to their targets before `begin`, if they are still open."""
        for stream, copy in zip(_STREAMS, self._original_streams, strict=False):
            os.dup2(copy, stream)
        self.close_original_streams()

    def close_original_streams(self) -> None:
        """Close the original streams."""
        while self._original_streams:
            os.close(self._original_streams.pop())

    def mark(self, word: str) -> None:
        """Write the line that "start" or "stop" has in the C program's files."""
        logger.info("--- %-5s --- %s -------------------------", word, time.strftime("%F %T"))

    def _drop_former(self) -> None:
        with open(self._path, "rb+", buffering=0) as file:
            file.seek(self._begin)
            ours = file.read()
            file.truncate(0)
        os.write(_STREAMS[0], ours)

    def _open(self) -> int:
        return os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)


_current: OpenLogfile | None = None


def begin_logfile(settings: Logfile) -> OpenLogfile:
    """Return the process's logfile, and begin it unless a command has done so.

    Raises:
        StartupError: the file cannot be written.
    """
    global _current
    if _current is None:
        logfile = OpenLogfile(settings)
        logfile.begin()
        _current = logfile
    return _current


def end_logfile(reason: str | None = None) -> None:
    """Log a reason, if there is one, and forget the logfile.

    After a failed start the original streams are restored.
    """
    global _current
    if _current is not None:
        if reason is not None:
            logger.error("%s", reason)
        _current.restore_streams()
        _current = None
