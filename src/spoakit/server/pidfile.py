"""Pidfile with a lock that ends with its process, so that a stale file blocks no start."""

import fcntl
import os
from typing import Self

from spoakit.exceptions import StartupError


class Pidfile:
    """File with this process's id, locked until the process ends.

    It is an fcntl lock, which forked processes do not inherit, so a worker that outlives its
    supervisor does not hold it.
    """

    __slots__ = ("_descriptor", "_path", "_pid")

    def __init__(self, path: str) -> None:
        self._path = os.path.abspath(path)
        self._descriptor = -1
        self._pid = 0

    def lock(self) -> Self:
        """Lock the file, and write this process's id to it.

        Raises:
            StartupError: another process holds the lock, or the file cannot be written.
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
                f"pidfile {self._path}: process {holder} holds it; stop that process first"
            ) from None
        # The last holder may have removed the file between our open and our lock.
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
        """Close the descriptor in a forked process; the file stays."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def release(self) -> None:
        """Remove the file, if it is still ours, and release the lock."""
        if self._descriptor >= 0 and self._pid == os.getpid():
            if self._is_at_path(self._descriptor):
                os.unlink(self._path)
            self.close()
