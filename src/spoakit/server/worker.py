"""Worker: a process with one event loop, which serves connections."""

import asyncio
import faulthandler
import gc
import logging
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from spoakit.exceptions import StartupError
from spoakit.logs import Throttle, flush_throttles
from spoakit.metrics.families import Recording
from spoakit.metrics.memory import WorkerMetrics
from spoakit.server.accept_loop import AcceptLoop
from spoakit.server.backstop import arm_backstop, backstop_for
from spoakit.server.event_loops import loop_factory
from spoakit.server.fatal_errors import end_on_memory_error
from spoakit.server.interfaces import WorkerServer
from spoakit.server.ipc import (
    TRACEBACK_SIGNAL,
    SupervisorCommand,
    WorkerEvent,
    receive_commands,
)
from spoakit.server.settings import Drain, ServerSettings
from spoakit.server.signals import Hooks, SignalAction
from spoakit.server.sockets import REJECTED, Listeners

logger = logging.getLogger("spoakit.server")

GRACE: Final = 1.0
"""Seconds for stopping resources, after the timeouts of the drain."""

FLUSH_INTERVAL: Final = 1.0

_MOMENT: Final = 0.2

# New objects at which garbage is collected. A call that waits has about 15 objects, so that at
# Python's 700 the objects of 50 calls in flight would be traversed again and again.
_NEW_OBJECTS: Final = 5_000

# Number of times that the backstop is armed again before it would act.
_ARMED_TIMES: Final = 4
# Starts and reloads may block the event loop for long, to read large files.
_MAX_LOADING_TIME: Final = 3600.0


def run_worker(
    channel: socket.socket,
    settings: ServerSettings,
    make_server: Callable[[WorkerMetrics], WorkerServer],
    row: WorkerMetrics,
    hooks: Hooks,
    listeners: Listeners | None,
) -> int:
    """Serve until the supervisor stops this worker; return the exit code. Call it after a fork.

    Args:
        channel: the worker's end of the channel to the supervisor.
        settings: limits, drain, loop.
        make_server: creates the server.
        row: this worker's counters.
        hooks: called for the supervisor's commands.
        listeners: the listening sockets of a single worker; None if connections are handed over.
    """
    _collect_less_often()
    Recording(row)  # declared metrics count in this worker's row until the process ends
    worker = _Worker(channel, settings, make_server, row, hooks, listeners)
    # The loop is not closed, because that would wait for threads, which may hang.
    return asyncio.Runner(loop_factory=loop_factory(settings.loop)).run(worker.run())


def _collect_less_often() -> None:
    """Collect garbage at `_NEW_OBJECTS`, unless the program has set a larger number or 0."""
    young, *older = gc.get_threshold()
    if 0 < young < _NEW_OBJECTS:
        gc.set_threshold(_NEW_OBJECTS, *older)


async def flush_logs_forever() -> None:
    """Write the summaries of throttled lines that are due, once a second."""
    while True:
        await asyncio.sleep(FLUSH_INTERVAL)
        flush_throttles()


async def start_server(server: WorkerServer) -> None:
    """Start a server, and turn all exceptions of its resources into a StartupError.

    Raises:
        StartupError: a resource did not start; the text has the reason.
    """
    try:
        await server.start()
    except StartupError:
        raise
    except Exception as error:
        logger.exception("a resource did not start")
        raise StartupError(f"{type(error).__name__}: {error}") from error


async def leave(server: WorkerServer, drain: Drain) -> bool:
    """Drain and close a server; return True if it was done within the timeouts and the grace."""
    bound = drain.total + GRACE
    try:
        async with asyncio.timeout(bound):
            await server.drain(drain.timeout)
            await server.aclose()
    except TimeoutError:
        logger.error("the drain has not ended within %g s; stopping anyway", bound)
        return False
    return True


