"""The work that a connection has not finished: events that wait, and frames in flight."""

from collections.abc import Sequence
from typing import Final

from spoakit.agent.suspension import SuspendedFrame
from spoakit.spop import Event

MAX_IN_FLIGHT_SIZE: Final = 4 * 1024 * 1024
"""Bytes that the frames in flight of one connection may hold."""


class Backlog:
    """Events not handled yet, in their order, and frames whose handlers have not finished.

    Args:
        max_in_flight: the number of frames in flight at which no further event is handled.
    """

    __slots__ = ("_events", "_in_flight", "_max_in_flight", "_size")

    def __init__(self, max_in_flight: int) -> None:
        self._events: list[Event] = []
        self._in_flight: set[SuspendedFrame] = set()
        self._max_in_flight = max_in_flight
        self._size = 0

    @property
    def is_empty(self) -> bool:
        """Whether every frame received has been acknowledged."""
        return not self._in_flight and not self._events

    @property
    def has_events(self) -> bool:
        """Whether events wait; those received later must wait behind them."""
        return bool(self._events)

    @property
    def is_full(self) -> bool:
        """Whether as many frames are in flight, or as many bytes, as may be."""
        return len(self._in_flight) >= self._max_in_flight or self._size > MAX_IN_FLIGHT_SIZE

    def add(self, frame: SuspendedFrame) -> None:
        """Count a frame as in flight."""
        self._in_flight.add(frame)
        self._size += frame.size

    def discard(self, frame: SuspendedFrame) -> None:
        """Count a frame as in flight no longer."""
        if frame in self._in_flight:
            self._in_flight.remove(frame)
            self._size -= frame.size

    def put_off(self, events: Sequence[Event]) -> None:
        """Append events to those that wait."""
        self._events.extend(events)

    def pop_events(self) -> list[Event]:
        """Return the events that wait; none waits then."""
        events = self._events
        self._events = []
        return events

    def cancel(self) -> None:
        """Drop the events, and cancel the handlers of the frames in flight."""
        self._events.clear()
        in_flight = tuple(self._in_flight)
        self._in_flight.clear()
        self._size = 0
        for frame in in_flight:
            frame.cancel()
