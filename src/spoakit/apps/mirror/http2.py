"""One HTTP/2 connection to a target (RFC 9113): many requests at a time, each a stream.

The h2 library keeps the protocol's state; this is what it leaves open: when to write, whom to
tell, how long to wait, and what to do about a target that goes away.
"""

import asyncio
from collections.abc import Callable
from enum import IntEnum
from time import perf_counter
from typing import Any, Final, Protocol, cast

from h2.errors import ErrorCodes
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    RemoteSettingsChanged,
    ResponseReceived,
    StreamEnded,
    StreamReset,
    TrailersReceived,
)
from h2.exceptions import ProtocolError

from spoakit.apps.mirror._request_cy import Request
from spoakit.apps.mirror.http2_head import read_head
from spoakit.apps.mirror.http2_protocol import CONNECTION_WINDOW, ClientProtocol
from spoakit.apps.mirror.metrics import Failure

# Requests on their way at a time, where the peer allows more.
_MAX_STREAMS: Final = 128
# What is gathered for one write.
_BATCH_SIZE: Final = 64 * 1024
# What may wait for a peer that asks (PING, SETTINGS, ...) and does not read.
_MAX_UNREAD: Final = 1024 * 1024
_FRAME_HEAD_SIZE: Final = 9
_SETTINGS_TYPE: Final = 4
_PING: Final = b"alive???"
_NOT_HTTP2: Final = "the target does not speak HTTP/2"


class Retry(IntEnum):
    """Whether a request that got no answer may be sent again: only what was not acted on may."""

    NEVER = 0
    ONCE = 1
    ALWAYS = 2


class Owner(Protocol):
    """Who a connection reports to, and who decides what is sent.

    Every method may call `Http2Connection.send` (while there is `Http2Connection.room`),
    `Http2Connection.retire` and `Http2Connection.close`.
    """

    def on_open(self, connection: "Http2Connection") -> None:
        """Take a new connection: the peer's SETTINGS have come, and allow a request."""

    def on_answer(
        self, connection: "Http2Connection", answer: "Http2Answer", request: Request, now: float
    ) -> None:
        """Take note of an answer, read to its end."""

    def on_room(self, connection: "Http2Connection") -> None:
        """Send more: there is room, and an answer has ended or there was none before.

        Called once for all that one read brought, after `on_answer` and `on_failure`.
        """

    def on_failure(
        self,
        connection: "Http2Connection",
        answer: "Http2Answer",
        request: Request,
        error: Failure,
        retry: Retry,
    ) -> None:
        """Take note that there will be no answer, or no whole one.

        Unless `retry` is NEVER, the peer has certainly not acted on the request. It is ALWAYS where
        the peer has taken others over this connection: then sending it again, over another one,
        comes to an end.
        """

    def on_closed(self, connection: "Http2Connection") -> None:
        """Forget the connection. Called once, after `on_failure` for each answer that is due."""


class Http2Answer:
    """An answer that is awaited or has been read; see `access_log.Answer`.

    Attributes:
        request: what is answered.
        stream_id: its stream.
        sent_at: when the request was sent, on ``time.perf_counter()``'s clock.
        first_byte_at: when the answer's head came, on the same clock.
        status: the status; 0 before there is one.
        received: the bytes of the body so far, without padding.
        grpc_status: a gRPC call's status, as "0"; None where there is none.
        unsent: the bytes of the request's body that wait for the peer's windows to open.
    """

    __slots__ = (
        "first_byte_at",
        "grpc_status",
        "received",
        "request",
        "sent_at",
        "status",
        "stream_id",
        "unsent",
    )

    def __init__(self, request: Request, stream_id: int, sent_at: float) -> None:
        self.request: Final = request
        self.stream_id: Final = stream_id
        self.sent_at: Final = sent_at
        self.first_byte_at = 0.0
        self.status = 0
        self.received = 0
        self.grpc_status: bytes | None = None
        self.unsent = request.body_size

    @property
    def version(self) -> bytes:
        """The HTTP version, b"2"; b"???" before there is an answer."""
        return b"2" if self.status else b"???"


