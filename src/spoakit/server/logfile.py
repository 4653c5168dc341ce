"""A file in place of standard output and standard error."""

import logging
import os
import time

from spoakit.exceptions import StartupError
from spoakit.server.settings import Logfile

logger = logging.getLogger("spoakit.server")

_STREAMS = (1, 2)


class OpenLogfile:
    """The file that both streams of this process and its workers go to.

    All append, so that whole lines of several processes do not mix. Whoever writes to descriptors
    1 and 2 needs to know nothing of it.

    Raises:
        StartupError: the file cannot be written.
    """

    __slots__ = ("_path", "_truncate")

    def __init__(self, settings: Logfile) -> None:
        self._path = os.path.abspath(settings.path)
        self._truncate = settings.truncate
        try:
            os.close(self._open())
        except OSError as error:
            raise StartupError(f"logfile {self._path}: {error.strerror}") from error

    def begin(self) -> None:
        """Empty the file, if that is asked for, and send both streams to it from now on."""
        self._redirect(os.O_TRUNC if self._truncate else 0)
        self.mark("start")

    def reopen(self) -> None:
        """Open the file anew by its name, after it was moved away.

        Raises:
            OSError: that does not go; the streams stay where they are.
        """
        self._redirect()

    def mark(self, word: str) -> None:
        """Write the line that "start" or "stop" has in the C program's files."""
        logger.info("--- %-5s --- %s -------------------------", word, time.strftime("%F %T"))

    def _redirect(self, flags: int = 0) -> None:
        descriptor = self._open(flags)
        for stream in _STREAMS:
            os.dup2(descriptor, stream)
        os.close(descriptor)

    def _open(self, flags: int = 0) -> int:
        return os.open(
            self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | flags, 0o644
        )
