"""State that the connections of a worker share: dispatcher, settings, counters, each other."""

import asyncio
import logging
from collections.abc import Callable
from math import inf
from typing import TYPE_CHECKING, Final

from spoakit.agent._deadlines_cy import Deadlines
from spoakit.agent.runtime import Runtime
from spoakit.exceptions import (
    FrameTooBigError,
    ProtocolError,
    StatusCode,
    TimedOutError,
    TooManyMessagesError,
)
from spoakit.logs import Throttle
from spoakit.metrics.counters import CounterRow, counter, gauge
from spoakit.server.ipc import FRAMES, IN_FLIGHT
from spoakit.server.settings import ServerSettings
from spoakit.spop import AgentSettings

if TYPE_CHECKING:
    from spoakit.server.protocol import SpopProtocol

CONNECTIONS = gauge("spoakit_connections", "Connections open now.")
HEALTH_CHECKS = counter("spoakit_health_checks_total", "Health checks received.")
DISCONNECTS = counter("spoakit_disconnects_total", "DISCONNECT frames received with an error.")
FAILURES = counter("spoakit_protocol_errors_total", "Connections ended for a protocol error.")
TOO_BIG = counter("spoakit_too_big_total", "Of these: a frame or its fragments over the limit.")
TOO_MANY = counter(
    "spoakit_too_many_messages_total", "Of these: a NOTIFY of more messages than the limit."
)
NO_HELLO = counter("spoakit_hello_timeouts_total", "Of these: no HELLO in time.")
RETIRED = counter("spoakit_connections_retired_total", "Connections closed for their age.")
BACKPRESSURE = counter(
    "spoakit_backpressure_total", "Reads that had frames over the in-flight limit."
)
CALLS = counter("spoakit_calls_total", "Calls of handlers and observers.")
CALL_FAILURES = counter("spoakit_call_failures_total", "Calls that raised; their fallback is sent.")
MISMATCHES = counter("spoakit_mismatches_total", "Messages whose arguments did not fit.")
EXPIRED = counter("spoakit_expired_total", "Handlers that missed their deadline.")
REFUSED = counter("spoakit_refused_total", "Threaded handlers for which there was no thread.")
OVERSIZED = counter("spoakit_oversized_acks_total", "ACKs that lost actions that did not fit.")
UNKNOWN = counter("spoakit_unknown_messages_total", "Messages that no handler takes.")

_KNOWN = frozenset(StatusCode)
# The limits that a connection can end for.
_LIMITS: Final[dict[type[ProtocolError], int]] = {
    FrameTooBigError: TOO_BIG,
    TooManyMessagesError: TOO_MANY,
    TimedOutError: NO_HELLO,
}
# HAProxy up to 3.0 ends idle connections with these, by "timeout server" and "timeout idle".
_EVERYDAY = frozenset({StatusCode.NORMAL, StatusCode.IO, StatusCode.TIMEOUT})

logger = logging.getLogger("spoakit.server")


class ServerState:
    """State that the connections of a worker share; to be made on the loop that serves them.

    Args:
        runtime: the agents, started.
        settings: the server's settings.
        row: the worker's counters.
        on_closed: called for each connection that is closed.

    Attributes:
        connections: those that are open.
        refuses_health_checks: answer them with a DISCONNECT, because the agent leaves.
        debug: log each frame.
    """

    def __init__(
        self,
        runtime: Runtime,
        settings: ServerSettings,
        row: CounterRow,
        on_closed: Callable[[], None],
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.dispatcher = runtime.dispatcher
        self.limits = settings.limits
        self.agent_settings = AgentSettings(
            max_frame_size=settings.limits.frame_size or None,
            frame_size_cap=settings.limits.frame_size_cap,
            reassembled_size=settings.limits.reassembled_size,
            capabilities=frozenset(settings.capabilities),
        )
        self.connections: set[SpopProtocol] = set()
        self.refuses_health_checks = False
        self.debug = logger.isEnabledFor(logging.DEBUG)
        self._row = row
        self._on_closed = on_closed
        self._throttle = Throttle(logger)
        self._hellos = Deadlines(self.loop, _expire)
        self._published = dict.fromkeys(_PUBLISHED, 0)

    def opened(self, connection: "SpopProtocol") -> None:
        """Watch a new connection."""
        self.connections.add(connection)
        self._hellos.add(connection)
        self._row.set(CONNECTIONS, len(self.connections))

    def closed(self, connection: "SpopProtocol") -> None:
        """Forget a connection."""
        self.connections.discard(connection)
        self._row.set(CONNECTIONS, len(self.connections))
        self._on_closed()

    def retire(self, connection: "SpopProtocol") -> None:
        """Close a connection that has reached its age, and count it."""
        self._row.add(RETIRED)
        connection.retire_at = inf
        connection.leave("the connection has reached its age")

    def health_checked(self) -> None:
        """Count a health check."""
        self._row.add(HEALTH_CHECKS)

    def disconnected(self, peer: str, status_code: int, message: str) -> None:
        """Log why the engine ends a connection, if it is not one of its everyday reasons."""
        if status_code in _EVERYDAY:
            return
        self._row.add(DISCONNECTS)
        self._throttle.warning(
            # The code is the peer's, and may be any number.
            ("disconnect", status_code if status_code in _KNOWN else None),
            "%s disconnects with status %d: %s",
            peer,
            status_code,
            message,
            extra={"peer": peer, "status": status_code},
        )

    def failed(self, peer: str, error: ProtocolError) -> None:
        """Count and log that a connection is ended because of what the engine sent."""
        self._row.add(FAILURES)
        limit = _LIMITS.get(type(error))
        if limit is not None:
            self._row.add(limit)
        self._throttle.warning(
            ("failed", type(error)),
            "connection from %s ended with status %d: %s",
            peer,
            error.status_code,
            error,
            extra={"peer": peer, "status": error.status_code},
        )

    def backpressure(self) -> None:
        """Count that frames of a read must wait, since as many are in flight as may be."""
        self._row.add(BACKPRESSURE)

    def refuse_health_checks(self) -> None:
        """Answer health checks with a DISCONNECT from now on."""
        self.refuses_health_checks = True
        for connection in self.connections:
            connection.refuse_health_checks()

    def publish(self) -> None:
        """Carry what was counted on the hot path over to the worker's row."""
        current = dict.fromkeys(_PUBLISHED, 0)
        current[FRAMES] = self.dispatcher.frames
        current[OVERSIZED] = self.dispatcher.oversized
        current[UNKNOWN] = self.dispatcher.unknown
        for handlers in self.dispatcher.routes.values():
            for bound in handlers:
                errors = bound.errors
                current[CALLS] += bound.calls
                current[CALL_FAILURES] += errors.failures
                current[MISMATCHES] += errors.mismatches
                current[EXPIRED] += errors.expired
                current[REFUSED] += errors.refused
        for slot, value in current.items():
            self._row.add(slot, value - self._published[slot])
        self._published = current
        in_flight = sum(connection.frames_in_flight for connection in self.connections)
        self._row.set(IN_FLIGHT, in_flight)

    def close(self) -> None:
        """Stop the timer, publish the last counts."""
        self._hellos.close()
        self.publish()


_PUBLISHED = (
    FRAMES,
    CALLS,
    CALL_FAILURES,
    MISMATCHES,
    EXPIRED,
    REFUSED,
    OVERSIZED,
    UNKNOWN,
)


def _expire(connection: "SpopProtocol") -> None:
    connection.expire()
