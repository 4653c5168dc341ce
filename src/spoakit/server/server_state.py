"""State that all connections of a worker share: dispatcher, settings, counters."""

import asyncio
import logging
import re
from collections import Counter as Tally
from collections.abc import Callable
from math import inf

from spoakit.agent._deadlines_cy import Deadlines
from spoakit.agent._dispatch_cy import BoundHandler
from spoakit.agent.runtime import Runtime
from spoakit.exceptions import ProtocolError, StatusCode
from spoakit.logs import Throttle
from spoakit.metrics.families import counter, gauge
from spoakit.metrics.memory import CarriedCounts, WorkerMetrics
from spoakit.server.interfaces import OpenConnection
from spoakit.server.ipc import FRAMES, IN_FLIGHT
from spoakit.server.settings import ServerSettings
from spoakit.spop import AgentSettings

CONNECTIONS = gauge("spoakit_connections", "Connections open now.")
HEALTH_CHECKS = counter("spoakit_health_checks_total", "Health checks received.")
DISCONNECTS = counter(
    "spoakit_disconnects_total",
    "DISCONNECT frames received with an error, by status code.",
    labels=("status",),
)
PROTOCOL_ERRORS = counter(
    "spoakit_protocol_errors_total",
    "Connections ended because of a violation by the engine, by the status code of the DISCONNECT "
    "and the error.",
    labels=("status", "error"),
)
RETIRED = counter("spoakit_connections_retired_total", "Connections closed for their age.")
BACKPRESSURE = counter(
    "spoakit_backpressure_total", "Reads that had frames over the in-flight limit."
)
RECEIVED_BYTES = counter("spoakit_received_bytes_total", "Bytes read from engines.")
SENT_BYTES = counter("spoakit_sent_bytes_total", "Bytes written to engines.")
MESSAGES = counter(
    "spoakit_messages_total", "Messages that have a handler, by name.", labels=("message",)
)
CALLS = counter(
    "spoakit_calls_total",
    "Calls of handlers and observers, by message and kind.",
    labels=("message", "kind"),
)
CALL_FAILURES = counter(
    "spoakit_call_failures_total",
    "Calls without a result, by message and reason: exception (it raised, or returned something "
    "other than actions), mismatch (of the message's arguments), deadline (it was late), refused "
    "(no thread was free). The handler's fallback is sent.",
    labels=("message", "reason"),
    limit=64,
)
OVERSIZED = counter("spoakit_oversized_acks_total", "ACKs sent without actions, which did not fit.")
UNKNOWN = counter("spoakit_unknown_messages_total", "Messages without a handler.")

_KNOWN = frozenset(StatusCode)
# HAProxy up to 3.0 ends idle connections with these ("timeout server", "timeout idle").
_EVERYDAY = frozenset({StatusCode.NORMAL, StatusCode.IO, StatusCode.TIMEOUT})

logger = logging.getLogger("spoakit.server")


