"""Watched files: detection of changes by looking at them."""

import os
from typing import Final, TypeAlias

_MANY_LOOKS: Final = 8

FileIdentity: TypeAlias = tuple[int, ...]
"""Result of `identity_of`: device, inode, size in bytes, and time of the last change in ns."""


class WatchedFile:
    """File whose changes are detected by calls of `has_changed`.

    `has_changed` is called at regular intervals, several times per second; `mark_loaded` before
    each load. A call takes a microsecond, works on every file system, and follows links, with which
    Kubernetes replaces a folder. Unlike a notification it cannot miss a change.

    Args:
        path: the file, which may be missing at times.
    """

    __slots__ = ("_loaded", "_looks", "_path", "_seen")

    def __init__(self, path: str) -> None:
        self._path = os.path.abspath(path)
        self._looks = 0
        self._loaded = self._seen = identity_of(self._path)

    def mark_loaded(self) -> None:
        """Remember the current state of the file, which is about to be loaded."""
        self._loaded = self._seen = identity_of(self._path)
        self._looks = 0

    def has_changed(self) -> bool:
        """Return whether the file exists, differs from the loaded one, and is complete.

        It counts as complete if it is the same in two calls in a row, or after many calls.
        """
        before, self._seen = self._seen, identity_of(self._path)
        if self._seen in (None, self._loaded):
            self._looks = 0
            return False
        self._looks += 1
        return self._seen == before or self._looks >= _MANY_LOOKS


def identity_of(path: str | os.PathLike[str]) -> FileIdentity | None:
    """Return a value that changes when the file is replaced or written; None if it is missing.

    Args:
        path: the file; links are followed.
    """
    try:
        status = os.stat(path)
    except OSError:
        return None  # being replaced, perhaps
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
