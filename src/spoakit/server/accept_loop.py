"""Accepting of connections in the event loop of the server that serves them."""

import asyncio
import socket
from functools import partial

from spoakit.metrics.memory import WorkerMetrics
from spoakit.server.interfaces import WorkerServer
from spoakit.server.settings import ServerSettings
from spoakit.server.sockets import Acceptor, Listeners


class AcceptLoop:
    """Accept loop of one server, in the running event loop.

    A standalone server uses it, and the only worker of a service. With several workers the
    supervisor accepts (`Distributor`), since handing over a descriptor costs as much CPU time as
    serving a health check.

    Args:
        settings: the allowed networks, and the limit on connections.
        listeners: the listening sockets; closed with this.
        server: the server that adopts the connections and knows their number.
        row: the worker's counters.
    """

    __slots__ = ("_acceptor", "_listeners", "_loop", "_resume", "_server")

    def __init__(
        self,
        settings: ServerSettings,
        listeners: Listeners,
        server: WorkerServer,
        row: WorkerMetrics,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._listeners = listeners
        self._server = server
        self._acceptor = Acceptor(
            settings.listen,
            settings.limits,
            lambda: server.connection_count,
            row,
            clock=self._loop.time,
        )
        self._resume: asyncio.TimerHandle | None = None

    def open(self) -> None:
        """Start accepting."""
        self._resume = None
        for listener in self._listeners.sockets:
            self._loop.add_reader(listener, partial(self._on_connections, listener))

    def close(self) -> None:
        """Stop listening in this process."""
        if self._resume is not None:
            self._resume.cancel()
        for listener in self._listeners.sockets:
            self._loop.remove_reader(listener)
        self._listeners.close()

    def _on_connections(self, listener: socket.socket) -> None:
        for connection in self._acceptor.accept(listener):
            self._server.adopt(connection)
        if self._acceptor.paused_until > self._loop.time() and self._resume is None:
            for paused in self._listeners.sockets:
                self._loop.remove_reader(paused)
            self._resume = self._loop.call_at(self._acceptor.paused_until, self.open)
