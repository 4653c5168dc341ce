"""Notice that a file has changed."""

import logging
import os
from collections.abc import Callable
from typing import TypeAlias

FileIdentity: TypeAlias = tuple[int, ...]

logger = logging.getLogger("spoakit.server")


async def watch_file(path: str, on_change: Callable[[], object]) -> None:
    """Call `on_change` whenever a file is another one than before; forever, until cancelled.

    Its folder is watched, since editors and deployments put a new file in its place, and
    Kubernetes even a new folder that a link leads to.
    """
    from watchfiles import awatch  # which takes time and memory that few processes need

    path = os.path.abspath(path)
    before = identity_of(path)
    try:
        async for _ in awatch(os.path.dirname(path), watch_filter=None, recursive=False):
            now = identity_of(path)
            if now not in (None, before):
                before = now
                on_change()
    except (OSError, RuntimeError) as error:
        logger.error("watch: %s is not watched any more: %s", path, error)


def identity_of(path: str | os.PathLike[str]) -> FileIdentity | None:
    """Return what a file is known by until it is replaced or written to; None without one."""
    try:
        status = os.stat(path)
    except OSError:
        return None  # between two files
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
