"""One worker without a supervisor: a process, or somebody's event loop, that accepts by itself."""

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Callable
from functools import partial
from typing import NoReturn

from spoakit.logs import flush_throttles
from spoakit.metrics.counters import CounterRow, Counters
from spoakit.server.daemon import notify_service_manager
from spoakit.server.ipc import WorkerServer
from spoakit.server.settings import ServerSettings
from spoakit.server.signals import SIGNALS, Hooks, SignalAction, SignalDebouncer
from spoakit.server.sockets import Acceptor, Listeners
from spoakit.server.stats_log import log_counters
from spoakit.server.watch import watch_file
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


class SingleProcess:
    """A `StandaloneServer` in a process of its own, which obeys signals as a supervisor does.

    Args:
        settings: limits, drain, runtime.
        listeners: where connections come in.
        make_server: makes what is run; called in the event loop.
        counters: a row for the worker, the first.
        hooks: called on SIGHUP and SIGUSR1.
        on_ready: called once it accepts.
        on_end: called before the process ends at once, to remove its files.
    """

    def __init__(
        self,
        settings: ServerSettings,
        listeners: Listeners,
        make_server: Callable[[CounterRow], WorkerServer],
        counters: Counters,
        hooks: Hooks,
        on_ready: Callable[[], None],
        on_end: Callable[[], None],
    ) -> None:
        self._settings = settings
        self._listeners = listeners
        self._make_server = make_server
        self._counters = counters
        self._hooks = hooks
        self._on_ready = on_ready
        self._on_end = on_end
        self._debouncer = SignalDebouncer()
        self._stopping = asyncio.Event()

    async def run(self) -> int:
        """Run until told to stop; return the exit code.

        Raises:
            StartupError: a resource did not come up.
        """
        loop = asyncio.get_running_loop()
        row = self._counters.row(0)
        server = StandaloneServer(self._settings, self._listeners, self._make_server(row), row)
        for signum in SIGNALS:
            loop.add_signal_handler(signum, self._on_signal, signum, server)
        background = [asyncio.create_task(self._monitor())]
        if self._settings.watch is not None:
            reload = partial(self._reload, server)
            background.append(asyncio.create_task(watch_file(self._settings.watch, reload)))
        stopping = asyncio.create_task(self._stopping.wait())
        starting = asyncio.create_task(server.start())
        try:
            await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not starting.done():
                return 0
            starting.result()
            self._on_ready()
            if self._settings.runtime is not None:
                loop.call_later(self._settings.runtime, self._stop, "the runtime is over")
            await stopping
            if self._settings.drain.checks:
                server.refuse_health_checks()
                await asyncio.sleep(self._settings.drain.checks)
            return 0 if await server.leave() else 1
        finally:
            for task in background:
                task.cancel()
            server.close()

    def _on_signal(self, signum: int, server: StandaloneServer) -> None:
        action = self._debouncer.read(signum)
        match action:
            case SignalAction.STOP:
                self._stop(signal.Signals(signum).name)
            case SignalAction.END:
                self._end(signum)
            case SignalAction.RELOAD:
                self._reload(server)
            case SignalAction.REOPEN_LOGS:
                self._hooks.call(action)
            case SignalAction.REPORT:
                log_counters(self._counters, 1, zeros=True)

    def _reload(self, server: StandaloneServer) -> None:
        server.run_observers()
        self._hooks.call(SignalAction.RELOAD)

    async def _monitor(self) -> None:
        while self._settings.monitor is not None:
            await asyncio.sleep(self._settings.monitor)
            log_counters(self._counters, 1, zeros=False)

    def _stop(self, why: str) -> None:
        if not self._stopping.is_set():
            logger.info("stopping: %s", why)
            notify_service_manager("STOPPING=1")
            self._stopping.set()

    def _end(self, signum: int) -> NoReturn:
        logger.warning("%s again: ending at once", signal.Signals(signum).name)
        self._on_end()
        flush_throttles(final=True)
        logging.shutdown()
        os._exit(128 + signum)  # nothing that still runs, a thread for instance, is waited for
