"""The server of one worker: agents at work on the connections the worker is given."""

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from time import monotonic
from typing import Any, Final

from spoakit.agent import Agent
from spoakit.agent._eager_cy import TaskStarter
from spoakit.agent.handlers import Handler
from spoakit.agent.runtime import Runtime
from spoakit.logs import Throttle
from spoakit.metrics.families import counter, histogram
from spoakit.metrics.memory import WorkerMetrics
from spoakit.server.process_metrics import ProcessMetrics
from spoakit.server.protocol import LINGER, SpopProtocol
from spoakit.server.server_state import ServerState
from spoakit.server.settings import ServerSettings
from spoakit.server.sockets import describe_peer
from spoakit.server.tls import server_context

logger = logging.getLogger("spoakit.server")

TLS_FAILURES = counter("spoakit_tls_failures_total", "Connections without a TLS handshake.")
LOOP_LAG = histogram(
    "spoakit_event_loop_lag_seconds",
    "Time by which the event loop is late for a timer: everything in a worker waits that long. "
    "Timers count whole milliseconds.",
)

# A connection on which nothing came for so long is quiet: HAProxy sends what it has at once.
QUIET: Final = 0.1
_LOOK_INTERVAL: Final = 0.02
_LAG_INTERVAL: Final = 0.25
_LOOKS_A_PUBLISHING: Final = 4
_RETIRE_INTERVAL: Final = 0.25
# Time that a connection which has reached its age has to become quiet.
_RETIREMENT: Final = 10.0
# Rounds of the event loop that a cancelled task takes to end.
_ROUNDS: Final = 2