class ServerState:
    """State that all connections of a worker share. Create it in the loop that serves them.

    Args:
        runtime: the started agents.
        settings: the server's settings.
        row: the worker's counters.
        on_closed: called for each connection that is closed.

    Attributes:
        loop: the event loop.
        dispatcher: the dispatcher of the worker's agents.
        limits: the limits for each connection.
        agent_settings: the settings of each connection's state machine.
        connections: all open connections.
        refuses_health_checks: True to answer them with a DISCONNECT, because the agent is stopping.
        debug: True to log each frame.
    """

    def __init__(
        self,
        runtime: Runtime,
        settings: ServerSettings,
        row: WorkerMetrics,
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
        self.connections: set[OpenConnection] = set()
        self.refuses_health_checks = False
        self.debug = logger.isEnabledFor(logging.DEBUG)
        self._row = row
        self._on_closed = on_closed
        self._throttle = Throttle(logger)
        self._hellos = Deadlines(self.loop, _expire)
        self._carried = CarriedCounts(row)
        self._bytes = [0, 0]  # of connections that are closed
        row.on_publish(self._collect)

    def opened(self, connection: OpenConnection) -> None:
        """Add a new connection, and watch the deadline of its HELLO."""
        self.connections.add(connection)
        self._hellos.add(connection)

    def closed(self, connection: OpenConnection) -> None:
        """Remove a closed connection."""
        self.connections.discard(connection)
        self._bytes[0] += connection.received_bytes
        self._bytes[1] += connection.sent_bytes
        self._on_closed()

    def retire(self, connection: OpenConnection) -> None:
        """Close a connection that has reached its age, and count it."""
        self._row.add(RETIRED)
        connection.retire_at = inf
        connection.leave("the connection has reached its age")

    def health_checked(self) -> None:
        """Count a health check."""
        self._row.add(HEALTH_CHECKS)

    def disconnected(self, peer: str, status_code: int, message: str) -> None:
        """Count and log a DISCONNECT of the engine, unless it is a normal end."""
        if status_code in _EVERYDAY:
            return
        # A peer may send any number; unknown ones share one label.
        known = status_code if status_code in _KNOWN else None
        self._row.add(DISCONNECTS, 1, "unknown" if known is None else str(int(known)))
        self._throttle.warning(
            ("disconnect", known),
            "%s disconnected with status %d: %s",
            peer,
            status_code,
            message,
            extra={"peer": peer, "status": status_code},
        )

    def failed(self, peer: str, error: ProtocolError) -> None:
        """Count and log a connection that ends because of a violation by the engine."""
        self._row.add(PROTOCOL_ERRORS, 1, str(int(error.status_code)), _short(type(error)))
        self._throttle.warning(
            ("failed", type(error)),
            "connection from %s ended with status %d: %s",
            peer,
            error.status_code,
            error,
            extra={"peer": peer, "status": error.status_code},
        )

    def backpressure(self) -> None:
        """Count a read whose frames must wait, since the limit on frames in flight is reached."""
        self._row.add(BACKPRESSURE)

    def refuse_health_checks(self) -> None:
        """Answer health checks with a DISCONNECT from now on."""
        self.refuses_health_checks = True
        for connection in self.connections:
            connection.refuse_health_checks()

    def close(self) -> None:
        """Stop the timer, and publish the last counts."""
        self._hellos.close()
        self._row.publish()
        self._row.forget(self._collect)

    def _collect(self) -> None:
        """Carry the counts of the hot path over to counters, before each publishing."""
        dispatcher, connections, carry = self.dispatcher, self.connections, self._carried.raise_to
        received, sent = self._bytes
        carry(FRAMES, dispatcher.frames)
        carry(OVERSIZED, dispatcher.oversized)
        carry(UNKNOWN, dispatcher.unknown)
        carry(RECEIVED_BYTES, received + sum(each.received_bytes for each in connections))
        carry(SENT_BYTES, sent + sum(each.sent_bytes for each in connections))
        for handlers in dispatcher.routes.values():
            self._collect_calls(handlers)
        self._row.set(CONNECTIONS, len(connections))
        self._row.set(IN_FLIGHT, sum(connection.frames_in_flight for connection in connections))

    def _collect_calls(self, handlers: tuple[BoundHandler, ...]) -> None:
        """Carry over the counts of one message's handlers; all observers share a series."""
        message, answering = handlers[0].handler.message, handlers[0]
        calls: Tally[str] = Tally()
        failures: Tally[str] = Tally()
        for bound in handlers:
            errors = bound.errors
            calls[bound.handler.kind.value] += bound.calls
            failures["exception"] += errors.failures
            failures["mismatch"] += errors.mismatches
            failures["deadline"] += errors.expired
            failures["refused"] += errors.refused
        carry = self._carried.raise_to
        carry(MESSAGES, answering.calls + answering.errors.mismatches, message)
        for kind, count in calls.items():
            carry(CALLS, count, message, kind)
        for reason, count in failures.items():
            carry(CALL_FAILURES, count, message, reason)


def _short(error: type[ProtocolError]) -> str:
    """Return the label for an error: "frame_too_big" for FrameTooBigError."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", error.__name__.removesuffix("Error"))
    return words.lower()


def _expire(connection: OpenConnection) -> None:
    connection.expire()
