"""The work that a connection has not finished: events that wait, and frames in flight."""

from typing import Final

from spoakit.agent.interfaces import PendingFrame
from spoakit.spop import Event

MAX_IN_FLIGHT_SIZE: Final = 4 * 1024 * 1024
"""Bytes that the frames in flight of one connection may hold."""


class Backlog:
    """Events not handled yet, in their order, and frames whose handlers have not finished.

    Args:
        max_in_flight: the number of frames in flight at which no further event is handled.

    Attributes:
        events: those that wait; events received later must wait behind them.
        in_flight: the frames in flight; see `add` and `discard`.
    """

    __slots__ = ("_max_in_flight", "_size", "events", "in_flight")

    def __init__(self, max_in_flight: int) -> None:
        self.events: list[Event] = []
        self.in_flight: set[PendingFrame] = set()
        self._max_in_flight = max_in_flight
        self._size = 0

    @property
    def is_empty(self) -> bool:
        """True if every frame received has been acknowledged."""
        return not self.in_flight and not self.events

    @property
    def is_full(self) -> bool:
        """True if the limit of frames in flight, or of their bytes, is reached."""
        return len(self.in_flight) >= self._max_in_flight or self._size > MAX_IN_FLIGHT_SIZE

    def add(self, frame: PendingFrame) -> None:
        """Count a frame as in flight."""
        self.in_flight.add(frame)
        self._size += frame.size

    def discard(self, frame: PendingFrame) -> None:
        """Count a frame as in flight no longer."""
        if frame in self.in_flight:
            self.in_flight.remove(frame)
            self._size -= frame.size

    def pop_events(self) -> list[Event]:
        """Return the events that wait; none waits then."""
        events = self.events
        self.events = []
        return events

    def cancel(self) -> None:
        """Drop the events, and cancel the handlers of the frames in flight."""
        self.events.clear()
        in_flight = tuple(self.in_flight)
        self.in_flight.clear()
        self._size = 0
        for frame in in_flight:
            frame.cancel()
