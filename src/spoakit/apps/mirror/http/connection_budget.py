"""A bound on the connections to all targets together, so that HAProxy's always have room."""

import resource
from collections.abc import Callable
from typing import Final

from spoakit.apps.mirror.config.schema import MirrorSettings
from spoakit.apps.mirror.http.connector import alpn_groups

# What is kept of the limit of open files: a quarter, for HAProxy's connections, and this many for
# files, pipes and name lookups.
_KEPT_SHARE: Final = 4
_OWN: Final = 32


class ConnectionBudget:
    """Room for connections to targets in a process.

    Args:
        limit: how many connections there may be, beside one for each user: no target is left
            without a connection because others have all.
    """

    __slots__ = ("_users", "limit")

    def __init__(self, limit: int) -> None:
        self.limit: Final = limit
        self._users: set[Callable[[], int]] = set()

    @classmethod
    def of_process(cls) -> "ConnectionBudget":
        """Return what the limit of open files of this process leaves for targets."""
        files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if files == resource.RLIM_INFINITY:
            files = 1 << 20
        return cls(max(1, files - files // _KEPT_SHARE - _OWN))

    def join(self, count: Callable[[], int]) -> None:
        """Have a user's connections counted: `count` returns how many it has."""
        self._users.add(count)

    def leave(self, count: Callable[[], int]) -> None:
        """Have a user's connections counted no more."""
        self._users.discard(count)

    def has_room(self, own: int) -> bool:
        """Return whether a user that has `own` connections may open one more."""
        return own == 0 or sum(count() for count in self._users) < self.limit


def wanted_connections(settings: MirrorSettings) -> int:
    """Return how many connections all targets may have at a time, in each worker."""
    return sum(target.connections * len(alpn_groups(target)) for target in settings.targets)
