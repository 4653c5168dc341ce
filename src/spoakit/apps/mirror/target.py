"""Target of copies: its copier, its connection pools, its counters and its log lines."""

import asyncio
import logging
from collections import Counter as Tally
from typing import Final

from spoakit.apps.mirror._copying_cy import Copier
from spoakit.apps.mirror._request_builder_cy import RequestBuilder
from spoakit.apps.mirror._request_cy import (
    NOT_WAITED_FOR,
    PROBABLY_CUT,
    OutgoingRequest,
)
from spoakit.apps.mirror.access_log._lines_cy import AccessLog
from spoakit.apps.mirror.config.schema import TargetSettings
from spoakit.apps.mirror.exceptions import (
    BodyTooLargeError,
    LoopedRequestError,
    RefusedRequestError,
    SuspectBodyError,
    TruncatedBodyError,
)
from spoakit.apps.mirror.http.connection_budget import ConnectionBudget
from spoakit.apps.mirror.http.connector import alpn_groups
from spoakit.apps.mirror.http.names import Names
from spoakit.apps.mirror.http.pool import ConnectionPool
from spoakit.apps.mirror.metrics import Counters, TargetMetrics
from spoakit.apps.mirror.rate_limit import RateLimit
from spoakit.apps.mirror.selection import Selector
from spoakit.logs import Throttle
from spoakit.metrics import WorkerMetrics

logger = logging.getLogger("spoakit.mirror")

# Timeouts are checked every 1/20 of the shortest one.
_CHECKS: Final = 20
_MIN_CHECK_INTERVAL: Final = 0.01
_MAX_CHECK_INTERVAL: Final = 1.0
_DRAIN_POLL: Final = 0.01
# Seconds between two log lines about bodies, or about loops: they only repeat.
_REMINDER_INTERVAL: Final = 60.0
_SUSPICIONS: Final = {
    NOT_WAITED_FOR: "it has a Transfer-Encoding, and no part of its body was received; set 'option "
    "http-buffer-request' in HAProxy (an empty body looks the same)",
    PROBABLY_CUT: "it has no Content-Length, and its body fills HAProxy's frame, so that it is "
    "probably cut; raise tune.bufsize, and max-frame-size where the engine or -m sets it",
}


