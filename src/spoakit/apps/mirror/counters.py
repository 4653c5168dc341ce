"""What a target's figures are, and where they are published."""

from dataclasses import dataclass, fields
from typing import Final

from spoakit.metrics.families import counter
from spoakit.metrics.memory import WorkerMetrics


@dataclass(slots=True)
class Counters:
    """A target's figures since the start of the worker.

    Every request that was received is in the end one of unselected, limited, refused, skipped,
    dropped, answered or failed.

    Attributes:
        received: requests that came from HAProxy.
        unselected: those that the target is not to get, by their match or by the sample.
        limited: those over the rate limit.
        refused: malformed ones, of which no copy was made.
        truncated: those whose body HAProxy's buffer cut.
        skipped: those of these of which no copy was made.
        dropped: those that the full queue did not hold, or that were in it at the end.
        answered: copies with a complete answer, whatever its status.
        failed: copies without one.
        retried: copies sent again.
        unreached: attempts to open a connection that failed.
    """

    received: int = 0
    unselected: int = 0
    limited: int = 0
    refused: int = 0
    truncated: int = 0
    skipped: int = 0
    dropped: int = 0
    answered: int = 0
    failed: int = 0
    retried: int = 0
    unreached: int = 0

    def __str__(self) -> str:
        return ", ".join(f"{getattr(self, name)} {name}" for name in NAMES)


NAMES: Final = tuple(field.name for field in fields(Counters))
# A request counts once for each target.
_HELP: Final = {
    "received": "Requests that came from HAProxy.",
    "unselected": "Requests that a target is not to get, by its match or its sample.",
    "limited": "Requests over a target's rate limit.",
    "refused": "Malformed requests, not copied.",
    "truncated": "Requests whose body HAProxy's buffer cut, copied or not.",
    "skipped": "Requests not copied because HAProxy's buffer cut their body.",
    "dropped": "Copies that a full queue did not hold, or that were in it at the end.",
    "answered": "Copies with a complete answer, whatever its status.",
    "failed": "Copies that were sent and got no complete answer.",
    "retried": "Copies sent again.",
    "unreached": "Attempts to open a connection to a target that failed.",
}
SLOTS: Final = {name: counter(f"spoakit_mirror_{name}_total", _HELP[name]) for name in NAMES}


class Publisher:
    """Carries what a target has counted over to the worker's row, which outlives the worker."""

    __slots__ = ("_published", "_row")

    def __init__(self, row: WorkerMetrics) -> None:
        self._row = row
        self._published = dict.fromkeys(NAMES, 0)

    def publish(self, counters: Counters) -> None:
        """Add what has been counted since the last time."""
        for name, slot in SLOTS.items():
            value: int = getattr(counters, name)
            self._row.add(slot, value - self._published[name])
            self._published[name] = value
