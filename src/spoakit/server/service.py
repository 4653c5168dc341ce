"""Running of a server: as a service of several processes, or in a running event loop."""

import asyncio
import logging
import os
import resource
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from typing import Final

from spoakit.agent import Agent
from spoakit.agent.combine import combine
from spoakit.agent.parameters import describe
from spoakit.compilation import COMPILED, REMEDY, form
from spoakit.exceptions import ConfigurationError, StartupError
from spoakit.logs import flush_throttles
from spoakit.metrics.memory import SharedMetrics, WorkerMetrics
from spoakit.server.daemon import StartupNotifier, daemonize, notify_service_manager
from spoakit.server.event_loops import choose_loop
from spoakit.server.forking import flush_standard_streams
from spoakit.server.interfaces import WorkerServer
from spoakit.server.logfile import OpenLogfile, begin_logfile, end_logfile
from spoakit.server.pidfile import Pidfile
from spoakit.server.server import Server
from spoakit.server.settings import ServerSettings
from spoakit.server.signals import Hooks, SignalReceiver
from spoakit.server.sockets import Listeners
from spoakit.server.standalone import StandaloneServer
from spoakit.server.supervisor import Supervisor
from spoakit.server.tls import server_context

# Highest limit of open files that is set. Some systems grant 10**9, and programs that loop over all
# possible descriptors would never end.
_MAX_OPEN_FILES: Final = 1024 * 1024

# Descriptors of a supervisor besides one for each worker, and of a worker with its event loop.
_SUPERVISOR_FILES: Final = 8
_WORKER_FILES: Final = 16

logger = logging.getLogger("spoakit.server")

MakeServer = Callable[[WorkerMetrics], WorkerServer]

_DEFAULT_SETTINGS: Final = ServerSettings()
_DEFAULT_HOOKS: Final = Hooks()
_FOR_PROCESSES: Final = (
    "workers",
    "worker_timeout",
    "daemonize",
    "pidfile",
    "logfile",
    "runtime",
    "monitor",
    "watch",
)


def run(
    agents: Sequence[Agent],
    settings: ServerSettings = _DEFAULT_SETTINGS,
    hooks: Hooks = _DEFAULT_HOOKS,
) -> int:
    """Serve agents until SIGTERM or SIGINT, and return the process's exit code.

    Call it in the main thread of a process without an event loop or other threads, since it
    receives signals and forks. In this order it checks the agents, binds the sockets, goes to the
    background, locks the pidfile, opens the logfile, forks the workers, and reports that it is
    ready once their resources have started.

    Args:
        agents: one or more agents with different messages.
        settings: addresses, limits, workers.
        hooks: called on SIGHUP and SIGUSR1; the logfile is reopened after the latter.

    Returns:
        0 after a drain; 1 if the start failed (the reason is logged) or a worker had to be killed;
        128 plus the signal's number if a second signal ended it at once.

    Raises:
        ConfigurationError: the system does not support the loop, or a TLS file cannot be used.
        RegistrationError: the agents cannot be served together.
    """
    # Before the fork, so that middleware is applied once, and only this process reads the TLS key.
    handlers = combine(agents)
    reloads = [function for agent in agents for function in agent.reloads]
    if reloads:
        hooks = _with_reloads(hooks, reloads)
    tls = None if settings.listen.tls is None else server_context(settings.listen.tls)
    return run_service(lambda row: Server(agents, settings, row, tls, handlers), settings, hooks)


def _with_reloads(hooks: Hooks, reloads: Sequence[Callable[[], None]]) -> Hooks:
    """Return hooks that also call the agents' functions in each worker."""

    def reload() -> None:
        if hooks.reload is not _DEFAULT_HOOKS.reload:
            hooks.reload()

    def reload_worker() -> None:
        (hooks.reload_worker or reload)()
        for function in reloads:
            try:
                function()
            except (Exception, SystemExit):
                logger.exception("reload: %s failed, the worker keeps serving", describe(function))

    return replace(hooks, reload=reload, reload_worker=reload_worker)


async def serve(agents: Sequence[Agent], settings: ServerSettings = _DEFAULT_SETTINGS) -> None:
    """Serve agents in the running event loop until cancelled; then drain within the timeout.

    A second cancellation ends the drain: connections are closed at once, and resources have
    `Drain.resources` and one second to stop.

    It is for programs with their own event loop, which also handle signals themselves.

    Raises:
        ConfigurationError: a setting needs a process (workers, pidfile, logfile, runtime, monitor,
            watch, daemonize), or a TLS file cannot be used.
        RegistrationError: the agents cannot be served together.
        StartupError: an address cannot be bound, or a resource does not start.
    """
    await serve_in_loop(lambda row: Server(agents, settings, row), settings)


