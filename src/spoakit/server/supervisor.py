"""Supervisor: forks and replaces workers, handles signals, stops.

The distributor keeps the listening sockets open, so connections wait in the kernel while a worker
is replaced.

The supervisor has neither an asyncio loop nor threads, so a forked worker inherits no state of
them. It runs one `select` loop, whose rounds handle events, ended processes, signals and deadlines.
"""

import errno
import gc
import logging
import math
import os
import resource
import selectors
import signal
import socket
import time
from collections.abc import Callable
from enum import IntEnum
from functools import partial
from typing import Final

from spoakit.exceptions import StartupError
from spoakit.log_output import set_worker
from spoakit.logs import Throttle, flush_throttles, forget_throttled
from spoakit.metrics.families import Recording, counter
from spoakit.metrics.memory import SharedMetrics, WorkerMetrics
from spoakit.server.daemon import notify_service_manager
from spoakit.server.distributor import Distributor
from spoakit.server.forking import fork
from spoakit.server.interfaces import WorkerServer
from spoakit.server.ipc import FRAMES, IN_FLIGHT, SupervisorCommand, WorkerEvent
from spoakit.server.process_metrics import ProcessMetrics
from spoakit.server.settings import ServerSettings
from spoakit.server.signals import (
    SIGNALS,
    STOP_SIGNALS,
    Hooks,
    InterruptedBySignal,
    SignalAction,
    SignalDebouncer,
    SignalReceiver,
)
from spoakit.server.sockets import Listeners
from spoakit.server.stats_log import StatsLog, figure_name
from spoakit.server.watch import WatchedFile
from spoakit.server.watchdog import Watchdog
from spoakit.server.worker import FLUSH_INTERVAL, GRACE, run_worker
from spoakit.server.worker_process import WorkerProcess, describe_exit

logger = logging.getLogger("spoakit.server")

ENDED = counter(
    "spoakit_workers_ended_total",
    "Workers that ended unexpectedly, by reason: died, or hung and was killed.",
    labels=("reason",),
    limit=3,
)
RELOADS = counter(
    "spoakit_reloads_total",
    "Reloads by result, as the supervisor tried them: loaded, or refused.",
    labels=("result",),
    limit=3,
)

# A worker limits the time of its own drain; if it still runs half a second later, it hangs.
_KILL_AFTER: Final = GRACE + 0.5
# A hanging worker writes its traceback at once, or never.
_TRACEBACK_TIMEOUT: Final = 0.3
_MAX_TRACEBACK_LINES: Final = 40
_WATCH_INTERVAL: Final = 0.25
_RETRY: Final = 0.01
_PAUSE_AFTER_FAILURE: Final = 0.1


class _Phase(IntEnum):
    STARTING = 0
    SERVING = 1
    ANNOUNCING = 2  # serves, but refuses health checks
    DRAINING = 3


