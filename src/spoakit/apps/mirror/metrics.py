"""Metrics of the targets, and the counters of a target until they are published.

For each target, at any time::

    requests = responses + failures + dropped + waiting + in_flight
               + not_copied{not_selected, rate_limited, looped, malformed, body_cut, body_suspect,
                            body_too_large}
"""

from collections import Counter as Tally
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Final, Protocol

from spoakit.metrics import (
    CarriedCounts,
    Counter,
    HistogramCells,
    WorkerMetrics,
    counter,
    gauge,
    histogram,
)

_NOT_COPIED_REASONS: Final = (
    "not_selected",
    "rate_limited",
    "looped",
    "malformed",
    "body_cut",
    "body_suspect",
    "body_too_large",
)

# Labels of 15 targets and of "other"; a reload may bring more targets than that.
_TARGETS: Final = 16

REQUESTS = counter(
    "spoakit_mirror_requests_total",
    "Requests received from HAProxy; each counts once for each target.",
    labels=("target",),
    limit=_TARGETS,
)
NOT_COPIED = counter(
    "spoakit_mirror_not_copied_total",
    "Requests of which a target gets no copy, by reason: not_selected (by its match or its "
    "sample), rate_limited, looped (it has the target's marker), malformed, body_cut (by "
    "HAProxy's buffer), body_suspect (probably cut or not waited for, with truncated-suspect = "
    '"skip"), body_too_large (see max-body).',
    labels=("target", "reason"),
    limit=7 * _TARGETS + 1,
)
DROPPED = counter(
    "spoakit_mirror_dropped_total",
    "Copies that were never sent, by reason: queue_full, too_old (they waited for longer than "
    "queue.max-age), stopping (they waited at the stop), worker_died (they were with a worker that "
    "ended unexpectedly, sent or not).",
    labels=("target", "reason"),
    limit=4 * _TARGETS + 1,
)
RESPONSES = counter(
    "spoakit_mirror_responses_total",
    "Copies with a complete response, by the class of its status: 1xx to 5xx, or other.",
    labels=("target", "status"),
    limit=6 * _TARGETS + 1,
)
FAILURES = counter(
    "spoakit_mirror_failures_total",
    "Copies that were sent and got no complete response, by reason: timeout, closed (by the "
    "target), reset (HTTP/2), malformed, stopping; and grpc: a complete one whose grpc-status is "
    "not 0, or missing.",
    labels=("target", "reason"),
    limit=6 * _TARGETS + 1,
)
RETRIES = counter(
    "spoakit_mirror_retries_total",
    "Copies sent again, since the target had not acted on them.",
    labels=("target",),
    limit=_TARGETS,
)
ODD = counter(
    "spoakit_mirror_odd_responses_total",
    "Responses that a strict parser would refuse; they count as responses.",
    labels=("target",),
    limit=_TARGETS,
)
BODIES_CUT = counter(
    "spoakit_mirror_cut_bodies_total",
    "Requests whose body HAProxy's buffer cut, copied or not.",
    labels=("target",),
    limit=_TARGETS,
)
SUSPECT_BODIES = counter(
    "spoakit_mirror_suspect_bodies_total",
    "Requests whose body is probably not all of it, copied or not, by reason: not_waited_for (it "
    "has a Transfer-Encoding and no body), probably_cut (it has no Content-Length, and its frame "
    "is nearly full).",
    labels=("target", "reason"),
    limit=2 * _TARGETS + 1,
)
CONNECT_FAILURES = counter(
    "spoakit_mirror_connect_failures_total",
    "Attempts to open a connection that failed, by reason: name (it has no address), refused, "
    "unreachable, timeout, tls, proxy (it opened no tunnel), protocol (the target speaks another "
    "one), other.",
    labels=("target", "reason"),
    limit=4 * _TARGETS + 1,
)
PAUSES = counter(
    "spoakit_mirror_pauses_total",
    "Times that a target got no new connections for a while, by reason: unreachable, silent (no "
    "response in time), refusing (it ended connections without a response), unintelligible (what "
    "it sent is not HTTP).",
    labels=("target", "reason"),
    limit=4 * _TARGETS + 1,
)
IN_TROUBLE = gauge(
    "spoakit_mirror_in_trouble",
    "Workers for which a target is in trouble: it failed, and has not responded since.",
    labels=("target",),
    limit=_TARGETS,
)
CONNECTIONS = gauge(
    "spoakit_mirror_connections",
    "Connections to a target that are open.",
    labels=("target",),
    limit=_TARGETS,
)
WAITING = gauge(
    "spoakit_mirror_waiting",
    "Copies that wait in a target's queue.",
    labels=("target",),
    limit=_TARGETS,
    lost_as=(DROPPED, "worker_died"),
)
IN_FLIGHT = gauge(
    "spoakit_mirror_in_flight",
    "Copies that have been sent and wait for their response.",
    labels=("target",),
    limit=_TARGETS,
    lost_as=(DROPPED, "worker_died"),
)
WAITING_BYTES = gauge(
    "spoakit_mirror_waiting_bytes",
    "Size of the copies that wait in a target's queue.",
    labels=("target",),
    limit=_TARGETS,
)
OLDEST = gauge(
    "spoakit_mirror_oldest_waiting_seconds",
    "Time that the oldest copy has waited in a target's queue.",
    labels=("target",),
    limit=_TARGETS,
    merge="max",
)
FIRST_BYTE = histogram(
    "spoakit_mirror_first_byte_seconds",
    "Time from the sending of a copy to the first byte of its response.",
    labels=("target",),
    limit=_TARGETS,
)
RESPONSE = histogram(
    "spoakit_mirror_response_seconds",
    "Time from the sending of a copy to the end of its response.",
    labels=("target",),
    limit=_TARGETS,
)