class Target:
    """Copy requests to one URL, without ever making the caller wait.

    Create it in a running event loop; `aclose` ends it.

    Args:
        settings: the target's settings.
        access_log: gets a line for each copy that was sent.
        metrics: the worker's metrics; see `collect`.
        budget: the limit of connections to all targets; by default the target has its own.
        names: the worker's cache of addresses; by default the target has its own.
    """

    def __init__(
        self,
        settings: TargetSettings,
        access_log: AccessLog,
        metrics: WorkerMetrics,
        budget: ConnectionBudget | None = None,
        names: Names | None = None,
    ) -> None:
        self.settings: Final = settings
        self._counters = Counters()
        self._metrics = TargetMetrics(metrics, settings.name)
        self._throttle = Throttle(logger)
        self._reminders = Throttle(logger, _REMINDER_INTERVAL)
        selector = Selector(settings)
        rate = settings.rate
        self._rate_limit = None if rate is None else RateLimit(rate)
        budget = budget or ConnectionBudget.from_open_files_limit()
        self._own_names = Names() if names is None else None
        names = names or self._own_names
        assert names is not None
        self._pools = tuple(
            ConnectionPool(settings, access_log, self._counters, self._metrics, budget, names, http)
            for http in alpn_groups(settings)
        )
        self.copier: Final = Copier(
            None if selector.selects_all else selector,
            rate is not None,
            RequestBuilder(settings),
            self._pools[0].queue,
            self._pools[-1].queue,  # the second pool, if there are two, is for HTTP/2 requests
            self,
        )
        self.copy: Final = self.copier.copy
        self._loop = asyncio.get_running_loop()
        timeouts = settings.timeouts
        shortest = min(timeouts.first_byte, timeouts.total, settings.keep_alive)
        shortest = min(shortest, settings.queue.max_age or shortest, settings.lifetime)
        interval = max(shortest / _CHECKS, _MIN_CHECK_INTERVAL)
        self._check_interval = min(interval, _MAX_CHECK_INTERVAL)
        self._timer = self._loop.call_later(self._check_interval, self._check)

    @property
    def counters(self) -> Counters:
        """The current counters."""
        queues = [pool.queue for pool in self._pools]
        self._counters.received = self.copier.received
        self._counters.not_selected = self.copier.not_selected
        self._counters.rate_limited = self.copier.rate_limited
        self._counters.responses = sum(queue.responses for queue in queues)
        self._counters.dropped = sum(queue.dropped for queue in queues)
        return self._counters

    @property
    def pools(self) -> tuple[ConnectionPool, ...]:
        """The connection pools: one for all requests, or one each for HTTP/1 and HTTP/2."""
        return self._pools

    @property
    def label(self) -> str:
        """The target's label in metrics."""
        return self._metrics.label

    def collect(self) -> None:
        """Publish the increments since the last call."""
        pauses = sum((pool.health.pauses for pool in self._pools), Tally())
        self._metrics.collect(self.counters, [pool.queue for pool in self._pools], pauses)

    # Called by the copier.

    def is_within_rate(self) -> bool:
        """Return whether the rate limit allows one more copy."""
        return self._rate_limit is None or self._rate_limit.allows(self._loop.time())

    def on_refused(self, error: RefusedRequestError) -> None:
        """Count and log a request that is not copied."""
        counters = self._counters
        match error:
            case LoopedRequestError():
                self._on_looped(error)
            case TruncatedBodyError():
                self._on_truncated(f"a request is not copied: {error}")
                counters.body_cut += 1
            case SuspectBodyError():
                self._on_suspect(error.reason, "not copied")
                counters.body_suspect += 1
            case BodyTooLargeError():
                self._log_refused("too large", error)
                counters.body_too_large += 1
            case _:
                self._log_refused("malformed", error)
                counters.malformed += 1

    def on_incomplete(self, request: OutgoingRequest) -> None:
        """Count and log a copy whose body is cut, or probably cut."""
        if request.missing:
            self._on_missing(request)
        else:
            self._on_suspect(request.suspect, "copied with the part of its body that was received")

    def _on_looped(self, error: LoopedRequestError) -> None:
        self._counters.looped += 1
        self._reminders.warning(
            "looped",
            "%s: a request %s, and is not copied again: copies return to HAProxy, or a client "
            "sends the marker; %d so far",
            self.settings.name,
            error,
            self._counters.looped,
            extra={"target": self.settings.name},
        )

    def _log_refused(self, kind: str, error: RefusedRequestError) -> None:
        self._throttle.warning(
            kind,
            "%s: a request is not copied: %s",
            self.settings.name,
            error,
            extra={"target": self.settings.name},
        )

    def _on_suspect(self, reason: str, what: str) -> None:
        self._counters.suspect_bodies[reason] += 1
        self._reminders.warning(
            reason,
            "%s: a request is %s: %s; %d so far",
            self.settings.name,
            what,
            _SUSPICIONS[reason],
            self._counters.suspect_bodies[reason],
            extra={"target": self.settings.name},
        )

    def _on_missing(self, request: OutgoingRequest) -> None:
        size = request.body_size
        self._on_truncated(
            f"a request is copied in part: {size} bytes of a body of {size + request.missing} "
            "were received"
        )

    def _on_truncated(self, what: str) -> None:
        self._counters.cut_bodies += 1
        self._reminders.warning(
            "truncated",
            "%s: %s; raise tune.bufsize (a frame holds as much but 4 bytes), max-frame-size where "
            "the engine or -m sets it, and see 'option http-buffer-request'; %d so far",
            self.settings.name,
            what,
            self._counters.cut_bodies,
        )

    async def aclose(self, timeout: float) -> None:
        """Send what is in the queue, for at most `timeout` seconds, then close the connections.

        A target that does not respond is tried once more, and not waited for after that.
        """
        for pool in self._pools:
            pool.health.end_pause()
        deadline = self._loop.time() + timeout
        try:
            while any(pool.is_hopeful for pool in self._pools) and self._loop.time() < deadline:
                await asyncio.sleep(_DRAIN_POLL)
        finally:
            self._timer.cancel()
            if self._own_names is not None:
                await self._own_names.close()
            if unsent := sum([await pool.close() for pool in self._pools]):
                logger.warning("%s: stopped with %d requests not sent", self.settings.name, unsent)
            logger.info("%s: %s", self.settings.name, self.counters)

    def _check(self) -> None:
        """Check timeouts and connections; one timer serves all of them."""
        for pool in self._pools:
            pool.check()
        self._timer = self._loop.call_later(self._check_interval, self._check)
