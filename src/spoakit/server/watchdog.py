"""Find workers that hang."""

import logging
import math
from collections.abc import Iterable
from typing import Final

from spoakit.server.worker_process import WorkerProcess, is_traced

logger = logging.getLogger("spoakit.server")

_INTERVAL: Final = 1.0
_FEWEST_PINGS: Final = 5


class Watchdog:
    """Pings workers, and finds those that hang.

    A worker is out of the distribution from its first missed ping until it answers, and hangs when
    it has missed them for `timeout` seconds. These are counted in pings, which are sent while the
    supervisor itself runs: a machine that sleeps, or a stop of the whole group, kills no worker.

    Args:
        timeout: seconds; with 0 no worker is found to hang.

    Attributes:
        due: when to ping next, on the monotonic clock.
    """

    __slots__ = ("_interval", "_limit", "due")

    def __init__(self, timeout: float) -> None:
        self._interval = min(_INTERVAL, timeout / _FEWEST_PINGS) if timeout else _INTERVAL
        self._limit = math.ceil(timeout / self._interval) if timeout else math.inf
        self.due = 0.0

    def ping(self, workers: Iterable[WorkerProcess], now: float) -> list[WorkerProcess]:
        """Ping the workers that are ready; return those that hang.

        A worker that reloads may take its time, and one that a debugger is attached to.
        """
        was_away = now > self.due + self._interval
        self.due = now + self._interval
        ready = [worker for worker in workers if worker.is_ready]
        for worker in ready:
            if worker.ping() or was_away:
                continue
            worker.missed_pings += 1
            if worker.missed_pings == 1:
                logger.warning("%s does not answer, and gets no connections until it does", worker)
        return [
            worker
            for worker in ready
            if worker.missed_pings >= self._limit
            and not worker.pending_reloads
            and not is_traced(worker.pid)
        ]
