"""HTTP/2 connection to a target (RFC 9113), with each request in a stream.

`ClientProtocol` parses and builds the frames. This module does the I/O: writes, timeouts, and the
handling of a target that goes away.
"""

import asyncio
from dataclasses import replace
from time import perf_counter
from typing import Final, cast

from spoakit.apps.mirror._request_cy import OutgoingRequest
from spoakit.apps.mirror.http.grpc import grpc_failure
from spoakit.apps.mirror.http.http2_head import parse_head
from spoakit.apps.mirror.http.http2_protocol import (
    MAX_STREAM_ID,
    ClientProtocol,
    ErrorCode,
    Http2Error,
)
from spoakit.apps.mirror.http.http2_response import Http2Response
from spoakit.apps.mirror.http.interfaces import Http2Listener
from spoakit.apps.mirror.http.outcome import STOPPING, Outcome, Retry, Trouble, timed_out

# Requests in flight at a time, if the peer allows more.
_MAX_STREAMS: Final = 128
# Bytes that are gathered for one write.
_BATCH_SIZE: Final = 64 * 1024
# Bytes of acknowledgements (PING, SETTINGS, ...) queued for a peer that does not read.
_MAX_UNREAD: Final = 1024 * 1024
_FRAME_HEAD_SIZE: Final = 9
_SETTINGS_TYPE: Final = 4
_PING: Final = b"alive???"
_NOT_HTTP2: Final = "the target does not speak HTTP/2"
_CODES: Final = frozenset(ErrorCode)


