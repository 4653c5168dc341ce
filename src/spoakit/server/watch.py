"""Notice that a file has changed."""

import os
from typing import Final, TypeAlias

_MANY_LOOKS: Final = 8

FileIdentity: TypeAlias = tuple[int, ...]
"""Result of `identity_of`: device, inode, size in bytes, and time of the last change in ns."""


class WatchedFile:
    """A file that is looked at from time to time, to load it again when it has changed.

    `has_changed` is called at regular intervals, some per second; `mark_loaded` before each load.
    Looking takes a microsecond, works on every file system, and follows links, such as those by
    which Kubernetes exchanges a folder; nothing has to be set up that could miss a change.

    Args:
        path: the file, which may be missing at times.
    """

    __slots__ = ("_loaded", "_looks", "_path", "_seen")

    def __init__(self, path: str) -> None:
        self._path = os.path.abspath(path)
        self._looks = 0
        self._loaded = self._seen = identity_of(self._path)

    def mark_loaded(self) -> None:
        """Note that the file as it stands now is about to be read."""
        self._loaded = self._seen = identity_of(self._path)
        self._looks = 0

    def has_changed(self) -> bool:
        """Return whether the file is there, another than the one loaded, and written completely.

        It is taken to be complete when two looks in a row find the same, or after many.
        """
        before, self._seen = self._seen, identity_of(self._path)
        if self._seen in (None, self._loaded):
            self._looks = 0
            return False
        self._looks += 1
        return self._seen == before or self._looks >= _MANY_LOOKS


def identity_of(path: str | os.PathLike[str]) -> FileIdentity | None:
    """Return what changes when a file is replaced or written to; None if there is no file.

    Args:
        path: the file; links are followed.
    """
    try:
        status = os.stat(path)
    except OSError:
        return None  # between two files
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
