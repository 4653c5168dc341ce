"""Health of a target: a circuit breaker for its new connections."""

import asyncio
import logging
import random
import time
from collections import Counter as Tally
from collections.abc import Callable
from typing import Final

from spoakit.apps.mirror.config.schema import Timeouts
from spoakit.apps.mirror.http.outcome import Trouble
from spoakit.logs import Throttle

logger = logging.getLogger("spoakit.mirror")

_MAX_DOUBLINGS: Final = 16

# Texts for the log at the begin and the end of each trouble.
_LINES: Final = {
    Trouble.UNREACHABLE: ("cannot be reached", "can be reached again"),
    Trouble.SILENT: ("does not respond", "responds again"),
    Trouble.REFUSING: ("ends connections without a response", "responds again"),
    Trouble.UNINTELLIGIBLE: ("does not speak HTTP", "speaks HTTP again"),
}


class Health:
    """Circuit breaker of a target, which a failure opens and the next response closes.

    After a failure there is no new connection for a back-off time, which grows with each further
    failure of the same kind. Then there is one connection with one request, until a response closes
    the circuit. Connections that work are not affected. Create it in a running event loop.

    Args:
        name: the target's name, for the log.
        timeouts: the target's timeouts, of which `min_backoff` and `max_backoff` are used.
        on_retry: called at the end of a back-off, so that a connection may be opened.
    """

    def __init__(self, name: str, timeouts: Timeouts, on_retry: Callable[[], None]) -> None:
        self._name = name
        self._timeouts = timeouts
        self._on_retry = on_retry
        self._throttle = Throttle(logger)
        self._failures = 0  # consecutive failures of the same trouble
        self._began_at = 0.0
        self._pause: asyncio.TimerHandle | None = None
        self.trouble: Trouble | None = None
        self.pauses: Tally[str] = Tally()

    @property
    def is_pausing(self) -> bool:
        """The back-off time runs: no connection is opened."""
        return self._pause is not None

    @property
    def is_probing(self) -> bool:
        """The target is in trouble: one request at a time is enough."""
        return self.trouble is not None

    def limit(self, connections: int) -> int:
        """Return how many of `connections` connections are allowed now."""
        if self._pause is not None:
            return 0
        return connections if self.trouble is None else 1

    def record_failure(self, trouble: Trouble, text: str) -> None:
        """Open the circuit: the last attempt to connect, or all recent requests, failed.

        Args:
            trouble: the kind of failure.
            text: the error, for the log.
        """
        if self._pause is not None:
            return
        if self.trouble is None:
            self._began_at = time.perf_counter()
        if trouble != self.trouble:
            self.trouble = trouble
            self._failures = 0
            self._throttle.warning(
                trouble,
                "%s: %s: %s; copies wait",
                self._name,
                _LINES[trouble][0],
                text,
                extra={"target": self._name, "trouble": str(trouble)},
            )
        longest = self._timeouts.max_backoff
        pause = min(self._timeouts.min_backoff * 2 ** min(self._failures, _MAX_DOUBLINGS), longest)
        self._failures += 1
        self.pauses[trouble] += 1
        loop = asyncio.get_running_loop()
        self._pause = loop.call_later(pause * random.uniform(0.5, 1), self._retry)

    def record_response(self, now: float, waiting: int) -> None:
        """Close the circuit.

        Args:
            now: ``time.perf_counter()``.
            waiting: the number of queued requests, for the log.
        """
        trouble, self.trouble = self.trouble, None
        if trouble is None:
            return
        self._failures = 0
        self._throttle.info(
            f"{trouble} no more",
            "%s: %s after %.1f s; %d copies waiting",
            self._name,
            _LINES[trouble][1],
            now - self._began_at,
            waiting,
            extra={"target": self._name, "trouble": str(trouble)},
        )

    def end_pause(self) -> None:
        """End the back-off early."""
        if self._pause is not None:
            self._pause.cancel()
            self._retry()

    def close(self) -> None:
        """Stop the timer."""
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None

    def _retry(self) -> None:
        self._pause = None
        self._on_retry()
