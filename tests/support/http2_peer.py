"""Both ends of an `Http2Connection`: a target that misbehaves on demand, and a listener."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, cast

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, Event, PingAckReceived, RequestReceived, StreamEnded
from h2.exceptions import StreamClosedError
from h2.settings import SettingCodes, Settings

from spoakit.agent.headers import Headers
from spoakit.apps.mirror._request_builder_cy import RequestBuilder
from spoakit.apps.mirror._request_cy import IncomingRequest, OutgoingRequest
from spoakit.apps.mirror.config.schema import TargetSettings
from spoakit.apps.mirror.http.http2 import Http2Connection
from spoakit.apps.mirror.http.http2_response import Http2Response
from spoakit.apps.mirror.http.outcome import Outcome
from spoakit.apps.mirror.url import TargetURL
from tests.support.waiting import until

Fields = list[tuple[bytes, bytes]]

BUILDER = RequestBuilder(TargetSettings(TargetURL.parse("http://h")))

OK: Fields = [(b":status", b"200"), (b"content-length", b"2")]


def get(path: bytes = b"/", method: bytes = b"GET", body: bytes = b"", fields: bytes = b"") -> Any:
    """Return a request."""
    head = b"Host: h\r\n" + fields + b"\r\n"
    return BUILDER.build(IncomingRequest(method, path, b"2.0", Headers(head, False), body))


def frame(kind: int, payload: bytes = b"", stream: int = 0, flags: int = 0) -> bytes:
    """Return a frame (RFC 9113, 4.1)."""
    return len(payload).to_bytes(3) + bytes((kind, flags)) + stream.to_bytes(4) + payload


@dataclass
class Seen:
    """A request as it arrived."""

    fields: Fields
    body: bytes = b""
    is_complete: bool = False


class Peer(asyncio.Protocol):
    """A target's end of one connection.

    Attributes:
        h2: its state.
        seen: the requests by their streams.
        events: all that h2 told.
        sizes: those of the pieces that came.
    """

    def __init__(self, target: "Target") -> None:
        self.target = target
        self.h2 = H2Connection(
            H2Configuration(client_side=False, header_encoding=None, validate_inbound_headers=True)
        )
        values = {SettingCodes.ENABLE_PUSH: 0, **target.settings}
        values.setdefault(SettingCodes.MAX_CONCURRENT_STREAMS, 100)
        self.h2.local_settings = Settings(client=False, initial_values=values)
        self.seen: dict[int, Seen] = {}
        self.events: list[Event] = []
        self.sizes: list[int] = []
        self.is_lost = False
        self.transport = cast(asyncio.Transport, None)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.target.peers.append(self)
        if self.target.greeting is None:
            self.h2.initiate_connection()
            self.flush()
        else:
            self.transport.write(self.target.greeting)

    def data_received(self, data: bytes) -> None:
        self.sizes.append(len(data))
        if self.target.greeting is not None:
            return
        for event in self.h2.receive_data(data):
            self.events.append(event)
            if isinstance(event, RequestReceived):
                fields = [(bytes(name), bytes(value)) for name, value in event.headers]
                self.seen[event.stream_id] = Seen(fields)
            elif isinstance(event, DataReceived):
                self.seen[event.stream_id].body += event.data
                if self.target.reads:
                    size = event.flow_controlled_length
                    with suppress(StreamClosedError):  # reset by what came with it
                        self.h2.acknowledge_received_data(size, event.stream_id)
            elif isinstance(event, StreamEnded):
                self.seen[event.stream_id].is_complete = True
                self.target.response(self, event.stream_id)
        self.flush()

    def eof_received(self) -> None:
        self.is_lost = True

    def connection_lost(self, error: Exception | None) -> None:
        self.is_lost = True

    def flush(self) -> None:
        """Write what h2 has to say."""
        data = self.h2.data_to_send()
        if data:
            self.transport.write(data)

    def response(self, stream_id: int, headers: Fields = OK, body: bytes = b"ok") -> None:
        """Response a request."""
        self.h2.send_headers(stream_id, headers, end_stream=not body)
        if body:
            self.h2.send_data(stream_id, body, end_stream=True)
        self.flush()

    def has(self, kind: type[Event]) -> bool:
        """Return whether there was such an event."""
        return any(type(event) is kind for event in self.events)

    async def pinged(self) -> None:
        """Wait until the mirror has read all that was written."""
        self.events.clear()
        self.h2.ping(b"01234567")
        self.flush()
        await until(lambda: self.has(PingAckReceived))

    def write(self, data: bytes) -> None:
        """Write bytes behind h2's back."""
        self.flush()
        self.transport.write(data)