class Supervisor:
    """Supervisor of `settings.workers` workers on listening sockets.

    Args:
        settings: the number of workers, limits, drain, runtime.
        listeners: the listening sockets.
        metrics: a row for each worker, and the last one for the supervisor.
        make_server: creates the server of a worker; called in the worker.
        hooks: called on SIGHUP and SIGUSR1, here and in the workers.
        on_ready: called once, when all workers are ready.
        close_in_worker: closes other descriptors that a worker must not keep.
        signals: the receiver of this process's signals.
    """

    def __init__(
        self,
        settings: ServerSettings,
        listeners: Listeners,
        metrics: SharedMetrics,
        make_server: Callable[[WorkerMetrics], WorkerServer],
        hooks: Hooks,
        on_ready: Callable[[], None],
        close_in_worker: Callable[[], None],
        signals: SignalReceiver,
    ) -> None:
        self._settings = settings
        self._metrics = metrics
        self._make_server = make_server
        self._hooks = hooks
        self._on_ready = on_ready
        self._close_in_worker = close_in_worker
        self._row = metrics.worker(settings.workers)
        # Two writers, since each shows the time since its own last lines.
        self._asked_stats, self._regular_stats = StatsLog(metrics), StatsLog(metrics)
        self._workers = [WorkerProcess(index) for index in range(settings.workers)]
        self._selector = selectors.DefaultSelector()
        self._distributor = Distributor(
            self._workers, listeners, self._selector, settings, self._row
        )
        self._watchdog = Watchdog(settings.worker_timeout)
        self._watched = None if settings.watch is None else WatchedFile(settings.watch)
        self._throttle = Throttle(logger)
        self._signals = signals
        self._debouncer = SignalDebouncer()
        self._phase = _Phase.STARTING
        self._deadline = math.inf
        self._flush_at = 0.0
        self._report_at = math.inf
        self._watch_at = math.inf if self._watched is None else 0.0
        self._kill_at: dict[WorkerProcess, float] = {}
        self._failure: str | None = None
        self._exit_code = 0

    def run(self) -> int:
        """Run until all workers have stopped; return the exit code.

        Raises:
            StartupError: a worker could not start.
        """
        # Workers share the memory of existing objects until something writes to it, which the
        # garbage collector would do.
        gc.collect()
        gc.freeze()
        Recording(self._row)
        ProcessMetrics(self._row)
        try:
            self._selector.register(self._signals, selectors.EVENT_READ, _do_nothing)
            for worker in self._workers:
                if self._failure is None:
                    self._fork(worker)
            while any(worker.pid or worker.restart_at for worker in self._workers):
                self._run_guarded()
        finally:
            for worker in self._workers:
                worker.close_channel()  # after an error, remaining workers exit
            self._selector.close()
        if self._failure is not None:
            raise StartupError(self._failure)
        return self._exit_code

    def _run_guarded(self) -> None:
        """Run one round, and survive errors: mostly a lack of memory or descriptors."""
        try:
            self._run_once()
        except Exception as error:
            self._throttle.error(
                ("failure", type(error)),
                "the supervisor failed, retrying in %g s: %s: %s",
                _PAUSE_AFTER_FAILURE,
                type(error).__name__,
                error,
            )
            time.sleep(_PAUSE_AFTER_FAILURE)

    def _run_once(self) -> None:
        now = time.monotonic()
        due = self._next_due(now)
        for key, _ in self._selector.select(max(0.0, due - now)):
            key.data()
        now = time.monotonic()
        # Each new or closed connection causes a round, so a round does no unnecessary work.
        if self._signals.has_pending:
            self._handle_signals(now)
            self._reap(now)
        if now >= due:
            self._reap(now)
            self._handle_deadlines(now)
        self._distributor.run_once(now)

    # --- workers -----------------------------------------------------------------------

    def _fork(self, worker: WorkerProcess) -> None:
        try:
            ours, theirs = socket.socketpair()
        except OSError as error:
            self._on_fork_failed(worker, error)
            return
        # Blocked until the new process ignores signals: it shares our wakeup socket.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, SignalReceiver.RECEIVED)
        try:
            pid = fork(partial(self._run_worker, worker.index, ours, theirs, mask))
            worker.started(pid, ours)
            on_events = partial(self._on_events, worker, ours)
            self._selector.register(ours, selectors.EVENT_READ, on_events)
        except OSError as error:
            ours.close()
            if worker.pid:
                worker.close_channel()  # a worker without events must exit
            else:
                self._on_fork_failed(worker, error)
            return
        finally:
            theirs.close()
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        logger.debug("%s is forked", worker)

    def _on_fork_failed(self, worker: WorkerProcess, error: OSError) -> None:
        reason = f"cannot fork worker {worker.index + 1}: {error.strerror}"
        if error.errno == errno.EMFILE:
            limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
            reason += f"; raise the limit of {limit} open files (ulimit -n)"
        now = time.monotonic()
        if self._phase is _Phase.SERVING:
            worker.postpone(now)
            self._throttle.error("fork", "%s; retrying", reason)
        elif self._failure is None:
            self._failure = reason
            self._drain(now)

    def _run_worker(
        self,
        index: int,
        ours: socket.socket,
        channel: socket.socket,
        mask: set[signal.Signals | int],
    ) -> int:
        """Run a worker in the forked process; return its exit code."""
        self._signals.ignore()
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        ours.close()
        self._selector.close()
        # Other workers would not see the end of the supervisor while this one has their channels.
        for worker in self._workers:
            worker.close_channel()
        listeners = self._distributor.leave_to_worker()
        self._close_in_worker()
        forget_throttled()
        set_worker(index + 1)
        return run_worker(
            channel,
            self._settings,
            self._make_server,
            self._metrics.worker(index),
            self._hooks.for_worker(),
            listeners,
        )

    def _on_events(self, worker: WorkerProcess, channel: socket.socket) -> None:
        if not self._receive_events(worker):
            self._selector.unregister(channel)
            worker.close_channel()
        if self._phase is _Phase.STARTING and all(worker.is_ready for worker in self._workers):
            self._serve()

    def _receive_events(self, worker: WorkerProcess) -> bool:
        """Receive the events of a worker; return False at the end of its channel."""
        missed = worker.missed_pings
        events = worker.receive_events(time.monotonic())
        if events is None:
            return True
        if WorkerEvent.PONG in events:
            frames = self._metrics.value(worker.index, FRAMES)
            worker.report_work(int(frames), int(self._metrics.value(worker.index, IN_FLIGHT)))
        if missed and not worker.missed_pings:
            logger.info("%s answers again", worker)
        return bool(events)

    def _reap(self, now: float) -> None:
        for worker in self._workers:
            if not worker.pid:
                continue
            try:
                pid, status = os.waitpid(worker.pid, os.WNOHANG)
            except ChildProcessError:
                pid, status = worker.pid, 0  # other code has waited for it
            if pid:
                self._on_ended(worker, status, now)

    def _on_ended(self, worker: WorkerProcess, status: int, now: float) -> None:
        if worker.channel is not None:
            while worker.receive_events(now):
                pass
            self._selector.unregister(worker.channel)
        name, failure = str(worker), worker.failure
        was_hanging = self._kill_at.pop(worker, None) == math.inf
        worker.ended(now)
        lost = self._metrics.on_ended(worker.index)
        how = describe_exit(status)
        if self._phase >= _Phase.ANNOUNCING:
            worker.restart_at = None
            self._exit_code = self._exit_code or int(status != 0)
            level = logging.WARNING if status else logging.DEBUG
            logger.log(level, "%s ended: %s", name, how)
            return
        self._row.add(ENDED, 1, "hung" if was_hanging else "died")
        if was_hanging:
            reason = f"{name} was killed, because it hung"
        elif failure is None:
            reason = f"{name} ended unexpectedly: {how}"
        else:
            reason = f"{name} could not start: {failure}"
        if lost:
            logger.error(
                "%s lost, by its last figures: %s",
                name,
                ", ".join(
                    f"{figure_name(gauge, labels)} {count:.0f}" for gauge, labels, count in lost
                ),
            )
        if self._phase is _Phase.STARTING:
            self._failure = reason
            self._drain(now)
        elif worker.restart_at is not None:
            logger.error("%s; it is replaced in %.1f s", reason, worker.restart_at - now)

    def _ping(self, now: float) -> None:
        """Ping the workers, and request a traceback of workers that hang."""
        if now < self._watchdog.due:
            return
        hanging = self._watchdog.ping(self._workers, now)
        for worker in hanging:
            # In later phases the timeout of the drain applies.
            if self._phase is _Phase.SERVING and worker not in self._kill_at:
                worker.request_traceback()
                self._kill_at[worker] = now + _TRACEBACK_TIMEOUT

    def _kill_hanging(self, now: float) -> None:
        for worker, kill_at in self._kill_at.items():
            if now < kill_at:
                continue
            self._kill_at[worker] = math.inf
            logger.error(
                "%s has not answered for %g s and is killed; its main thread:",
                worker,
                self._settings.worker_timeout,
            )
            lines = worker.traceback.splitlines()[1:] or ["  (unknown: the process is stopped)"]
            for line in lines[:_MAX_TRACEBACK_LINES]:
                logger.error("worker %d: %s", worker.index + 1, line)
            worker.kill()

    # --- signals and time --------------------------------------------------------------

    def _handle_signals(self, now: float) -> None:
        # A stop goes before a hook, which may take long.
        for signum in sorted(
            self._signals.pop_pending(), key=STOP_SIGNALS.__contains__, reverse=True
        ):
            action = self._debouncer.interpret(signum) if signum in SIGNALS else None
            match action:
                case SignalAction.STOP:
                    self._stop(now, signal.Signals(signum).name)
                case SignalAction.END:
                    self._end_now(signum)
                case SignalAction.RELOAD:
                    self._reload()
                case SignalAction.REOPEN_LOGS:
                    self._call_hooks(action, SupervisorCommand.REOPEN_LOGS)
                case SignalAction.REPORT:
                    self._asked_stats.write(everything=True)

    def _reload(self) -> None:
        if self._watched is not None:
            self._watched.mark_loaded()
        self._call_hooks(SignalAction.RELOAD, SupervisorCommand.RELOAD)

    def _call_hooks(self, action: SignalAction, command: SupervisorCommand) -> None:
        """Call a hook here; if it succeeded, command the workers to call theirs."""
        try:
            # A hook may block on a disk that hangs, and a signal must still stop the service.
            with self._signals.interruptible():
                succeeded = self._hooks.call(action)
        except InterruptedBySignal:
            succeeded = False
            logger.warning("%s: interrupted by a signal to stop", action.describe())
        if action is SignalAction.RELOAD:
            self._row.add(RELOADS, 1, "loaded" if succeeded else "refused")
        if succeeded:
            for worker in self._workers:
                worker.send_command(command)

    def _next_due(self, now: float) -> float:
        """Return the time of the next deadline, at most a second from now."""
        times = [self._flush_at, self._report_at, self._watch_at, self._deadline]
        times += [self._watchdog.due, *self._kill_at.values()]
        times += [worker.restart_at for worker in self._workers if worker.restart_at is not None]
        if any(worker.has_unsent for worker in self._workers):
            times.append(now + _RETRY)
        if (due := self._distributor.next_due(now)) is not None:
            times.append(due)
        return min(times)

    def _handle_deadlines(self, now: float) -> None:
        if now >= self._flush_at:
            flush_throttles()
            self._row.publish()
            self._flush_at = now + FLUSH_INTERVAL
        if now >= self._report_at and self._settings.monitor is not None:
            self._regular_stats.write(everything=False)
            self._report_at = now + self._settings.monitor
        if now >= self._watch_at and self._watched is not None:
            self._watch_at = now + _WATCH_INTERVAL
            if self._phase is _Phase.SERVING and self._watched.has_changed():
                self._reload()
        for worker in self._workers:
            if worker.restart_at is not None and now >= worker.restart_at:
                self._fork(worker)
            worker.flush()
        self._ping(now)
        self._kill_hanging(now)
        if now >= self._deadline:
            self._deadline = math.inf
            self._on_deadline(now)

    def _on_deadline(self, now: float) -> None:
        match self._phase:
            case _Phase.SERVING:
                self._stop(now, "the runtime has ended")
            case _Phase.ANNOUNCING:
                self._drain(now)
            case _Phase.DRAINING:
                logger.error("workers still run after the drain timeout, killing them")
                self._exit_code = 1
                self._kill()

    # --- phases ------------------------------------------------------------------------

    def _serve(self) -> None:
        self._phase = _Phase.SERVING
        now = time.monotonic()
        if self._settings.monitor is not None:
            self._report_at = now + self._settings.monitor
        if self._settings.runtime is not None:
            self._deadline = now + self._settings.runtime
        self._distributor.open()
        self._on_ready()

    def _stop(self, now: float, why: str) -> None:
        if self._phase >= _Phase.ANNOUNCING:
            return
        logger.info("stopping: %s", why)
        notify_service_manager("STOPPING=1")
        checks = self._settings.drain.checks
        if self._phase is _Phase.STARTING or not checks:
            self._drain(now)
            return
        self._phase = _Phase.ANNOUNCING
        self._deadline = now + checks
        for worker in self._workers:
            worker.restart_at = None
            worker.send_command(SupervisorCommand.REFUSE_CHECKS)

    def _drain(self, now: float) -> None:
        self._phase = _Phase.DRAINING
        self._watchdog.due = math.inf  # resources may block while they stop
        self._distributor.close()
        self._deadline = now + self._settings.drain.total + _KILL_AFTER
        for worker in self._workers:
            worker.restart_at = None
            worker.send_command(SupervisorCommand.DRAIN)

    def _end_now(self, signum: int) -> None:
        logger.warning("second %s: ending at once", signal.Signals(signum).name)
        self._exit_code = 128 + signum
        if self._phase is not _Phase.DRAINING:
            self._drain(time.monotonic())
        self._kill()

    def _kill(self) -> None:
        for worker in self._workers:
            worker.kill()


def _do_nothing() -> None:
    """Ignore the event: each round handles signals."""