class Server:
    """Serves agents on the running event loop.

    Args:
        agents: one or more, whose messages all differ.
        settings: limits, TLS and what to announce; where to listen is not its business.
        row: the worker's counters.
        tls: the context that the workers of a service share; made of the settings by default.
        handlers: of these agents, prepared before the fork; None prepares them here.

    Attributes:
        on_closed: called once for each adopted connection when it is gone.

    Raises:
        RegistrationError: the agents do not go together.
        ConfigurationError: a TLS file cannot be used.
    """

    def __init__(
        self,
        agents: Sequence[Agent],
        settings: ServerSettings,
        row: WorkerMetrics,
        tls: ssl.SSLContext | None = None,
        handlers: Mapping[str, tuple[Handler, ...]] | None = None,
    ) -> None:
        self.on_closed: Callable[[], None] = _ignore
        self._runtime = Runtime(
            agents, row=row, max_messages=settings.limits.messages, handlers=handlers
        )
        self._settings = settings
        self._row = row
        self._state: ServerState | None = None
        if tls is None and settings.listen.tls is not None:
            tls = server_context(settings.listen.tls)
        self._accepting: dict[str, Any] = {}
        if tls is not None:
            self._accepting = {
                "ssl": tls,
                "ssl_handshake_timeout": settings.limits.hello_timeout,
                "ssl_shutdown_timeout": LINGER,
            }
        self._throttle = Throttle(logger)
        self._adopting: dict[asyncio.Task[Any], tuple[socket.socket, str]] = {}
        self._count = 0
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def connection_count(self) -> int:
        """Number of adopted connections that are not closed yet."""
        return self._count

    async def start(self) -> None:
        """Start the agents' resources; connections can be adopted then.

        Raises:
            StartupError: a resource failed.
        """
        await self._runtime.start()
        self._state = ServerState(self._runtime, self._settings, self._row, self._closed)
        self._starter = TaskStarter(self._state.loop)
        self._process_metrics = ProcessMetrics(self._row)
        self._tasks.append(asyncio.create_task(_publish_forever(self._row)))
        if self._settings.limits.connection_age:
            self._tasks.append(asyncio.create_task(_retire_forever(self._state)))

    def adopt(self, sock: socket.socket) -> None:
        """Serve an accepted connection; the socket is the server's from now on."""
        self._count += 1
        state = self._state
        if state is None:  # it has been closed in the meantime
            sock.close()
            self._closed()
            return
        peer = describe_peer(sock)
        adoption = state.loop.connect_accepted_socket(
            lambda: SpopProtocol(state, peer), sock, **self._accepting
        )
        task = self._starter.start(adoption, "adoption")
        self._adopting[task] = sock, peer
        task.add_done_callback(self._adopted)

    def refuse_health_checks(self) -> None:
        """Answer health checks with a DISCONNECT, so that HAProxy stops using this agent."""
        if self._state is not None:
            self._state.refuse_health_checks()

    def run_observers(self) -> None:
        """Have the agents' observers see now what has been acknowledged."""
        if self._state is not None:
            self._state.dispatcher.run_observers()

    async def drain(self, timeout: float) -> None:
        """Close each connection when it is quiet, and at the end of `timeout` seconds all."""
        self.refuse_health_checks()
        self._end_handshakes()
        end = monotonic() + timeout
        while self.connection_count and monotonic() < end:
            self._leave_where_quiet(monotonic() - QUIET)
            await asyncio.sleep(_LOOK_INTERVAL)
        self._leave_where_quiet(monotonic())
        await asyncio.sleep(0)

    async def aclose(self) -> None:
        """Close what is left, and stop the resources."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        self._end_handshakes()
        if self._adopting:
            # A moment each. Cancelled, they would leave their sockets open.
            await asyncio.wait(self._adopting)
        if self._state is not None:
            for connection in tuple(self._state.connections):
                connection.abort()
            while self._state.connections:
                await asyncio.sleep(0)
            # Handlers that were cancelled with their connections end before their resources do.
            for _ in range(_ROUNDS):
                await asyncio.sleep(0)
            self._state.close()
            self._state = None
            self._process_metrics.close()
            await self._runtime.aclose()

    def _adopted(self, task: asyncio.Task[Any]) -> None:
        sock, peer = self._adopting.pop(task)
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        if error is None:
            return
        sock.close()
        self._closed()
        if not isinstance(error, OSError):
            raise error
        # The peer left before it was served, or does not speak TLS.
        if self._accepting:
            self._row.add(TLS_FAILURES)
            self._throttle.warning("tls", "TLS with %s failed: %s", peer, error)

    def _end_handshakes(self) -> None:
        """Fail the handshakes under way: nothing has been promised to those peers."""
        if self._accepting:
            for sock, _ in self._adopting.values():
                # The peer may have gone first.
                with suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)

    def _closed(self) -> None:
        self._count -= 1
        self.on_closed()

    def _leave_where_quiet(self, since: float) -> None:
        if self._state is not None:
            for connection in tuple(self._state.connections):
                if connection.is_quiet(since):
                    connection.leave("the agent is stopping")


def _retire(state: ServerState) -> bool:
    """Close connections that have reached their age, if they are quiet; tell if some are not.

    The time in which nothing may have come shrinks, to 0 at the end: a moment without a frame in
    flight is what a busy connection has at best.
    """
    now = monotonic()
    due = [each for each in state.connections if each.retire_at <= now]
    waiting = False
    for connection in due:
        left = 1 - (now - connection.retire_at) / _RETIREMENT
        if left <= 0 or connection.is_quiet(now - QUIET * left):
            state.retire(connection)
        else:
            waiting = True
    return waiting


async def _retire_forever(state: ServerState) -> None:
    while True:
        await asyncio.sleep(_LOOK_INTERVAL if _retire(state) else _RETIRE_INTERVAL)


async def _publish_forever(metrics: WorkerMetrics) -> None:
    """Publish the metrics once a second, and see how late the event loop is."""
    loop = asyncio.get_running_loop()
    lag = metrics.histogram(LOOP_LAG)
    looks = 0
    while True:
        due = loop.time() + _LAG_INTERVAL
        await asyncio.sleep(_LAG_INTERVAL)
        lag.observe(max(0.0, loop.time() - due))
        looks += 1
        if looks % _LOOKS_A_PUBLISHING == 0:
            metrics.publish()


def _ignore() -> None:
    pass