class Http2Connection(asyncio.Protocol):
    """Connection that sends requests as streams; response bodies are counted and discarded.

    It works over TLS with ALPN "h2", and over TCP with prior knowledge (RFC 9113, 3.3).

    Args:
        listener: the session, which decides what to send.
    """

    def __init__(self, listener: Http2Listener) -> None:
        self._goaway: Outcome | None = None
        self._listener = listener
        self._protocol = ClientProtocol(self)
        self._transport: asyncio.Transport | None = None
        self._scheme = b"http"
        self._responses = self._protocol.streams  # the oldest first
        # Responses whose request body waits for the peer's windows.
        self._bodies: dict[int, Http2Response] = {}
        self._beginning = b""  # the first bytes received, up to the size of a frame's head
        self._limit = 0  # of requests at a time; 0 until the peer's SETTINGS
        self._gathered = 0  # bytes not written yet, approximately
        self._written_id = 0  # the last stream with a frame written
        self._heard_at = 0.0
        self._write_due = self._room_due = False
        self._opened = self._retiring = self._paused = self._silent = self._closed = False

    @property
    def room(self) -> int:
        """The number of requests that may be sent now."""
        if self._retiring or self._paused or self._silent or self._closed:
            return 0
        return max(0, self._limit - len(self._responses))

    @property
    def in_flight(self) -> int:
        """The number of requests in flight."""
        return len(self._responses)

    def send(self, request: OutgoingRequest) -> None:
        """Send a request, while there is `room`; `on_response` or `on_failure` follows."""
        protocol = self._protocol
        stream_id = protocol.last_id + 2 if protocol.last_id else 1
        response = Http2Response(request, stream_id, perf_counter())
        protocol.send_head(response, parse_head(request, self._scheme))
        self._gather(len(request.wire) - response.unsent)
        if response.unsent:
            self._send_body(response)
        if stream_id >= MAX_STREAM_ID - 1:
            self._retiring = True  # RFC 9113, 5.1.1: stream identifiers are exhausted
        self._write_soon()

    def expire(self, now: float, first_byte: float, total: float) -> None:
        """Fail the requests whose response is overdue; wait for the others.

        If nothing was received since the first of them was sent, a PING is sent, and no further
        request until the peer responds. When all responses are overdue, the connection is closed.

        Args:
            now: the time, on ``time.perf_counter()``'s clock.
            first_byte: the seconds that a response's head may take.
            total: the seconds that a response may take.
        """
        if self._closed:
            return
        overdue = self._overdue(now, first_byte, total)
        if not overdue:
            return
        self._silent = self._silent or self._heard_at < overdue[0][0].sent_at
        for response, outcome in overdue:
            self._protocol.reset(response.stream_id, ErrorCode.CANCEL)
            self._fail_response(response, outcome)
            if self._closed:
                return
        if self._silent and not self._responses:
            self._end(overdue[-1][1], abort=True)
            return
        if self._silent:
            self._protocol.ping(_PING)
        self._settle()

    def give_up_opening(self, waited: float) -> None:
        """Close a connection on which the peer allowed no request within `seconds`."""
        if self._opened:
            return
        if len(self._beginning) < _FRAME_HEAD_SIZE:
            self._end(_not_http2(f"no SETTINGS within {waited:g} s: {_NOT_HTTP2}?"), abort=True)
        else:
            text = f"the target allowed no request within {waited:g} s"
            self._end(Outcome(text, "closed", Trouble.REFUSING))

    def retire(self) -> None:
        """Accept no more requests, and close after the last response."""
        self._retiring = True
        if not self._responses:
            self.close()

    def close(self) -> None:
        """Send GOAWAY and close. Requests in flight fail."""
        if not self._closed:
            self._protocol.go_away()
            self._end(STOPPING if self._responses else None)

    # Called by the event loop.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the preface (RFC 9113, 3.4)."""
        self._transport = cast(asyncio.Transport, transport)
        if transport.get_extra_info("ssl_object") is not None:
            self._scheme = b"https"
        self._heard_at = perf_counter()
        self._protocol.start()
        self._write()

    def data_received(self, data: bytes) -> None:
        """Process received frames, and write the result at once."""
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
            self._protocol.receive(data, self._heard_at)
        except Http2Error as error:
            self._protocol.go_away(error.code)
            text = f"malformed HTTP/2: {error}"
            self._end(Outcome(text, "malformed", Trouble.UNINTELLIGIBLE))
        if not self._closed:
            self._settle()

    def pause_writing(self) -> None:
        """Stop sending: the peer reads more slowly than we write."""
        self._paused = True

    def resume_writing(self) -> None:
        """Resume sending."""
        self._paused = False
        if not self._closed:
            self._room_due = True
            self._settle()

    def eof_received(self) -> None:
        """End the connection: the target closed it."""
        self._on_connection_lost("the target closed the connection")

    def connection_lost(self, error: Exception | None) -> None:
        """End the connection; the event loop also calls this after `close`."""
        self._on_connection_lost(str(error or "the connection was closed"))

    # Called by the protocol.

    def on_settings(self) -> None:
        """Apply the peer's limit; the first one above 0 opens the connection."""
        self._limit = min(_MAX_STREAMS, self._protocol.max_streams)
        if self._opened:
            self._room_due = True
        elif self._limit:
            self._opened = True
            self._listener.on_open()

    def on_end(self, response: Http2Response) -> None:
        """Report a complete response."""
        self._forget(response.stream_id)
        if response.unsent:  # the response came before the request's end
            self._protocol.reset(response.stream_id, ErrorCode.CANCEL)
        if response.received and not response.has_body:
            text = f"status {response.status} to {response.request.method!r} with a body"
            self._listener.on_odd(text)
        failure = grpc_failure(response)
        if failure is None:
            self._listener.on_response(response, self._heard_at)
        else:
            self._listener.on_failure(response, response.request, failure)

    def on_reset(self, response: Http2Response, code: int) -> None:
        """Fail a request whose stream the target reset."""
        text = f"the target reset the request's stream: {_name(code)}"
        if code == ErrorCode.REFUSED_STREAM:  # RFC 9113, 8.7
            self._fail_response(response, Outcome(text, "reset", retry=Retry.ONCE))
        else:
            self._fail_response(response, Outcome(text, "reset", Trouble.REFUSING))

    def on_malformed(self, response: Http2Response, text: str) -> None:
        """Fail a request whose response is malformed, and no other."""
        text = f"malformed response: {text}"
        self._fail_response(response, Outcome(text, "malformed", Trouble.UNINTELLIGIBLE))

    def on_goaway(self, last: int, code: int, data: bytes) -> None:
        """Fail the requests that the target has not begun to process (RFC 9113, 6.8)."""
        self._retiring = True
        text = f"the target ended the connection: {_name(code)}"
        if data:
            text += f" ({data[:80]!r})"
        unread = Outcome(text, "reset", retry=Retry.ALWAYS if last else Retry.ONCE)
        for response in [each for each in self._responses.values() if each.stream_id > last]:
            self._fail_response(response, unread)
        self._goaway = Outcome(text, "reset", Trouble.REFUSING)
        if code:
            self._end(self._goaway)

    # Sending.

    def _send_body(self, response: Http2Response) -> None:
        """Send the part of a body that the windows (RFC 9113, 6.9) and the transport allow."""
        wire = response.request.wire
        while response.unsent:
            size = self._protocol.sendable(response)
            if size <= 0 or self._paused:
                self._bodies[response.stream_id] = response
                return
            start = len(wire) - response.unsent
            self._protocol.send_data(response, wire[start : start + size])
            self._gather(size)
        self._bodies.pop(response.stream_id, None)

    def _gather(self, size: int) -> None:
        """Write at once if much is gathered, so that the transport can apply backpressure."""
        self._gathered += size
        if self._gathered >= _BATCH_SIZE:
            self._write()

    def _write_soon(self) -> None:
        """Write at the end of this iteration of the event loop, together with what it adds."""
        if not self._write_due:
            self._write_due = True
            asyncio.get_running_loop().call_soon(self._write)

    def _write(self) -> None:
        self._write_due = False
        self._gathered = 0
        data = self._protocol.data_to_send()
        if self._closed or not data:
            return
        assert self._transport is not None
        self._written_id = self._protocol.last_id
        was_paused = self._paused
        self._transport.write(data)
        if was_paused and self._transport.get_write_buffer_size() > _MAX_UNREAD:
            text = "the target does not read from the connection"
            self._end(Outcome(text, "closed", Trouble.SILENT), abort=True)

    def _settle(self) -> None:
        """Send bodies, report room, write, and close if that is due; called after each change."""
        self._write_due = True
        if self._bodies and not self._paused:
            for response in list(self._bodies.values()):
                self._send_body(response)
        if self._room_due and self._opened:
            self._room_due = False
            self._listener.on_room()
        if self._retiring and not self._responses:
            self.close()
        self._write()

    # Endings.

    def _begins_well(self, data: bytes) -> bool:
        """Return whether the first bytes can be a SETTINGS frame: a peer must begin with it (3.4).

        Without this check a text would pass for the head of a frame of megabytes.
        """
        self._beginning += data[:_FRAME_HEAD_SIZE]
        head = self._beginning[:_FRAME_HEAD_SIZE]
        if len(head) < _FRAME_HEAD_SIZE:
            return True
        if head[0] == 0 and head[3] == _SETTINGS_TYPE:
            return True
        self._end(_not_http2(f"{_NOT_HTTP2}: it begins with {self._beginning!r}"))
        return False

    def _overdue(
        self, now: float, first_byte: float, total: float
    ) -> list[tuple[Http2Response, Outcome]]:
        overdue = []
        soonest = min(first_byte, total)
        for response in self._responses.values():
            age = now - response.sent_at
            if age <= soonest:
                break
            if not response.status:
                overdue.append((response, timed_out(f"no response within {soonest:g} s")))
            elif age > total:
                overdue.append((response, timed_out(f"no whole response within {total:g} s")))
        return overdue

    def _forget(self, stream_id: int) -> Http2Response | None:
        response = self._responses.pop(stream_id, None)
        self._bodies.pop(stream_id, None)
        self._room_due = True
        return response

    def _fail_response(self, response: Http2Response, outcome: Outcome) -> None:
        if self._forget(response.stream_id) is not None:
            if response.stream_id > self._written_id and outcome.retry == Retry.NEVER:
                outcome = replace(outcome, retry=Retry.ONCE, trouble=None)
            self._listener.on_failure(response, response.request, outcome)

    def _on_connection_lost(self, text: str) -> None:
        if len(self._beginning) < _FRAME_HEAD_SIZE:
            self._end(_not_http2(f"{text} before it sent SETTINGS: {_NOT_HTTP2}?"), abort=True)
        elif self._responses:
            self._end(Outcome(text, "closed", Trouble.REFUSING), abort=True)
        else:
            self._end(None, abort=True)

    def _end(self, outcome: Outcome | None, abort: bool = False) -> None:
        if self._closed:
            return
        self._closed = self._protocol.is_over = True
        assert self._transport is not None
        if abort or self._paused:
            self._transport.abort()
        else:
            self._written_id = self._protocol.last_id
            self._transport.write(self._protocol.data_to_send())
            self._transport.close()
        outcome = outcome or self._goaway
        for response in list(self._responses.values()):
            assert outcome is not None
            self._fail_response(response, outcome)
        self._listener.on_closed(outcome)


def _not_http2(text: str) -> Outcome:
    return Outcome(text, "malformed", Trouble.UNINTELLIGIBLE)


def _name(code: int) -> str:
    return ErrorCode(code).name if code in _CODES else f"error {code}"
