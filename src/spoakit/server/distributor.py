"""Distributor: accepts connections, and hands each to the worker with the least work.

A single worker accepts by itself: handing over a connection costs as much as serving a health
check.
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
    """Distributor of connections over the workers that are available.

    A worker's work is its last report: the frames that it handled in about a second, plus its
    frames in flight. HAProxy keeps few connections and uses them unevenly, so counting connections
    would not balance the load. A connection handed over since the report counts as an average one,
    so that a burst is spread evenly. Among workers with equal work, the one with the fewest
    connections is chosen.

    Args:
        workers: all workers of the service.
        listeners: the listening sockets.
        selector: the supervisor's selector; it calls the data registered with an event.
        settings: limits on peers and connections.
        row: the supervisor's counters.
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
        """Start accepting, whenever a worker is available; a single worker accepts by itself."""
        self._is_open = not self._has_one_worker

    def close(self) -> None:
        """Stop listening; hand over or close the pending connection."""
        self._is_open = False
        self._pause_or_resume(time.monotonic())
        self._listeners.close()
        if self._pending is not None:
            if not self._hand_over(self._pending):
                self._pending.close()
            self._pending = None

    def leave_to_worker(self) -> Listeners | None:
        """Return the listening sockets that a single worker accepts from; called after the fork.

        In one of several workers this closes the descriptors instead, without changing the shared
        selector.
        """
        if self._has_one_worker:
            return self._listeners
        self._listeners.close()
        if self._pending is not None:
            self._pending.close()
        return None

    def run_once(self, now: float) -> None:
        """Retry the pending connection, and pause or resume; called in each supervisor round."""
        if self._pending is not None:
            self._retry(self._pending, now)
        self._pause_or_resume(now)

    def next_due(self, now: float) -> float | None:
        """Return the time of the next retry or resume; None without one."""
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
            # An earlier registration may have failed half way, for lack of memory.
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
            if not self._hand_over(connection):
                # A burst has filled the workers' queues; connections wait in the kernel's backlog.
                self._pending = connection
                self._pending_since = time.monotonic()
                return

    def _hand_over(self, connection: socket.socket) -> bool:
        available = [worker for worker in self._workers if worker.is_available]
        work = sum(worker.work for worker in available)
        connections = sum(worker.connections - worker.handed_over for worker in available)
        average = work / max(1, connections)

        def load(worker: WorkerProcess) -> tuple[float, int, int]:
            return worker.work + worker.handed_over * average, worker.connections, worker.turn

        for worker in sorted(available, key=load):
            if worker.hand_over(connection):
                self._turns += 1
                worker.turn = self._turns
                return True
        return False

    def _retry(self, pending: socket.socket, now: float) -> None:
        if self._hand_over(pending):
            self._pending = None
        elif now - self._pending_since >= _TOO_LONG:
            self._throttle.warning(
                "pending",
                "no worker has accepted a connection for %.0f s",
                now - self._pending_since,
            )
