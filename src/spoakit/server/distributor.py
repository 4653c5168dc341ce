"""Accept connections, and hand each to the worker with the least work.

An only worker accepts by itself: handing over a connection costs as much as it does to serve a
health check.
"""

import logging
import selectors
import socket
import time
from collections.abc import Sequence
from functools import partial
from typing import Final

from spoakit.logs import Throttle
from spoakit.metrics.memory import WorkerMetrics
from spoakit.server.settings import ServerSettings
from spoakit.server.sockets import Acceptor, Listeners
from spoakit.server.worker_process import WorkerProcess

logger = logging.getLogger("spoakit.server")

_RETRY: Final = 0.01
_TOO_LONG: Final = 1.0


class Distributor:
    """Accepts connections while workers are available, and hands them over.

    Work is what a worker last reported: the frames that it handled in about a second, and those in
    flight. HAProxy keeps few connections and uses them unevenly, so their number says little. A
    connection handed over since then counts as an average one, so that a burst is spread evenly;
    of workers with equal work, the one with the fewest connections comes first.

    Args:
        workers: all of the service.
        listeners: where connections come in.
        selector: the supervisor's, whose events call what is registered with them.
        settings: who is allowed, how many connections.
        row: where to count.
    """

    def __init__(
        self,
        workers: Sequence[WorkerProcess],
        listeners: Listeners,
        selector: selectors.BaseSelector,
        settings: ServerSettings,
        row: WorkerMetrics,
    ) -> None:
        self._workers = workers
        self._listeners = listeners
        self._selector = selector
        self._acceptor = Acceptor(settings.listen, settings.limits, self._count_connections, row)
        self._has_one_worker = len(workers) == 1
        self._throttle = Throttle(logger)
        self._is_open = False
        self._is_accepting = False
        self._pending: socket.socket | None = None
        self._pending_since = 0.0
        self._turns = 0

    def open(self) -> None:
        """Accept from now on, whenever a worker is available, unless that is an only one."""
        self._is_open = not self._has_one_worker

    def close(self) -> None:
        """Stop listening; a connection that waits for a worker is handed over or closed."""
        self._is_open = False
        self._pause_or_resume(time.monotonic())
        self._listeners.close()
        if self._pending is not None:
            if not self._hand(self._pending):
                self._pending.close()
            self._pending = None

    def leave_to_worker(self) -> Listeners | None:
        """Return what an only worker accepts from, in its process, which was just forked.

        For one of several this closes the descriptors, and touches nothing that is shared.
        """
        if self._has_one_worker:
            return self._listeners
        self._listeners.close()
        if self._pending is not None:
            self._pending.close()
        return None

    def run_once(self, now: float) -> None:
        """Do what is due; called in each round of the supervisor."""
        if self._pending is not None:
            self._retry(self._pending, now)
        self._pause_or_resume(now)

    def next_due(self, now: float) -> float | None:
        """Return when something is due by itself; None if nothing is."""
        if self._pending is not None:
            return now + _RETRY
        return self._acceptor.paused_until if self._acceptor.paused_until > now else None

    def _count_connections(self) -> int:
        return sum(worker.connections for worker in self._workers)

    def _pause_or_resume(self, now: float) -> None:
        wanted = (
            self._is_open
            and self._pending is None
            and now >= self._acceptor.paused_until
            and any(worker.is_available for worker in self._workers)
        )
        if wanted == self._is_accepting:
            return
        registered = self._selector.get_map()
        for listener in self._listeners.sockets:
            # Registering may have failed half way, for lack of memory.
            if wanted and listener not in registered:
                on_connections = partial(self._on_connections, listener)
                self._selector.register(listener, selectors.EVENT_READ, on_connections)
            elif not wanted and listener in registered:
                self._selector.unregister(listener)
        self._is_accepting = wanted

    def _on_connections(self, listener: socket.socket) -> None:
        if self._pending is not None:
            return
        for connection in self._acceptor.accept(listener):
            if not self._hand(connection):
                # A burst does this: the workers' queues are full, the kernel's backlog takes over.
                self._pending = connection
                self._pending_since = time.monotonic()
                return

    def _hand(self, connection: socket.socket) -> bool:
        available = [worker for worker in self._workers if worker.is_available]
        work = sum(worker.work for worker in available)
        connections = sum(worker.connections - worker.handed_over for worker in available)
        average = work / max(1, connections)

        def load(worker: WorkerProcess) -> tuple[float, int, int]:
            return worker.work + worker.handed_over * average, worker.connections, worker.turn

        for worker in sorted(available, key=load):
            if worker.hand(connection):
                self._turns += 1
                worker.turn = self._turns
                return True
        return False

    def _retry(self, pending: socket.socket, now: float) -> None:
        if self._hand(pending):
            self._pending = None
        elif now - self._pending_since >= _TOO_LONG:
            self._throttle.warning(
                "pending", "no worker took a connection for %.0f s", now - self._pending_since
            )
