"""A server without a supervisor, in an event loop that runs already: it accepts by itself."""

import asyncio
import logging
import socket
from functools import partial

from spoakit.metrics.counters import CounterRow
from spoakit.server.ipc import WorkerServer
from spoakit.server.settings import ServerSettings
from spoakit.server.sockets import Acceptor, Listeners
from spoakit.server.worker import flush_logs_forever, leave, start_server

logger = logging.getLogger("spoakit.server")


class StandaloneServer:
    """A server and its listening sockets in the running event loop.

    Raises:
        StartupError: (from `start`) a resource did not come up.
    """

    __slots__ = ("_acceptor", "_flusher", "_listeners", "_loop", "_resume", "_server", "_settings")

    def __init__(
        self,
        settings: ServerSettings,
        listeners: Listeners,
        server: WorkerServer,
        row: CounterRow,
    ) -> None:
        self._settings = settings
        self._listeners = listeners
        self._server = server
        self._server.on_closed = lambda: None  # the limit asks the server itself
        self._loop = asyncio.get_running_loop()
        self._acceptor = Acceptor(
            settings.listen,
            settings.limits,
            lambda: server.connection_count,
            row,
            clock=self._loop.time,
        )
        self._flusher: asyncio.Task[None] | None = None
        self._resume: asyncio.TimerHandle | None = None

    async def start(self) -> None:
        """Bring the resources up, then accept."""
        self._flusher = asyncio.create_task(flush_logs_forever())
        await start_server(self._server)
        self._accept_again()

    def refuse_health_checks(self) -> None:
        """Answer health checks with a DISCONNECT from now on, serving as before."""
        self._server.refuse_health_checks()

    def run_observers(self) -> None:
        """Have the agents' observers see now what has been acknowledged."""
        self._server.run_observers()

    async def leave(self) -> bool:
        """Stop listening, drain, close; tell if that was done within the drain's bound."""
        self.close()
        return await leave(self._server, self._settings.drain)

    def close(self) -> None:
        """Stop listening."""
        if self._flusher is not None:
            self._flusher.cancel()
        if self._resume is not None:
            self._resume.cancel()
        for listener in self._listeners.sockets:
            self._loop.remove_reader(listener)
        self._listeners.close()

    def _accept_again(self) -> None:
        self._resume = None
        for listener in self._listeners.sockets:
            self._loop.add_reader(listener, partial(self._on_connections, listener))

    def _on_connections(self, listener: socket.socket) -> None:
        for connection in self._acceptor.accept(listener):
            connection.setblocking(False)
            self._server.adopt(connection)
        if self._acceptor.paused_until > self._loop.time() and self._resume is None:
            for paused in self._listeners.sockets:
                self._loop.remove_reader(paused)
            self._resume = self._loop.call_at(self._acceptor.paused_until, self._accept_again)