def run_service(make_server: MakeServer, settings: ServerSettings, hooks: Hooks) -> int:
    """Serve until a signal stops the service, and return the exit code, as `run` does.

    Args:
        make_server: creates the server of a worker. It is called once here, so that errors of the
            agents are raised before anything else happens, and again in each worker.
        settings: addresses, limits, workers.
        hooks: called on SIGHUP and SIGUSR1.
    """
    loop = choose_loop(settings.loop)
    make_server(SharedMetrics(1).worker(0))
    metrics = SharedMetrics(settings.workers + 1)
    starter = StartupNotifier()
    logfile: OpenLogfile | None = None
    try:
        # Opened first, because the following steps log, and may fail.
        if settings.logfile is not None:
            logfile = begin_logfile(settings.logfile)
        # Signals are received until all files are removed, so that a second one leaves none behind.
        with SignalReceiver() as signals, ExitStack() as stack:
            listeners = Listeners(settings.listen)
            stack.callback(listeners.remove)
            stack.callback(listeners.close)
            if settings.daemonize:
                starter = daemonize(_show if logfile is None else logfile.show)
                if logfile is not None:
                    logfile.close_original_streams()
                    logfile.redirect()
            pidfile = Pidfile(settings.pidfile) if settings.pidfile else None
            if pidfile is not None:
                pidfile.lock()
                stack.callback(pidfile.release)
            if logfile is not None:
                logfile.settle()
                stack.callback(logfile.mark, "stop")
                stack.callback(flush_throttles, final=True)
                hooks = replace(hooks, reopen_logfile=logfile.redirect)
            _raise_descriptor_limit(settings.limits.connections)
            if loop == "select":
                logger.warning(
                    "loop select: the limit is %d connections; use another loop for more",
                    settings.limits.connections,
                )
            _require_descriptors(settings.workers)
            compiled = form()
            # No warning if the user chose the uncompiled form.
            if compiled != COMPILED and os.environ.get("SPOAKIT_EXT") != "disable":
                logger.warning("%s", REMEDY)

            def on_ready() -> None:
                workers = "1 worker" if settings.workers == 1 else f"{settings.workers} workers"
                where = listeners.describe()
                logger.info("listening on %s (%s, %s, %s)", where, workers, loop, compiled)
                notify_service_manager("READY=1")
                starter.ready()

            def close_in_worker() -> None:
                starter.close()
                if pidfile is not None:
                    pidfile.close()

            return Supervisor(
                settings,
                listeners,
                metrics,
                make_server,
                hooks,
                on_ready,
                close_in_worker,
                signals,
            ).run()
    except StartupError as error:
        logger.error("cannot start: %s", error)
        if logfile is not None:
            logfile.show(f"ERROR: cannot start: {error}\n")
        starter.failed(str(error))
        return 1
    finally:
        flush_throttles(final=True)
        flush_standard_streams()
        end_logfile()


async def serve_in_loop(make_server: MakeServer, settings: ServerSettings) -> None:
    """Serve in the running event loop until cancelled, as `serve` does."""
    for option in _FOR_PROCESSES:
        if getattr(settings, option) != getattr(_DEFAULT_SETTINGS, option):
            raise ConfigurationError(f"{option} is not supported by serve(); use run()")
    metrics = SharedMetrics(1).worker(0)
    server = make_server(metrics)
    listeners = Listeners(settings.listen)
    try:
        single = StandaloneServer(settings, listeners, server, metrics)
        try:
            await single.start()
            logger.info("listening on %s", listeners.describe())
            await asyncio.get_running_loop().create_future()
        finally:
            await single.leave()
    finally:
        listeners.close()
        listeners.remove()
        flush_throttles(final=True)


def _show(text: str) -> None:
    sys.stderr.write(text)


def _raise_descriptor_limit(connections: int) -> None:
    """Raise the limit of open files to the hard limit; warn if it is below `connections`."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    granted = _MAX_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _MAX_OPEN_FILES)
    if soft < granted:
        # macOS has another, lower limit, and refuses.
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (granted, hard))
            soft = granted
    if soft < connections:
        logger.warning(
            "max connections is %d, but the limit of open files is %d; raise it (ulimit -n)",
            connections,
            soft,
        )


def _require_descriptors(workers: int) -> None:
    """Refuse a start that would run out of descriptors before the first connection.

    Raises:
        StartupError: the limit of open files is too low; the text says how many are needed.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        opened = len(os.listdir("/dev/fd"))
    except OSError:
        opened = limit  # no descriptor is left to list the folder with
    needed = opened + max(workers + _SUPERVISOR_FILES, _WORKER_FILES)
    if limit < needed:
        raise StartupError(
            f"the limit of open files is {limit}, and {workers} workers need at least {needed}, "
            "beside those for connections; raise it (ulimit -n)"
        )