Answering = Callable[[Peer, int], None]


def answer_ok(peer: Peer, stream_id: int) -> None:
    """Response as most targets do."""
    peer.response(stream_id)


def answer_nothing(peer: Peer, stream_id: int) -> None:
    """Let the mirror wait."""


@dataclass
class Target:
    """A server of HTTP/2.

    Attributes:
        response: what to do about a complete request.
        settings: what differs from h2's settings.
        greeting: what it says in place of HTTP/2.
        reads: whether windows are opened for what was received.
        peers: its connections.
    """

    response: Answering = answer_ok
    settings: dict[SettingCodes, int] = field(default_factory=dict)
    greeting: bytes | None = None
    reads: bool = True
    port: int = 0
    peers: list[Peer] = field(default_factory=list)

    @property
    def peer(self) -> Peer:
        """Its only connection."""
        [peer] = self.peers
        return peer

    def requests(self) -> list[Seen]:
        """Return those that arrived in whole."""
        return [seen for peer in self.peers for seen in peer.seen.values() if seen.is_complete]


@dataclass
class Listener:
    """Keeps all that a connection reports, and sends what waits when there is room."""

    waiting: list[OutgoingRequest] = field(default_factory=list)
    responses: list[tuple[Http2Response, OutgoingRequest]] = field(default_factory=list)
    failures: list[tuple[OutgoingRequest, str, bool]] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    outcome: Outcome | None = None
    connection: Http2Connection = field(init=False)

    def send(self, *requests: OutgoingRequest) -> None:
        """Send requests, now or when there is room."""
        self.waiting += requests
        self._fill()

    @property
    def error(self) -> str | None:
        """Why the connection ended; None if that was in order."""
        return None if self.outcome is None else self.outcome.text

    def statuses(self) -> list[int]:
        """Return those of the responses."""
        return [response.status for response, _ in self.responses]

    def _fill(self) -> None:
        while self.waiting and self.connection.room > 0:
            self.connection.send(self.waiting.pop(0))

    def on_open(self) -> None:
        self.calls.append("open")
        self._fill()

    def on_response(self, response: Http2Response, now: float) -> None:
        assert now >= response.sent_at
        self.calls.append("response")
        self.responses.append((response, response.request))

    def on_odd(self, text: str) -> None:
        self.calls.append("odd")

    def on_room(self) -> None:
        self.calls.append("room")
        self._fill()

    def on_failure(
        self, response: Http2Response, request: OutgoingRequest, outcome: Outcome
    ) -> None:
        assert response.request is request
        self.calls.append("failure")
        self.failures.append((request, outcome.text, bool(outcome.retry)))

    def on_closed(self, outcome: Outcome | None) -> None:
        self.outcome = outcome
        self.calls.append("closed")

    async def ended(self, count: int) -> None:
        """Wait for that many answers and failures."""
        await until(lambda: len(self.responses) + len(self.failures) >= count)


@asynccontextmanager
async def listening(response: Answering = answer_ok, **options: Any) -> AsyncIterator[Target]:
    """Run a `Target`."""
    target = Target(response, **options)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Peer(target), "127.0.0.1", 0)
    target.port = server.sockets[0].getsockname()[1]
    try:
        yield target
    finally:
        server.close()
        for peer in target.peers:
            peer.transport.abort()
        await server.wait_closed()
        await asyncio.sleep(0)


@asynccontextmanager
async def connected(
    port: int, *requests: OutgoingRequest, opens: bool = True, **options: Any
) -> AsyncIterator[Listener]:
    """Run a connection, with requests to send as soon as may be."""
    listener = Listener(list(requests))
    loop = asyncio.get_running_loop()
    connection = listener.connection = Http2Connection(listener)
    await loop.create_connection(lambda: connection, "127.0.0.1", port, **options)
    try:
        if opens:
            await until(lambda: "open" in listener.calls)
        yield listener
    finally:
        connection.close()
        assert listener.calls.count("closed") == 1
        assert connection.in_flight == 0
        await asyncio.sleep(0.01)


def names(fields: Fields) -> Sequence[bytes]:
    """Return the names of fields."""
    return [name for name, _ in fields]
