"""Interfaces between connections, the queue in front of them, and the pool that owns both."""

from typing import Protocol

from spoakit.apps.mirror._request_cy import OutgoingRequest
from spoakit.apps.mirror.access_log._lines_cy import Response
from spoakit.apps.mirror.http.http2_response import Http2Response
from spoakit.apps.mirror.http.outcome import Outcome


class PooledConnection(Protocol):
    """Open connection, as its pool uses it."""

    @property
    def opened_at(self) -> float:
        """The time at which it was opened, on ``time.perf_counter()``'s clock."""

    @property
    def in_flight(self) -> int:
        """The number of requests in flight."""

    @property
    def idle_since(self) -> float:
        """The time of its last response, or of its opening, on the same clock."""

    @property
    def idle_limit(self) -> float:
        """The seconds that it may be idle, by the target's Keep-Alive field; else infinite."""

    def expire(self, now: float, first_byte: float, total: float) -> None:
        """Fail the requests whose response is overdue."""

    def retire(self) -> None:
        """Close the connection as soon as no request is in flight."""

    def close(self) -> None:
        """Close the connection. Requests in flight fail."""


class ConnectionListener(Protocol):
    """Interface through which connections call their pool."""

    @property
    def is_probing(self) -> bool:
        """The target is in trouble: one request at a time is enough."""

    def on_open(self, connection: PooledConnection) -> None:
        """Add a connection that is ready for requests."""

    def on_odd(self, text: str) -> None:
        """Count a response that is odd, and a response all the same; `text` says how."""

    def on_waiting(self) -> None:
        """Find a connection for a request whose connection has no more room."""

    def on_failure(self, response: Response, request: OutgoingRequest, outcome: Outcome) -> None:
        """Handle a request that gets no response, or no complete one: retry it or count it.

        Args:
            response: the received part of the response.
            request: the request.
            outcome: the reason, and whether the request may be sent again.
        """

    def on_closed(self, connection: PooledConnection, outcome: Outcome | None) -> None:
        """Remove a connection. Called once, after `on_failure` for each request in flight.

        Args:
            connection: the connection.
            outcome: the reason of the close, if there was no response at all; else None.
        """


class Http2Listener(Protocol):
    """Interface through which an HTTP/2 connection calls its session.

    Every method may send requests, while there is room, and retire or close the connection.
    """

    def on_open(self) -> None:
        """Begin to send: the peer's SETTINGS allow a request."""

    def on_response(self, response: Http2Response, now: float) -> None:
        """Handle a complete response."""

    def on_odd(self, text: str) -> None:
        """Count a response that is odd, and a response all the same; `text` says how."""

    def on_room(self) -> None:
        """Use the room for requests, which may be more or less than before.

        Called once for each read, after `on_response` and `on_failure`.
        """

    def on_failure(
        self, response: Http2Response, request: OutgoingRequest, outcome: Outcome
    ) -> None:
        """Handle a request that gets no response, or no complete one."""

    def on_closed(self, outcome: Outcome | None) -> None:
        """Remove the connection. Called once, after `on_failure` for each request in flight.

        Args:
            outcome: the reason of the close; None if it was regular.
        """


class Http2ProtocolListener(Protocol):
    """Interface through which an `http2_protocol.ClientProtocol` calls its connection.

    It must remove each response that has ended from `ClientProtocol.streams`.
    """

    def on_settings(self) -> None:
        """Apply the peer's SETTINGS."""

    def on_end(self, response: Http2Response) -> None:
        """Handle a complete response."""

    def on_reset(self, response: Http2Response, code: int) -> None:
        """Handle a stream that the peer reset."""

    def on_malformed(self, response: Http2Response, text: str) -> None:
        """Handle a malformed response, whose stream has been reset; `text` says what is wrong."""

    def on_goaway(self, last: int, code: int, data: bytes) -> None:
        """Handle a GOAWAY: streams beyond the last one get no response."""


class QueueListener(Protocol):
    """Interface through which a queue calls its pool, which opens connections."""

    def on_waiting(self) -> None:
        """Open a connection, if one more is allowed: a request begins to wait."""

    def on_dropped(self, is_newest: bool) -> None:
        """Report a request dropped from the full queue: the newest or the oldest."""

    def on_too_old(self, count: int) -> None:
        """Report requests dropped because they waited for too long."""

    def on_recovered(self, now: float) -> None:
        """Record the first response since `RequestQueue.watch`."""
