"""Limit of the connections to all targets, which leaves descriptors for HAProxy's connections."""

import resource
from collections.abc import Callable
from typing import Final

from spoakit.apps.mirror.config.schema import MirrorSettings
from spoakit.apps.mirror.http.connector import alpn_groups

# Parts of the limit of open files that targets do not get: a quarter for HAProxy's connections, and
# a fixed number for files, pipes and name lookups.
_KEPT_SHARE: Final = 4
_OWN: Final = 32


class ConnectionBudget:
    """Budget of the connections to all targets in a process.

    Args:
        limit: the number of connections that all users share. Each user may have one connection
            beyond it, so that no target is left without one.
    """

    __slots__ = ("_users", "limit")

    def __init__(self, limit: int) -> None:
        self.limit: Final = limit
        self._users: set[Callable[[], int]] = set()

    @classmethod
    def from_open_files_limit(cls) -> "ConnectionBudget":
        """Return the budget that this process's limit of open files leaves for targets."""
        files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if files == resource.RLIM_INFINITY:
            files = 1 << 20
        return cls(max(1, files - files // _KEPT_SHARE - _OWN))

    def join(self, count: Callable[[], int]) -> None:
        """Add a user; `count` returns the number of its connections."""
        self._users.add(count)

    def leave(self, count: Callable[[], int]) -> None:
        """Remove a user."""
        self._users.discard(count)

    def has_room(self, own: int) -> bool:
        """Return whether a user that has `own` connections may open one more."""
        return own == 0 or sum(count() for count in self._users) < self.limit


def wanted_connections(settings: MirrorSettings) -> int:
    """Return the largest number of connections to all targets, in each worker."""
    return sum(target.connections * len(alpn_groups(target)) for target in settings.targets)
