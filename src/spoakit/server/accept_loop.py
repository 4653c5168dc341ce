"""Accept connections in the event loop of the server that serves them."""

import asyncio
import socket
from functools import partial

from spoakit.metrics.memory import WorkerMetrics
from spoakit.server.interfaces import WorkerServer
from spoakit.server.settings import ServerSettings
from spoakit.server.sockets import Acceptor, Listeners


class AcceptLoop:
    """Accepts from listening sockets in the running event loop, for one server.

    For a server that need not share its connections: one in somebody's own event loop, and the
    only worker of a service. Handing over a descriptor costs as much as serving a health check.

    Args:
        settings: who is allowed, how many connections.
        listeners: where connections come in; closed with this.
        server: gets each connection. The limit asks it how many it has.
        row: where to count.
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
        """Accept from now on."""
        self._resume = None
        for listener in self._listeners.sockets:
            self._loop.add_reader(listener, partial(self._on_connections, listener))

    def close(self) -> None:
        """Stop listening, in this process."""
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