class Http2Connection(asyncio.Protocol):
    """Send requests as streams of one connection, and read the answers, whose bodies are counted.

    Whether it runs over TLS, or over TCP with prior knowledge (RFC 9113, 3.3), is the event loop's
    matter; with TLS, whoever connects asks for "h2" with ALPN.

    Attributes:
        error: why the connection ended; None while it has not, and where it ended in order.
        goaway: what the target said when it went away; None if it did not.
    """

    def __init__(self, owner: Owner) -> None:
        self.error: str | None = None
        self.goaway: str | None = None
        self._owner = owner
        self._h2 = ClientProtocol()
        self._transport: asyncio.Transport | None = None
        self._scheme = b"http"
        self._answers: dict[int, Http2Answer] = {}  # the oldest first
        self._bodies: dict[int, Http2Answer] = {}  # those that wait for a window
        self._beginning = b""  # of what came, up to a frame's head
        self._limit = 0  # of requests at a time; the peer's SETTINGS come first
        self._gathered = 0  # bytes that were not written yet, about
        self._written_id = 0  # the last stream that anything was written of
        self._heard_at = 0.0
        self._write_due = self._room_due = False
        self._opened = self._retiring = self._paused = self._silent = self._closed = False

    @property
    def room(self) -> int:
        """How many requests may be sent now."""
        if self._retiring or self._paused or self._silent or self._closed:
            return 0
        return max(0, self._limit - len(self._answers))

    @property
    def in_flight(self) -> int:
        """How many answers are awaited."""
        return len(self._answers)

    def send(self, request: Request) -> None:
        """Send a request, while there is `room`; `on_answer` or `on_failure` will follow."""
        h2 = self._h2
        stream_id = h2.get_next_available_stream_id()
        answer = Http2Answer(request, stream_id, perf_counter())
        h2.send_headers(stream_id, read_head(request, self._scheme), not answer.unsent)
        self._answers[stream_id] = answer
        h2.in_flight = len(self._answers)
        self._gather(len(request.wire) - answer.unsent)
        if answer.unsent:
            self._send_body(answer)
        if stream_id >= h2.HIGHEST_ALLOWED_STREAM_ID - 1:
            self._retiring = True  # RFC 9113, 5.1.1: there are no more identifiers
        self._write_soon()

    def expire(self, now: float, first_byte: float, total: float) -> None:
        """Give up the answers that are overdue; the others are waited for.

        Where nothing at all came since the first of those was sent, no more is sent until the peer
        says something (it is asked with a PING), and once all answers are overdue the connection
        is given up.

        Args:
            now: the time, on ``time.perf_counter()``'s clock.
            first_byte: how many seconds an answer's head may take.
            total: how many seconds an answer may take.
        """
        if self._closed:
            return
        overdue = self._overdue(now, first_byte, total)
        if not overdue:
            return
        self._silent = self._silent or self._heard_at < overdue[0][0].sent_at
        for answer, error in overdue:
            self._reset(answer.stream_id)
            self._fail(answer, error)
            if self._closed:
                return
        if self._silent and not self._answers:
            self._end(overdue[-1][1], abort=True)
            return
        if self._silent:
            self._h2.ping(_PING)
        self._settle()

    def give_up_opening(self, waited: float) -> None:
        """Close a connection on which no request was allowed in so many seconds."""
        if self._opened:
            return
        if len(self._beginning) < _FRAME_HEAD_SIZE:
            self._end(f"no SETTINGS within {waited:g} s: {_NOT_HTTP2}?", abort=True)
        else:
            self._end(f"the target allowed no request within {waited:g} s")

    def retire(self) -> None:
        """Take no more requests, and close when the last answer is in."""
        self._retiring = True
        if not self._answers:
            self.close()

    def close(self) -> None:
        """Say goodbye (GOAWAY) and close. Requests on their way fail."""
        if not self._closed:
            self._h2.close_connection()
            error = Failure("the mirror is stopping", "stopping")
            self._end(error if self._answers else None)

    # Called by the event loop.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the preface (RFC 9113, 3.4)."""
        self._transport = cast(asyncio.Transport, transport)
        if transport.get_extra_info("ssl_object") is not None:
            self._scheme = b"https"
        self._heard_at = perf_counter()
        self._h2.initiate_connection()
        self._h2.increment_flow_control_window(CONNECTION_WINDOW)
        self._write()

    def data_received(self, data: bytes) -> None:
        """Read on in the frames, and write all that follows from them at once."""
        if self._closed:
            return
        if len(self._beginning) < _FRAME_HEAD_SIZE and not self._begins_well(data):
            return
        self._heard_at = perf_counter()
        if self._silent:
            self._silent = False
            self._room_due = True
        self._write_due = True
        try:
            events = self._h2.receive_data(data)
        except ProtocolError as error:
            text = f"malformed HTTP/2: {type(error).__name__}: {error}"
            self._end(Failure(text, "malformed"))
            return
        for event in events:
            handle = _HANDLERS.get(type(event))
            if handle is not None:
                handle(self, event)
                if self._closed:
                    return
        self._settle()

    def pause_writing(self) -> None:
        """Send nothing more: the peer reads slower than we write."""
        self._paused = True

    def resume_writing(self) -> None:
        """Go on sending."""
        self._paused = False
        if not self._closed:
            self._room_due = True
            self._settle()

    def eof_received(self) -> None:
        """See the target close the connection."""
        self._lose("the target closed the connection")

    def connection_lost(self, error: Exception | None) -> None:
        """See the connection end in any way; the event loop calls it after a close, too."""
        self._lose(str(error or "the connection was closed"))

    # Events of h2.

    def _on_settings(self, event: RemoteSettingsChanged) -> None:
        self._limit = min(_MAX_STREAMS, self._h2.remote_settings.max_concurrent_streams)
        if self._opened:
            self._room_due = True
        elif self._limit:
            self._opened = True
            self._owner.on_open(self)

    def _on_response(self, event: ResponseReceived) -> None:
        answer = self._answers.get(event.stream_id)
        if answer is None:
            return
        answer.first_byte_at = self._heard_at
        for name, value in event.headers:
            if name == b":status" and len(value) == 3 and value.isdigit():
                answer.status = int(value)
            elif name == b"grpc-status":  # of a call without messages, which has no trailers
                answer.grpc_status = value
        if not answer.status:
            self._reset(event.stream_id, ErrorCodes.PROTOCOL_ERROR)
            self._fail(answer, Failure("malformed answer: it has no status", "malformed"))

    def _on_data(self, event: DataReceived) -> None:
        answer = self._answers.get(event.stream_id)
        if answer is not None:
            answer.received += len(event.data)
        if event.flow_controlled_length:
            self._h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)

    def _on_trailers(self, event: TrailersReceived) -> None:
        answer = self._answers.get(event.stream_id)
        if answer is not None:
            answer.grpc_status = dict(event.headers).get(b"grpc-status", answer.grpc_status)

    def _on_end(self, event: StreamEnded) -> None:
        answer = self._forget(event.stream_id)
        if answer is not None:
            if answer.unsent:
                self._reset(answer.stream_id)  # it was answered without being read
            self._owner.on_answer(self, answer, answer.request, self._heard_at)

    def _on_reset(self, event: StreamReset) -> None:
        answer = self._answers.get(event.stream_id)
        if answer is not None:
            who = "the target reset" if event.remote_reset else "we had to reset"
            error = f"{who} the request's stream: {_name(event.error_code)}"
            is_refused = event.error_code == ErrorCodes.REFUSED_STREAM  # RFC 9113, 8.7
            retry = Retry.ONCE if is_refused else Retry.NEVER
            self._fail(answer, Failure(error, "reset"), retry)

    def _on_goaway(self, event: ConnectionTerminated) -> None:
        """See the target go away: what it has not begun, it will not (RFC 9113, 6.8)."""
        self._retiring = True
        error = f"the target ended the connection: {_name(event.error_code)}"
        if event.additional_data:
            error += f" ({event.additional_data[:80]!r})"
        self.goaway = error
        last = event.last_stream_id or 0
        for answer in [each for each in self._answers.values() if each.stream_id > last]:
            self._fail(answer, Failure(error, "reset"), Retry.ALWAYS if last else Retry.ONCE)
        if event.error_code:
            self._end(Failure(error, "reset"))

    # Sending.

    def _send_body(self, answer: Http2Answer) -> None:
        """Send what the windows (RFC 9113, 6.9) and the transport allow of a body."""
        h2 = self._h2
        wire = answer.request.wire
        while answer.unsent:
            window = h2.local_flow_control_window(answer.stream_id)
            size = min(answer.unsent, window, h2.max_outbound_frame_size, _BATCH_SIZE)
            if size <= 0 or self._paused:
                self._bodies[answer.stream_id] = answer
                return
            start = len(wire) - answer.unsent
            answer.unsent -= size
            h2.send_data(answer.stream_id, wire[start : start + size], not answer.unsent)
            self._gather(size)
        self._bodies.pop(answer.stream_id, None)

    def _gather(self, size: int) -> None:
        """Write at once if much has come together, so that the transport can say it is enough."""
        self._gathered += size
        if self._gathered >= _BATCH_SIZE:
            self._write()

    def _write_soon(self) -> None:
        """Write what there is, together with what else this round of the event loop brings."""
        if not self._write_due:
            self._write_due = True
            asyncio.get_running_loop().call_soon(self._write)

    def _write(self) -> None:
        self._write_due = False
        self._gathered = 0
        data = self._h2.data_to_send()
        if self._closed or not data:
            return
        assert self._transport is not None
        self._written_id = self._h2.highest_outbound_stream_id
        was_paused = self._paused
        self._transport.write(data)
        if was_paused and self._transport.get_write_buffer_size() > _MAX_UNREAD:
            self._end("the target does not read what it is sent", abort=True)

    def _settle(self) -> None:
        """Do what follows from a change: go on with bodies, tell of room, write, be done."""
        self._write_due = True
        if self._bodies and not self._paused:
            for answer in list(self._bodies.values()):
                self._send_body(answer)
        if self._room_due and self.room > 0:
            self._room_due = False
            self._owner.on_room(self)
        if self._retiring and not self._answers:
            self.close()
        self._write()

    # Endings.

    def _begins_well(self, data: bytes) -> bool:
        """Return whether what came can be a SETTINGS frame, with which a peer begins (3.4).

        h2 would take a text for a frame of megabytes, and wait for the rest of it.
        """
        self._beginning += data[:_FRAME_HEAD_SIZE]
        head = self._beginning[:_FRAME_HEAD_SIZE]
        if len(head) < _FRAME_HEAD_SIZE:
            return True
        if head[0] == 0 and head[3] == _SETTINGS_TYPE:
            return True
        self._end(f"{_NOT_HTTP2}: it begins with {self._beginning!r}")
        return False

    def _overdue(
        self, now: float, first_byte: float, total: float
    ) -> list[tuple[Http2Answer, Failure]]:
        overdue = []
        soonest = min(first_byte, total)
        for answer in self._answers.values():
            age = now - answer.sent_at
            if age <= soonest:
                break
            if not answer.status:
                overdue.append((answer, Failure(f"no answer within {soonest:g} s", "timeout")))
            elif age > total:
                error = Failure(f"no whole answer within {total:g} s", "timeout")
                overdue.append((answer, error))
        return overdue

    def _forget(self, stream_id: int) -> Http2Answer | None:
        answer = self._answers.pop(stream_id, None)
        self._bodies.pop(stream_id, None)
        self._h2.in_flight = len(self._answers)
        self._room_due = True
        return answer

    def _fail(self, answer: Http2Answer, error: Failure, retry: Retry = Retry.NEVER) -> None:
        if self._forget(answer.stream_id) is not None:
            if answer.stream_id > self._written_id:
                retry = max(retry, Retry.ONCE)
            self._owner.on_failure(self, answer, answer.request, error, retry)

    def _reset(self, stream_id: int, code: ErrorCodes = ErrorCodes.CANCEL) -> None:
        stream = self._h2.streams.get(stream_id)
        if stream is not None and not stream.closed:
            self._h2.reset_stream(stream_id, code)

    def _lose(self, reason: str) -> None:
        if len(self._beginning) < _FRAME_HEAD_SIZE:
            self._end(f"{reason} before it sent SETTINGS: {_NOT_HTTP2}?", abort=True)
        else:
            self._end(reason if self._answers else None, abort=True)

    def _end(self, error: str | None, abort: bool = False) -> None:
        if self._closed:
            return
        self._closed = True
        self.error = error
        assert self._transport is not None
        if abort or self._paused:
            self._transport.abort()
        else:
            self._written_id = self._h2.highest_outbound_stream_id
            self._transport.write(self._h2.data_to_send())
            self._transport.close()
        for answer in list(self._answers.values()):
            failure = error if isinstance(error, Failure) else Failure(error or "", "closed")
            self._fail(answer, failure)
        self._owner.on_closed(self)


def _name(code: ErrorCodes | int | None) -> str:
    return code.name if isinstance(code, ErrorCodes) else f"error {code}"


_HANDLERS: Final[dict[type[Event], Callable[[Http2Connection, Any], None]]] = {
    RemoteSettingsChanged: Http2Connection._on_settings,
    ResponseReceived: Http2Connection._on_response,
    DataReceived: Http2Connection._on_data,
    TrailersReceived: Http2Connection._on_trailers,
    StreamEnded: Http2Connection._on_end,
    StreamReset: Http2Connection._on_reset,
    ConnectionTerminated: Http2Connection._on_goaway,
}
