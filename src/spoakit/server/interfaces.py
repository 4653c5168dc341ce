"""Interfaces between the modules of this package, so that none imports upward for a type."""

import socket
from collections.abc import Callable
from typing import Protocol

from spoakit.agent._deadlines_cy import Entry


class WorkerServer(Protocol):
    """Server of a worker: `spoakit.server.server.Server`, or a substitute in tests."""

    on_closed: Callable[[], None]

    @property
    def connection_count(self) -> int:
        """Number of adopted connections that are not closed yet."""

    async def start(self) -> None:
        """Start all resources, or none if it fails (StartupError) or is cancelled."""

    def adopt(self, sock: socket.socket) -> None:
        """Take ownership of a connected socket."""

    def refuse_health_checks(self) -> None:
        """Answer health checks with a DISCONNECT from now on."""

    def run_observers(self) -> None:
        """Make the pending calls of observers now."""

    async def drain(self, timeout: float) -> None:
        """Close each connection when it is quiet, and all within `timeout` seconds."""

    async def aclose(self) -> None:
        """Close the remaining connections, and stop the resources."""


class OpenConnection(Entry, Protocol):
    """A connection to an engine, as the state that all of a worker share sees it.

    Its deadline is the time by which its HELLO must have come.
    """

    retire_at: float
    """When it has reached its age, on ``time.monotonic()``'s clock; infinite for never."""

    @property
    def received_bytes(self) -> int:
        """Number of bytes read from the engine."""

    @property
    def sent_bytes(self) -> int:
        """Number of bytes written to the engine."""

    @property
    def frames_in_flight(self) -> int:
        """Number of frames that wait for their handlers."""

    def expire(self) -> None:
        """End a connection whose HELLO did not come in time."""

    def refuse_health_checks(self) -> None:
        """Answer a health check with a DISCONNECT from now on."""

    def is_quiet(self, since: float) -> bool:
        """Return whether no ACK is pending, and nothing has been received since then."""

    def leave(self, reason: str) -> None:
        """Send a DISCONNECT with status 0 and a reason, and close."""

    def abort(self) -> None:
        """Close at once."""
