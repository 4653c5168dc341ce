"""Server of one worker: its agents, and the connections it has adopted."""

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

# Seconds without input after which a connection is quiet; HAProxy does not delay frames.
QUIET: Final = 0.1
_LOOK_INTERVAL: Final = 0.02
_LAG_INTERVAL: Final = 0.25
_LOOKS_A_PUBLISHING: Final = 4
_RETIRE_INTERVAL: Final = 0.25
# Seconds that a connection which has reached its age has to become quiet.
_RETIREMENT: Final = 10.0
# Rounds of the event loop until a cancelled task has ended.
_ROUNDS: Final = 2


class Server:
    """Server of agents in the running event loop. It does not listen: see `adopt`.

    Args:
        agents: one or more agents with different messages.
        settings: limits, TLS, capabilities and drain times.
        row: the worker's counters.
        tls: the context that all workers of a service share; by default made from the settings.
        handlers: the agents' handlers, prepared before the fork; None prepares them here.

    Attributes:
        on_closed: called once for each adopted connection when it is closed.

    Raises:
        RegistrationError: the agents cannot be served together.
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
        """Start the agents' resources; then connections can be adopted.

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
        """Serve an accepted connection, and take ownership of its socket."""
        self._count += 1
        state = self._state
        if state is None:  # the server has been closed in the meantime
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
        """Make the pending calls of observers now."""
        if self._state is not None:
            self._state.dispatcher.run_observers()

    async def drain(self, timeout: float) -> None:
        """Close each connection when it is quiet, and all after `timeout` seconds."""
        self.refuse_health_checks()
        self._end_handshakes()
        end = monotonic() + timeout
        while self.connection_count and monotonic() < end:
            self._leave_where_quiet(monotonic() - QUIET)
            await asyncio.sleep(_LOOK_INTERVAL)
        self._leave_where_quiet(monotonic())
        await asyncio.sleep(0)

    async def aclose(self) -> None:
        """Close the remaining connections, and stop the resources."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        self._end_handshakes()
        if self._adopting:
            # They end at once; cancelling them would leave their sockets open.
            await asyncio.wait(self._adopting)
        if self._state is not None:
            for connection in tuple(self._state.connections):
                connection.abort()
            while self._state.connections:
                await asyncio.sleep(0)
            # Cancelled handlers must end before their resources stop.
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
        # The peer closed before it was served, or does not speak TLS.
        if self._accepting:
            self._row.add(TLS_FAILURES)
            self._throttle.warning("tls", "TLS with %s failed: %s", peer, error)

    def _end_handshakes(self) -> None:
        """Abort TLS handshakes; their peers have not sent a frame yet."""
        if self._accepting:
            for sock, _ in self._adopting.values():
                # The peer may have closed first.
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
    """Close quiet connections that have reached their age; return True if busy ones remain.

    The quiet time that is required shrinks to 0, since a busy connection has only moments without
    a frame in flight.
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
    """Publish the metrics once a second, and measure the lag of the event loop."""
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