async def _cancel_tasks(moment: float) -> None:
    """Cancel all other tasks, and wait `moment` seconds for their end."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=moment)
    with suppress(TimeoutError):
        async with asyncio.timeout(moment):
            await asyncio.get_running_loop().shutdown_asyncgens()


class _Worker:
    __slots__ = (
        "_accepting",
        "_backstop",
        "_channel",
        "_hooks",
        "_is_orphan",
        "_is_up",
        "_leave",
        "_listeners",
        "_loop",
        "_row",
        "_server",
        "_settings",
        "_throttle",
        "_unreported",
    )

    def __init__(
        self,
        channel: socket.socket,
        settings: ServerSettings,
        make_server: Callable[[WorkerMetrics], WorkerServer],
        row: WorkerMetrics,
        hooks: Hooks,
        listeners: Listeners | None,
    ) -> None:
        channel.setblocking(False)
        self._channel = channel
        self._settings = settings
        self._backstop = backstop_for(settings.worker_timeout)
        self._hooks = hooks
        self._is_orphan = False
        self._is_up = False
        self._row = row
        self._throttle = Throttle(logger)
        self._unreported = b""
        self._server = make_server(row)
        self._listeners = listeners
        self._accepting: AcceptLoop | None = None
        if listeners is None:
            self._server.on_closed = self._on_closed

    async def run(self) -> int:
        self._loop = asyncio.get_running_loop()
        self._loop.set_exception_handler(end_on_memory_error)
        self._leave = asyncio.Event()
        self._loop.add_reader(self._channel, self._on_commands)
        # The supervisor sends this signal before it kills a worker that does not answer.
        faulthandler.register(TRACEBACK_SIGNAL, self._channel.fileno(), all_threads=False)
        self._arm_backstop()
        flushing = asyncio.create_task(flush_logs_forever())
        leaving = asyncio.create_task(self._leave.wait())
        starting = asyncio.create_task(start_server(self._server))
        # A start that hangs must not keep the worker from exiting.
        await asyncio.wait({starting, leaving}, return_when=asyncio.FIRST_COMPLETED)
        try:
            if not starting.done():
                return 0
            starting.result()
            self._is_up = True
            self._report(WorkerEvent.READY)
            self._keep_backstop_armed()
            self._accept()
            await leaving
            return 0 if await leave(self._server, self._settings.drain) else 1
        except StartupError as error:
            self._report(WorkerEvent.FAILED, str(error).encode(errors="replace"))
            return 1
        finally:
            flushing.cancel()
            self._loop.remove_reader(self._channel)
            self._loop.remove_writer(self._channel)
            # Resources whose start is cancelled need time to stop.
            await _cancel_tasks(_MOMENT if self._is_up else GRACE)
            self._row.publish()

    def _accept(self) -> None:
        """Start accepting, if this is the only worker."""
        if self._listeners is not None and not self._leave.is_set():
            self._accepting = AcceptLoop(self._settings, self._listeners, self._server, self._row)
            self._accepting.open()

    def _keep_backstop_armed(self) -> None:
        # A timer, not the supervisor's pings, because workers keep serving while the supervisor is
        # stopped or loads a configuration.
        if self._backstop and not self._leave.is_set():
            self._arm_backstop()
            self._loop.call_later(self._backstop / _ARMED_TIMES, self._keep_backstop_armed)

    def _arm_backstop(self) -> None:
        """Arm the backstop again, with the time that is allowed in the current state."""
        seconds = self._backstop if self._is_up else self._backstop and _MAX_LOADING_TIME
        # A supervisor kills a worker that exceeds the drain timeouts; an orphan has no supervisor.
        if self._leave.is_set() and (self._backstop or self._is_orphan):
            seconds = max(seconds, self._settings.drain.total + GRACE + 2.0)
        arm_backstop(seconds)

    def _begin_to_leave(self) -> None:
        if self._accepting is not None:
            self._accepting.close()
        if not self._leave.is_set() or self._is_orphan:
            self._leave.set()
            self._arm_backstop()

    def _on_commands(self) -> None:
        try:
            commands, connections = receive_commands(self._channel)
        except BlockingIOError:
            return
        except ConnectionError:
            commands, connections = b"", []
        if not commands:
            self._on_supervisor_gone()
            return
        waiting = iter(connections)
        for command in commands:
            match command:
                case SupervisorCommand.CONNECTION:
                    self._adopt(next(waiting, None))
                case SupervisorCommand.REFUSE_CHECKS:
                    self._server.refuse_health_checks()
                case SupervisorCommand.DRAIN:
                    self._begin_to_leave()
                case SupervisorCommand.RELOAD:
                    self._reload()
                case SupervisorCommand.REOPEN_LOGS:
                    self._hooks.call(SignalAction.REOPEN_LOGS)
                case SupervisorCommand.PING:
                    self._row.publish()
                    self._report(WorkerEvent.PONG)

    def _reload(self) -> None:
        arm_backstop(self._backstop and _MAX_LOADING_TIME)
        try:
            self._server.run_observers()
            self._hooks.call(SignalAction.RELOAD)
        finally:
            self._report(WorkerEvent.RELOADED)
            self._arm_backstop()

    def _adopt(self, connection: socket.socket | None) -> None:
        if connection is not None:
            self._server.adopt(connection)
            return
        self._row.add(REJECTED, 1, "no_descriptor")
        self._throttle.error(
            "lost", "a connection was lost: no file descriptor left; raise the limit (ulimit -n)"
        )
        self._on_closed()

    def _on_supervisor_gone(self) -> None:
        self._loop.remove_reader(self._channel)
        if not self._leave.is_set():
            logger.warning("the supervisor is gone, stopping")
        self._is_orphan = True
        self._begin_to_leave()

    def _on_closed(self) -> None:
        # Reports are sent in the next round of the loop, so that many of them are one write.
        if not self._unreported:
            self._loop.call_soon(self._send_reports)
        self._unreported += bytes((WorkerEvent.CLOSED,))

    def _report(self, event: WorkerEvent, text: bytes = b"") -> None:
        self._unreported += bytes((event,)) + text
        self._send_reports()

    def _send_reports(self) -> None:
        if not self._unreported:
            return
        try:
            sent = self._channel.send(self._unreported)
        except BlockingIOError:
            sent = 0
        except OSError:
            sent = len(self._unreported)  # the supervisor is gone
        self._unreported = self._unreported[sent:]
        if self._unreported:
            self._loop.add_writer(self._channel, self._send_reports)
        else:
            self._loop.remove_writer(self._channel)
