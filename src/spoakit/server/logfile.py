"""A file in place of standard output and standard error."""

import logging
import os
import time
from contextlib import suppress

from spoakit.exceptions import StartupError
from spoakit.server.settings import Logfile

logger = logging.getLogger("spoakit.server")

_STREAMS = (1, 2)


class OpenLogfile:
    """The file that both streams of this process and its workers go to.

    All append, so that whole lines of several processes do not mix. Whoever writes to descriptors
    1 and 2 needs to know nothing of it. A start has two steps: `begin`, before anything is logged,
    and `settle`, once this process is the one that serves. Until then the file is appended to, even
    if it is to be emptied, since it may be that of a service that runs; and the streams that the
    process was started with are kept, for `show`.

    Raises:
        StartupError: the file cannot be written.
    """

    __slots__ = ("_begin", "_original", "_path", "_truncate")

    def __init__(self, settings: Logfile) -> None:
        self._path = os.path.abspath(settings.path)
        self._truncate = settings.truncate
        self._original: list[int] = []
        try:
            descriptor = self._open()
        except OSError as error:
            raise StartupError(f"logfile {self._path}: {error.strerror}") from error
        self._begin = os.fstat(descriptor).st_size
        os.close(descriptor)

    def begin(self) -> None:
        """Send both streams to the file from now on."""
        for stream in _STREAMS:
            copy = os.dup(stream)
            os.set_inheritable(copy, False)
            self._original.append(copy)
        self.redirect()
        self.mark("start")

    def redirect(self) -> None:
        """Open the file by its name, and send both streams to it.

        Raises:
            OSError: that does not go; the streams stay where they are.
        """
        descriptor = self._open()
        for stream in _STREAMS:
            os.dup2(descriptor, stream)
        os.close(descriptor)

    def settle(self) -> None:
        """Drop what was in the file before `begin`, if that is asked for, and the first streams."""
        if self._truncate:
            # What is not a file that one can read and empty is left as it is.
            with suppress(OSError):
                self._drop_former()
        self.forget_streams()

    def show(self, text: str) -> None:
        """Write a text to the standard error that the process was started with."""
        if self._original:
            with suppress(OSError):
                os.write(self._original[-1], text.encode(errors="surrogateescape"))

    def give_back(self) -> None:
        """Send both streams where they went before `begin`, unless they are forgotten."""
        for stream, copy in zip(_STREAMS, self._original, strict=False):
            os.dup2(copy, stream)
        self.forget_streams()

    def forget_streams(self) -> None:
        """Close the streams that the process was started with."""
        while self._original:
            os.close(self._original.pop())

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
    """Return the process's logfile; a command may have begun it before the server does.

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
    """Forget the logfile; log the reason before, if there is one.

    Where the start failed the streams are given back, else they stay where they are.
    """
    global _current
    if _current is not None:
        if reason is not None:
            logger.error("%s", reason)
        _current.give_back()
        _current = None
