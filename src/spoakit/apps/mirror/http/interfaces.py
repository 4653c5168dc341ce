"""Interfaces between connections, the queue in front of them, and the pool that owns both."""

from typing import Protocol

from spoakit.apps.mirror._request_cy import OutgoingRequest
from spoakit.apps.mirror.access_log._lines_cy import Response
from spoakit.apps.mirror.http.http2_response import Http2Response
from spoakit.apps.mirror.http.outcome import Outcome


class PooledConnection(Protocol):
    """Open connection, as its pool watches over it."""

    @property
    def opened_at(self) -> float:
        """When it was opened, on ``time.perf_counter()``'s clock."""

    @property
    def in_flight(self) -> int:
        """The number of requests that wait for their response."""

    @property
    def idle_since(self) -> float:
        """When its last response was complete, or it was opened, on the same clock."""

    @property
    def idle_limit(self) -> float:
        """The seconds that it may be unused, by what the target says; infinite if it is silent."""

    def expire(self, now: float, first_byte: float, total: float) -> None:
        """Give up the responses that are overdue."""

    def retire(self) -> None:
        """Close the connection once no response is awaited any more."""

    def close(self) -> None:
        """Close the connection. Requests in flight fail."""


class ConnectionListener(Protocol):
    """Owner of connections: the pool."""

    @property
    def is_probing(self) -> bool:
        """Whether the target is in trouble, so that one request at a time is enough."""

    def on_open(self, connection: PooledConnection) -> None:
        """Add a connection that is ready for requests."""

    def on_odd(self, text: str) -> None:
        """Count a response that is odd, and a response all the same; `text` says how."""

    def on_waiting(self) -> None:
        """Find a connection for a request that was to be sent where there is no room any more."""

    def on_failure(self, response: Response, request: OutgoingRequest, outcome: Outcome) -> None:
        """Handle a request that gets no response, or no complete one: retry it or count it.

        Args:
            response: what came of the response.
            request: the request.
            outcome: the reason, and whether the request may be sent again.
        """

    def on_closed(self, connection: PooledConnection, outcome: Outcome | None) -> None:
        """Remove a connection. Called once, after `on_failure` for each request in flight.

        Args:
            connection: the connection.
            outcome: its end, where that was one without any response; else None.
        """


class Http2Listener(Protocol):
    """Owner of an HTTP/2 connection: its session, which decides what is sent.

    Every method may send requests, while there is room, and retire or close the connection.
    """

    def on_open(self) -> None:
        """Begin to send: the peer's SETTINGS have come, and allow a request."""

    def on_response(self, response: Http2Response, now: float) -> None:
        """Handle a response, read to its end."""

    def on_odd(self, text: str) -> None:
        """Count a response that is odd, and a response all the same; `text` says how."""

    def on_room(self) -> None:
        """Use the room there is for requests, which may be more or less than before.

        Called once for all that one read brought, after `on_response` and `on_failure`.
        """

    def on_failure(
        self, response: Http2Response, request: OutgoingRequest, outcome: Outcome
    ) -> None:
        """Handle a request that gets no response, or no complete one."""

    def on_closed(self, outcome: Outcome | None) -> None:
        """Forget the connection. Called once, after `on_failure` for each request in flight.

        Args:
            outcome: its end; None where that was in order.
        """


class Http2ProtocolListener(Protocol):
    """Owner of an `http2_protocol.ClientProtocol`: the connection.

    A response that has ended, in whichever way, is to be removed from `ClientProtocol.streams`.
    """

    def on_settings(self) -> None:
        """Follow the peer's SETTINGS."""

    def on_end(self, response: Http2Response) -> None:
        """Handle a response that is complete."""

    def on_reset(self, response: Http2Response, code: int) -> None:
        """Handle a stream that the peer reset."""

    def on_malformed(self, response: Http2Response, text: str) -> None:
        """Handle a malformed response, whose stream has been reset; `text` says what is wrong."""

    def on_goaway(self, last: int, code: int, data: bytes) -> None:
        """Handle a GOAWAY: streams beyond the last one get no response."""


class QueueListener(Protocol):
    """Owner of a queue: the pool, which opens connections for what waits."""

    def on_waiting(self) -> None:
        """Open a connection, if there may be one more: a request begins to wait."""

    def on_dropped(self, is_newest: bool) -> None:
        """Report a request dropped from the full queue: the one that came, or the oldest."""

    def on_too_old(self, count: int) -> None:
        """Report requests dropped that have waited for too long."""

    def on_recovered(self, now: float) -> None:
        """Record the first response since `RequestQueue.watch`."""
