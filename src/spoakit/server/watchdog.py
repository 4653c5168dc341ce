"""Watchdog, which finds workers that hang."""

import logging
import math
from collections.abc import Iterable
from typing import Final

from spoakit.server.worker_process import WorkerProcess, is_traced

logger = logging.getLogger("spoakit.server")

_INTERVAL: Final = 1.0
_FEWEST_PINGS: Final = 5


class Watchdog:
    """Watchdog that pings workers.

    A worker gets no connections from its first missed ping until it answers. It hangs if it has
    missed pings for `timeout` seconds. Time is counted in pings, which the supervisor only sends
    while it runs itself, so that a sleeping machine or SIGSTOP of the group kills no worker.

    Args:
        timeout: seconds; 0 disables it.

    Attributes:
        due: the time of the next ping, on the monotonic clock.
    """

    __slots__ = ("_interval", "_limit", "due")

    def __init__(self, timeout: float) -> None:
        self._interval = min(_INTERVAL, timeout / _FEWEST_PINGS) if timeout else _INTERVAL
        self._limit = math.ceil(timeout / self._interval) if timeout else math.inf
        self.due = 0.0

    def ping(self, workers: Iterable[WorkerProcess], now: float) -> list[WorkerProcess]:
        """Ping the workers that are ready; return the workers that hang.

        A worker that reloads, or that a debugger is attached to, does not count as hanging.
        """
        was_away = now > self.due + self._interval
        self.due = now + self._interval
        ready = [worker for worker in workers if worker.is_ready]
        for worker in ready:
            if worker.ping() or was_away:
                continue
            worker.missed_pings += 1
            if worker.missed_pings == 1:
                logger.warning("%s does not answer; it gets no connections until it does", worker)
        return [
            worker
            for worker in ready
            if worker.missed_pings >= self._limit
            and not worker.pending_reloads
            and not is_traced(worker.pid)
        ]
