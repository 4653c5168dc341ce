"""One HTTP/2 connection to a target (RFC 9113): many requests at a time, each a stream.

`ClientProtocol` reads and writes the frames; this is what it leaves open: when to write, how long
to wait, and what to do about a target that goes away.
"""

import asyncio
from dataclasses import replace
from time import perf_counter
from typing import Final, cast

from spoakit.apps.mirror._request_cy import OutgoingRequest
from spoakit.apps.mirror.http.grpc import grpc_failure
from spoakit.apps.mirror.http.http2_head import read_head
from spoakit.apps.mirror.http.http2_protocol import (
    MAX_STREAM_ID,
    ClientProtocol,
    ErrorCode,
    Http2Error,
)
from spoakit.apps.mirror.http.http2_response import Http2Response
from spoakit.apps.mirror.http.interfaces import Http2Listener
from spoakit.apps.mirror.http.outcome import STOPPING, Outcome, Retry, Trouble, timed_out

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
_CODES: Final = frozenset(ErrorCode)


class Http2Connection(asyncio.Protocol):
    """Send requests as streams of one connection, and read the responses, whose bodies are counted.

    Whether it runs over TLS, or over TCP with prior knowledge (RFC 9113, 3.3), is the event loop's
    matter; with TLS, whoever connects asks for "h2" with ALPN.

    Args:
        listener: the owner, which decides what is sent.
    """

    def __init__(self, listener: Http2Listener) -> None:
        self._goaway: Outcome | None = None
        self._listener = listener
        self._protocol = ClientProtocol(self)
        self._transport: asyncio.Transport | None = None
        self._scheme = b"http"
        self._responses = self._protocol.streams  # the oldest first
        self._bodies: dict[int, Http2Response] = {}  # those that wait for a window
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
        return max(0, self._limit - len(self._responses))

    @property
    def in_flight(self) -> int:
        """How many responses are awaited."""
        return len(self._responses)

    def send(self, request: OutgoingRequest) -> None:
        """Send a request, while there is `room`; `on_response` or `on_failure` will follow."""
        protocol = self._protocol
        stream_id = protocol.last_id + 2 if protocol.last_id else 1
        response = Http2Response(request, stream_id, perf_counter())
        protocol.send_head(response, read_head(request, self._scheme))
        self._gather(len(request.wire) - response.unsent)
        if response.unsent:
            self._send_body(response)
        if stream_id >= MAX_STREAM_ID - 1:
            self._retiring = True  # RFC 9113, 5.1.1: there are no more identifiers
        self._write_soon()

    def expire(self, now: float, first_byte: float, total: float) -> None:
        """Give up the responses that are overdue; the others are waited for.

        Where nothing at all came since the first of those was sent, no more is sent until the peer
        says something (it is asked with a PING), and once all responses are overdue the connection
        is given up.

        Args:
            now: the time, on ``time.perf_counter()``'s clock.
            first_byte: how many seconds a response's head may take.
            total: how many seconds a response may take.
        """
        if self._closed:
            return
        overdue = self._overdue(now, first_byte, total)
        if not overdue:
            return
        self._silent = self._silent or self._heard_at < overdue[0][0].sent_at
        for response, outcome in overdue:
            self._protocol.reset(response.stream_id, ErrorCode.CANCEL)
            self._fail(response, outcome)
            if self._closed:
                return
        if self._silent and not self._responses:
            self._end(overdue[-1][1], abort=True)
            return
        if self._silent:
            self._protocol.ping(_PING)
        self._settle()

    def give_up_opening(self, waited: float) -> None:
        """Close a connection on which no request was allowed in so many seconds."""
        if self._opened:
            return
        if len(self._beginning) < _FRAME_HEAD_SIZE:
            self._end(_not_http2(f"no SETTINGS within {waited:g} s: {_NOT_HTTP2}?"), abort=True)
        else:
            text = f"the target allowed no request within {waited:g} s"
            self._end(Outcome(text, "closed", Trouble.REFUSING))

    def retire(self) -> None:
        """Take no more requests, and close when the last response is in."""
        self._retiring = True
        if not self._responses:
            self.close()

    def close(self) -> None:
        """Say goodbye (GOAWAY) and close. Requests on their way fail."""
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
            self._protocol.receive(data, self._heard_at)
        except Http2Error as error:
            self._protocol.go_away(error.code)
            text = f"malformed HTTP/2: {error}"
            self._end(Outcome(text, "malformed", Trouble.UNINTELLIGIBLE))
        if not self._closed:
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

    # Called by the protocol.

    def on_settings(self) -> None:
        """Follow the peer's limit; the first that allows a request opens the connection."""
        self._limit = min(_MAX_STREAMS, self._protocol.max_streams)
        if self._opened:
            self._room_due = True
        elif self._limit:
            self._opened = True
            self._listener.on_open()

    def on_end(self, response: Http2Response) -> None:
        """Pass on a response that is complete."""
        self._forget(response.stream_id)
        if response.unsent:  # it was answered without being read
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
            self._fail(response, Outcome(text, "reset", retry=Retry.ONCE))
        else:
            self._fail(response, Outcome(text, "reset", Trouble.REFUSING))

    def on_malformed(self, response: Http2Response, text: str) -> None:
        """Fail a request whose response is malformed, and no other."""
        text = f"malformed response: {text}"
        self._fail(response, Outcome(text, "malformed", Trouble.UNINTELLIGIBLE))

    def on_goaway(self, last: int, code: int, data: bytes) -> None:
        """See the target go away: what it has not begun, it will not (RFC 9113, 6.8)."""
        self._retiring = True
        text = f"the target ended the connection: {_name(code)}"
        if data:
            text += f" ({data[:80]!r})"
        unread = Outcome(text, "reset", retry=Retry.ALWAYS if last else Retry.ONCE)
        for response in [each for each in self._responses.values() if each.stream_id > last]:
            self._fail(response, unread)
        self._goaway = Outcome(text, "reset", Trouble.REFUSING)
        if code:
            self._end(self._goaway)

    # Sending.

    def _send_body(self, response: Http2Response) -> None:
        """Send what the windows (RFC 9113, 6.9) and the transport allow of a body."""
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
        data = self._protocol.data_to_send()
        if self._closed or not data:
            return
        assert self._transport is not None
        self._written_id = self._protocol.last_id
        was_paused = self._paused
        self._transport.write(data)
        if was_paused and self._transport.get_write_buffer_size() > _MAX_UNREAD:
            text = "the target does not read what it is sent"
            self._end(Outcome(text, "closed", Trouble.SILENT), abort=True)

    def _settle(self) -> None:
        """Do what follows from a change: go on with bodies, tell of room, write, be done."""
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
        """Return whether what came can be a SETTINGS frame, with which a peer begins (3.4).

        A text would be taken for a frame of megabytes.
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

    def _fail(self, response: Http2Response, outcome: Outcome) -> None:
        if self._forget(response.stream_id) is not None:
            if response.stream_id > self._written_id and outcome.retry == Retry.NEVER:
                outcome = replace(outcome, retry=Retry.ONCE, trouble=None)
            self._listener.on_failure(response, response.request, outcome)

    def _lose(self, text: str) -> None:
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
            self._fail(response, outcome)
        self._listener.on_closed(outcome)


def _not_http2(text: str) -> Outcome:
    return Outcome(text, "malformed", Trouble.UNINTELLIGIBLE)


def _name(code: int) -> str:
    return ErrorCode(code).name if code in _CODES else f"error {code}"
