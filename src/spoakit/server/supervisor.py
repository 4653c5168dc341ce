"""The supervisor: forks workers, accepts connections, hands them out, restarts and stops workers.

It has no asyncio loop, so that workers are forked from a process without loop state or threads.
Everything it does is a turn of one `select` loop: events, ended processes, signals, deadlines.
"""

import gc
import logging
import math
import os
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable
from enum import IntEnum
from functools import partial
from typing import Final, NoReturn

from spoakit.exceptions import StartupError
from spoakit.logs import Throttle, flush_throttles, forget_throttled
from spoakit.metrics.counters import CounterRow, Counters, counter
from spoakit.server.daemon import notify_service_manager
from spoakit.server.ipc import SupervisorCommand, WorkerServer
from spoakit.server.settings import ServerSettings
from spoakit.server.signals import SIGNALS, Hooks, SignalAction, SignalDebouncer, SignalReceiver
from spoakit.server.sockets import Acceptor, Listeners
from spoakit.server.stats_log import log_counters
from spoakit.server.worker import FLUSH_INTERVAL, GRACE, run_worker
from spoakit.server.worker_process import WorkerProcess, describe_exit

logger = logging.getLogger("spoakit.server")

DEATHS = counter("spoakit_worker_deaths_total", "Workers that ended without being told to.")

# A worker bounds its own leaving; what is still there half a second later hangs.
_KILL_AFTER: Final = GRACE + 0.5
_RETRY: Final = 0.01
_TOO_LONG: Final = 1.0


class _Phase(IntEnum):
    STARTING = 0
    SERVING = 1
    ANNOUNCING = 2  # serving still, but health checks are refused
    DRAINING = 3


