"""What a target's figures are, and where they are published."""

from dataclasses import dataclass, fields
from typing import Final

from spoakit.metrics.counters import CounterRow, counter


@dataclass(slots=True)
class Counters:
    """A target's figures since the start of the worker.

    Every request that was received is in the end one of refused, truncated, dropped, answered or
    failed.

    Attributes:
        received: requests that came from HAProxy.
        refused: malformed ones, of which no copy was made.
        truncated: those that HAProxy's buffer cut, of which no copy was made.
        dropped: those that were pushed out of the full queue, or were in it at the end.
        answered: copies with a complete answer, whatever its status.
        failed: copies without one.
        retried: copies sent a second time, over a new connection.
    """

    received: int = 0
    refused: int = 0
    truncated: int = 0
    dropped: int = 0
    answered: int = 0
    failed: int = 0
    retried: int = 0

    def __str__(self) -> str:
        return (
            f"{self.received} received, {self.answered} answered, {self.failed} failed, "
            f"{self.dropped} dropped, {self.truncated} truncated, {self.refused} refused, "
            f"{self.retried} retried"
        )


NAMES: Final = tuple(field.name for field in fields(Counters))
SLOTS: Final = {
    name: counter(f"spoakit_mirror_{name}_total", f"Requests {name}, of all targets.")
    for name in NAMES
}


class Publisher:
    """Carries what a target has counted over to the worker's row, which outlives the worker."""

    __slots__ = ("_published", "_row")

    def __init__(self, row: CounterRow) -> None:
        self._row = row
        self._published = dict.fromkeys(NAMES, 0)

    def publish(self, counters: Counters) -> None:
        """Add what has been counted since the last time."""
        for name, slot in SLOTS.items():
            value: int = getattr(counters, name)
            self._row.add(slot, value - self._published[name])
            self._published[name] = value