@dataclass(slots=True)
class Counters:
    """Counters of a target since the start of the worker.

    Attributes:
        received: requests received from HAProxy.
        not_selected: requests that the target's match or sample leaves out.
        rate_limited: requests over the rate limit.
        looped: requests that have the target's marker.
        malformed: malformed requests, not copied.
        body_cut: requests not copied because HAProxy's buffer cut their body.
        body_suspect: requests not copied because their body was probably cut.
        body_too_large: requests not copied because their body is larger than max-body.
        dropped: copies dropped from a full queue, for their age, or at the stop.
        responses: copies with a complete response, whatever its status.
        failed: copies that were sent and got no complete response, or failed as a gRPC call.
        retried: copies sent again.
        odd: responses that a strict parser would refuse, accepted nevertheless.
        cut_bodies: requests whose body HAProxy's buffer cut, copied or not.
        connect_failures: attempts to open a connection that failed.
        suspect_bodies: requests whose body was probably cut, copied or not, by reason.
        failures: the parts of `failed`, by reason.
        failed_attempts: the parts of `connect_failures`, by reason.
    """

    received: int = 0
    not_selected: int = 0
    rate_limited: int = 0
    looped: int = 0
    malformed: int = 0
    body_cut: int = 0
    body_suspect: int = 0
    body_too_large: int = 0
    dropped: int = 0
    responses: int = 0
    failed: int = 0
    retried: int = 0
    odd: int = 0
    cut_bodies: int = 0
    connect_failures: int = 0
    suspect_bodies: Tally[str] = field(default_factory=Tally)
    failures: Tally[str] = field(default_factory=Tally)
    failed_attempts: Tally[str] = field(default_factory=Tally)

    def __str__(self) -> str:
        return ", ".join(f"{getattr(self, name)} {name.replace('_', ' ')}" for name in _NAMES)


_NAMES: Final = tuple(
    each.name for each in fields(Counters) if each.type == "int" or each.type is int
)


class Queue(Protocol):
    """Counts of one of a target's queues; see `_queue_cy.RequestQueue`."""

    @property
    def waiting(self) -> int:
        """The number of requests that wait."""

    @property
    def waiting_bytes(self) -> int:
        """Their total size."""

    @property
    def queue_full(self) -> int:
        """The number of requests dropped because the queue was full."""

    @property
    def too_old(self) -> int:
        """The number of requests dropped because they waited for too long."""

    @property
    def dropped(self) -> int:
        """The number of requests dropped, for any reason."""

    @property
    def by_class(self) -> list[int]:
        """The number of responses by the class of their status."""

    def oldest(self, now: float) -> float:
        """Return the seconds that the oldest request has waited."""


class TargetMetrics:
    """Metrics of one target in one worker.

    Args:
        metrics: the worker's metrics.
        target: the target's name.
    """

    __slots__ = ("_carried", "_target", "first_byte", "response")

    def __init__(self, metrics: WorkerMetrics, target: str) -> None:
        self._target = target = metrics.label_of(REQUESTS, target)
        self._carried = CarriedCounts(metrics)
        self.first_byte: HistogramCells = metrics.histogram(FIRST_BYTE, target)
        self.response: HistogramCells = metrics.histogram(RESPONSE, target)

    @property
    def label(self) -> str:
        """The target's name, or "other" if there is no room for it."""
        return self._target

    def collect(
        self, counters: Counters, queues: Iterable[Queue], pauses: Mapping[str, int]
    ) -> None:
        """Publish the increments since the last call."""
        queues = tuple(queues)
        full = sum(queue.queue_full for queue in queues)
        too_old = sum(queue.too_old for queue in queues)
        self._carry(REQUESTS, counters.received)
        for reason in _NOT_COPIED_REASONS:
            self._carry(NOT_COPIED, getattr(counters, reason), reason)
        for reason, count in counters.suspect_bodies.items():
            self._carry(SUSPECT_BODIES, count, reason)
        for reason, count in counters.failures.items():
            self._carry(FAILURES, count, reason)
        for reason, count in counters.failed_attempts.items():
            self._carry(CONNECT_FAILURES, count, reason)
        for reason, count in pauses.items():
            self._carry(PAUSES, count, reason)
        self._carry(RETRIES, counters.retried)
        self._carry(ODD, counters.odd)
        self._carry(BODIES_CUT, counters.cut_bodies)
        self._carry(DROPPED, full, "queue_full")
        self._carry(DROPPED, too_old, "too_old")
        stopping = sum(queue.dropped for queue in queues) - full - too_old
        self._carry(DROPPED, stopping, "stopping")
        for number in range(10):
            count = sum(queue.by_class[number] for queue in queues)
            # Some servers invent statuses, for example 999.
            self._carry(RESPONSES, count, f"{number}xx" if 1 <= number <= 5 else "other")

    def _carry(self, family: Counter, count: int, *values: str) -> None:
        self._carried.raise_to(family, count, self._target, *values)