class Supervisor:
    """Runs `settings.workers` workers on listening sockets.

    Args:
        settings: the number of workers, limits, drain, runtime.
        listeners: where connections come in.
        counters: a row for each worker and one more for the supervisor.
        make_server: makes what a worker runs; called in the worker.
        hooks: called on SIGHUP and SIGUSR1, here and in the workers.
        on_ready: called once, when all workers are ready.
        close_in_worker: closes what else a worker must not keep open.
    """

    def __init__(
        self,
        settings: ServerSettings,
        listeners: Listeners,
        counters: Counters,
        make_server: Callable[[CounterRow], WorkerServer],
        hooks: Hooks,
        on_ready: Callable[[], None],
        close_in_worker: Callable[[], None],
    ) -> None:
        self._settings = settings
        self._listeners = listeners
        self._counters = counters
        self._make_server = make_server
        self._hooks = hooks
        self._on_ready = on_ready
        self._close_in_worker = close_in_worker
        self._row = counters.row(settings.workers)
        self._workers = [WorkerProcess(index) for index in range(settings.workers)]
        self._acceptor = Acceptor(
            settings.listen, settings.limits, self._count_connections, self._row
        )
        self._throttle = Throttle(logger)
        self._selector = selectors.DefaultSelector()
        self._signals = SignalReceiver()
        self._debouncer = SignalDebouncer()
        self._phase = _Phase.STARTING
        self._is_accepting = False
        self._held: socket.socket | None = None
        self._held_since = 0.0
        self._turns = 0
        self._deadline: float | None = None
        self._flush_at = 0.0
        self._report_at = math.inf
        self._failure: str | None = None
        self._exit_code = 0

    def run(self) -> int:
        """Run until told to stop; return the exit code.

        Raises:
            StartupError: a worker could not start, and none is left.
        """
        # What exists now is shared with the workers, as long as no collection writes to it.
        gc.collect()
        gc.freeze()
        try:
            with self._signals:
                self._selector.register(self._signals, selectors.EVENT_READ, _do_nothing)
                for worker in self._workers:
                    if self._failure is None:
                        self._fork(worker)
                while any(worker.pid or worker.restart_at for worker in self._workers):
                    self._turn()
        finally:
            for worker in self._workers:
                worker.close_channel()  # tells those that are left, after an error, to leave
            self._selector.close()
        if self._failure is not None:
            raise StartupError(self._failure)
        return self._exit_code

    def _turn(self) -> None:
        for key, _ in self._selector.select(self._time_to_wait(time.monotonic())):
            key.data()
        now = time.monotonic()
        self._reap(now)
        self._obey_signals(now)
        self._meet_deadlines(now)
        self._control_accepting(now)

    # Workers

    def _fork(self, worker: WorkerProcess) -> None:
        ours, theirs = socket.socketpair()
        sys.stdout.flush()
        sys.stderr.flush()
        # A signal that the new process got before it ignores them would reach our wakeup socket.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, SignalReceiver.RECEIVED)
        try:
            pid = os.fork()
            if pid == 0:
                ours.close()
                self._become_worker(worker.index, theirs, mask)
        except OSError as error:
            ours.close()
            self._on_fork_failed(worker, f"cannot fork a worker: {error.strerror}")
            return
        finally:
            theirs.close()
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        worker.started(pid, ours)
        self._selector.register(ours, selectors.EVENT_READ, partial(self._on_reports, worker, ours))
        logger.debug("worker %d is process %d", worker.index + 1, pid)

    def _on_fork_failed(self, worker: WorkerProcess, reason: str) -> None:
        now = time.monotonic()
        if self._phase is _Phase.SERVING:
            worker.postpone(now)
            self._throttle.error("fork", reason)
        elif self._failure is None:
            self._failure = reason
            self._drain(now)

    def _become_worker(
        self, index: int, channel: socket.socket, mask: set[signal.Signals | int]
    ) -> NoReturn:
        code = 1
        try:
            self._signals.ignore()
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            self._close_what_is_ours()
            forget_throttled()
            code = run_worker(
                channel,
                self._settings,
                self._make_server,
                self._counters.row(index),
                self._hooks.of_worker(),
            )
        except BaseException:
            logger.exception("worker %d failed", index + 1)
        finally:
            flush_throttles(final=True)
            logging.shutdown()
            sys.stdout.flush()
            os._exit(code)

    def _close_what_is_ours(self) -> None:
        self._selector.close()
        self._listeners.close()
        # A worker that kept its siblings' channels would hide the supervisor's end from them.
        for worker in self._workers:
            worker.close_channel()
        if self._held is not None:
            self._held.close()
        self._close_in_worker()

    def _on_reports(self, worker: WorkerProcess, channel: socket.socket) -> None:
        if worker.channel is channel and worker.read_events(time.monotonic()) is False:
            self._selector.unregister(channel)
            worker.close_channel()
        if worker.saw_change:
            worker.saw_change = False
            self._tell(SignalAction.RELOAD)
        if self._phase is _Phase.STARTING and all(worker.is_ready for worker in self._workers):
            self._serve()

    def _reap(self, now: float) -> None:
        for worker in self._workers:
            if not worker.pid:
                continue
            pid, status = os.waitpid(worker.pid, os.WNOHANG)
            if pid:
                self._bury(worker, status, now)

    def _bury(self, worker: WorkerProcess, status: int, now: float) -> None:
        if worker.channel is not None:
            while worker.read_events(now):
                pass
            self._selector.unregister(worker.channel)
        pid, how = worker.pid, describe_exit(status)
        worker.ended(now)
        self._counters.reset_gauges(worker.index)
        if self._phase >= _Phase.ANNOUNCING:
            worker.restart_at = None
            self._exit_code = self._exit_code or int(status != 0)
            level = logging.WARNING if status else logging.DEBUG
            logger.log(level, "worker %d (process %d) ended: %s", worker.index + 1, pid, how)
            return
        self._row.add(DEATHS)
        what = f"worker {worker.index + 1} (process {pid})"
        if worker.failure is None:
            reason = f"{what} ended unexpectedly: {how}"
        else:
            reason = f"{what} could not start: {worker.failure}"
        if self._phase is _Phase.STARTING:
            self._failure = reason
            self._drain(now)
        elif worker.restart_at is not None:
            logger.error("%s; its successor follows in %.1f s", reason, worker.restart_at - now)

    # Connections

    def _count_connections(self) -> int:
        return sum(worker.connections for worker in self._workers)

    def _control_accepting(self, now: float) -> None:
        wanted = (
            self._phase in (_Phase.SERVING, _Phase.ANNOUNCING)
            and self._held is None
            and now >= self._acceptor.paused_until
            and any(worker.is_ready for worker in self._workers)
        )
        if wanted == self._is_accepting:
            return
        self._is_accepting = wanted
        for listener in self._listeners.sockets:
            if wanted:
                self._selector.register(
                    listener, selectors.EVENT_READ, partial(self._on_connections, listener)
                )
            else:
                self._selector.unregister(listener)

    def _on_connections(self, listener: socket.socket) -> None:
        if self._held is not None:
            return
        for connection in self._acceptor.accept(listener):
            if not self._hand(connection):
                # A burst of connections does this: the workers' queues are full, the kernel's
                # backlog takes over.
                self._held = connection
                self._held_since = time.monotonic()
                return

    def _hand(self, connection: socket.socket) -> bool:
        """Hand a connection to the worker with the fewest, of these to the one whose turn it is."""
        ready = [worker for worker in self._workers if worker.is_ready]
        for worker in sorted(ready, key=lambda worker: (worker.connections, worker.turn)):
            if worker.hand(connection):
                self._turns += 1
                worker.turn = self._turns
                return True
        return False

    def _retry(self, held: socket.socket, now: float) -> None:
        if self._hand(held):
            self._held = None
        elif now - self._held_since >= _TOO_LONG:
            self._throttle.warning(
                "held", "no worker took a connection for %.0f s", now - self._held_since
            )

    # Signals and time

    def _obey_signals(self, now: float) -> None:
        for signum in dict.fromkeys(self._signals.read()):  # a storm of reloads is one
            action = self._debouncer.read(signum) if signum in SIGNALS else None
            match action:
                case SignalAction.STOP:
                    self._stop(now, signal.Signals(signum).name)
                case SignalAction.END:
                    self._end(signum)
                case SignalAction.RELOAD | SignalAction.REOPEN_LOGS:
                    self._tell(action)
                case SignalAction.REPORT:
                    log_counters(self._counters, self._settings.workers, zeros=True)

    def _tell(self, action: SignalAction) -> None:
        """Do here what is wished, and have the workers do it if that went well."""
        if self._hooks.call(action):
            command = (
                SupervisorCommand.RELOAD
                if action is SignalAction.RELOAD
                else SupervisorCommand.REOPEN_LOGS
            )
            for worker in self._workers:
                worker.send_command(command)

    def _time_to_wait(self, now: float) -> float:
        times = [self._flush_at, self._report_at]
        times += [worker.restart_at for worker in self._workers if worker.restart_at is not None]
        if self._deadline is not None:
            times.append(self._deadline)
        if self._held is not None or any(worker.has_unsent for worker in self._workers):
            times.append(now + _RETRY)
        if self._acceptor.paused_until > now:
            times.append(self._acceptor.paused_until)
        return max(0.0, min(times) - now)

    def _meet_deadlines(self, now: float) -> None:
        if now >= self._flush_at:
            flush_throttles()
            self._flush_at = now + FLUSH_INTERVAL
        if self._settings.monitor is not None and now >= self._report_at:
            log_counters(self._counters, self._settings.workers, zeros=False)
            self._report_at = now + self._settings.monitor
        for worker in self._workers:
            if worker.restart_at is not None and now >= worker.restart_at:
                self._fork(worker)
            worker.flush()
        if self._held is not None:
            self._retry(self._held, now)
        if self._deadline is not None and now >= self._deadline:
            self._deadline = None
            match self._phase:
                case _Phase.SERVING:
                    self._stop(now, "the runtime is over")
                case _Phase.ANNOUNCING:
                    self._drain(now)
                case _Phase.DRAINING:
                    logger.error("workers still run after the drain's bound; killing them")
                    self._exit_code = 1
                    self._kill()

    # Phases

    def _serve(self) -> None:
        self._phase = _Phase.SERVING
        if self._settings.monitor is not None:
            self._report_at = time.monotonic() + self._settings.monitor
        if self._settings.runtime is not None:
            self._deadline = time.monotonic() + self._settings.runtime
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
        self._control_accepting(now)
        self._listeners.close()
        if self._held is not None:
            if not self._hand(self._held):
                self._held.close()
            self._held = None
        self._deadline = now + self._settings.drain.total + _KILL_AFTER
        for worker in self._workers:
            worker.restart_at = None
            worker.send_command(SupervisorCommand.DRAIN)

    def _end(self, signum: int) -> None:
        logger.warning("%s again: ending at once", signal.Signals(signum).name)
        self._exit_code = 128 + signum
        if self._phase is not _Phase.DRAINING:
            self._drain(time.monotonic())
        self._kill()

    def _kill(self) -> None:
        for worker in self._workers:
            worker.kill()


def _do_nothing() -> None:
    """The turn that this event begins reads the signals anyway."""
