"""The pidfile: a lock that dies with its process, so that a stale file stands in nobody's way."""

import fcntl
import os
from typing import Self

from spoakit.exceptions import StartupError


class Pidfile:
    """A file with this process's id, locked as long as the process lives.

    The lock is fcntl's: a fork does not inherit it, so a worker that outlives its supervisor does
    not hold it.
    """

    __slots__ = ("_descriptor", "_path", "_pid")

    def __init__(self, path: str) -> None:
        self._path = os.path.abspath(path)
        self._descriptor = -1
        self._pid = 0

    def lock(self) -> Self:
        """Take the file over and write this process's id to it.

        Raises:
            StartupError: a live process holds it, or it cannot be written.
        """
        try:
            while self._descriptor < 0:
                self._try_lock()
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, f"{os.getpid()}\n".encode(), 0)
        except OSError as error:
            raise StartupError(f"pidfile {self._path}: {error.strerror}") from error
        self._pid = os.getpid()
        return self

    def _try_lock(self) -> None:
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            holder = os.pread(descriptor, 20, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(descriptor)
            raise StartupError(
                f"pidfile {self._path}: process {holder} is running and holds it"
            ) from None
        # Its last holder may have removed the file between our open and our lock.
        if self._is_at_path(descriptor):
            self._descriptor = descriptor
        else:
            os.close(descriptor)

    def _is_at_path(self, descriptor: int) -> bool:
        try:
            return os.path.samestat(os.fstat(descriptor), os.stat(self._path))
        except FileNotFoundError:
            return False

    def close(self) -> None:
        """Close the descriptor and leave the file alone, in a process forked from the holder."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def release(self) -> None:
        """Remove the file, if it is still ours, and give up the lock."""
        if self._descriptor >= 0 and self._pid == os.getpid():
            if self._is_at_path(self._descriptor):
                os.unlink(self._path)
            self.close()
