"""HTTP/1.1 connection to a target, with one request at a time. Hot code.

Plain Python that compiles to C (see ``spoakit._cython``).
"""

from __future__ import annotations

import re
from math import inf
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from spoakit.apps.mirror.http._response_cy import parse_plain_response
from spoakit.apps.mirror.http.odd_heads import OddHeadError, tidy
from spoakit.apps.mirror.http.outcome import STOPPING, Outcome, Retry, Trouble, timed_out

if TYPE_CHECKING:
    from asyncio import BaseTransport
    from collections.abc import Callable

    from spoakit import _cython as cython
    from spoakit.apps.mirror._request_cy import OutgoingRequest
    from spoakit.apps.mirror.http._queue_cy import RequestQueue, RequestSlot
    from spoakit.apps.mirror.http.interfaces import ConnectionListener
else:
    try:
        import cython
    except ModuleNotFoundError:
        from spoakit import _cython as cython
    if cython.compiled:
        from cython.cimports.spoakit.apps.mirror._request_cy import OutgoingRequest
        from cython.cimports.spoakit.apps.mirror.http._queue_cy import RequestQueue, RequestSlot
    else:
        from spoakit.apps.mirror._request_cy import OutgoingRequest
        from spoakit.apps.mirror.http._queue_cy import RequestQueue, RequestSlot

# Bytes of a response's head, interim responses included, and of trailers and chunk extensions. The
# parser has no limit of its own for a field.
_MAX_HEAD_SIZE: Final = 64 * 1024

_KEEP_ALIVE: Final = re.compile(rb"\r\nkeep-alive:[^\r\n]*?timeout=([0-9]{1,6})", re.IGNORECASE)
_TIMEOUT: Final = re.compile(rb"timeout=([0-9]{1,6})")
# A connection is retired this many seconds before the target would close it: a request that is sent
# just then is lost, if it must not be sent twice.
_EARLY: Final = 1.0


@cython.final
@cython.cclass
class Connection(RequestSlot):
    """Connection that sends requests one at a time; response bodies are counted and discarded.

    It has the methods of `asyncio.Protocol`, but a C class cannot derive from it.
    """

    _listener: Any
    _queue: RequestQueue
    _forward: Any
    _transport: Any
    _parser: Any
    _request: OutgoingRequest | None
    _opened_at: cython.double
    _idle_since: cython.double
    _idle_limit: cython.double
    _retires: cython.bint
    _responses: cython.Py_ssize_t
    _size: cython.Py_ssize_t
    _raw: bytearray
    _oddity: str
    _is_head: cython.bint
    _complete: cython.bint
    _head_done: cython.bint
    _length_known: cython.bint
    _keep_alive: cython.bint
    _closes: cython.bint
    _is_odd: cython.bint
    _says_close: cython.bint
    _says_keep_alive: cython.bint
    _closed: cython.bint

    def __init__(
        self,
        listener: ConnectionListener,
        queue: RequestQueue,
        forward: Callable[[OutgoingRequest], bytes] | None = None,
    ) -> None:
        super().__init__()
        self._listener = listener
        self._queue = queue
        self._forward = forward
        self._transport = None
        self._parser = None
        self._request = None
        self._opened_at = self._idle_since = 0.0
        self._idle_limit = inf
        self._is_odd = self._says_close = self._says_keep_alive = False
        self._retires = False
        self._responses = 0
        self._size = 0
        self._is_head = self._complete = self._head_done = False
        self._raw = bytearray()
        self._oddity = ""
        self._length_known = self._keep_alive = self._closes = self._closed = False

    @property
    def opened_at(self) -> float:
        """The time at which it was opened, on ``time.perf_counter()``'s clock."""
        return self._opened_at

    @property
    def in_flight(self) -> int:
        """The number of requests in flight: 1 or 0."""
        return int(self._request is not None)

    @property
    def idle_since(self) -> float:
        """The time of its last response, or of its opening, on the same clock."""
        return self._idle_since

    @property
    def idle_limit(self) -> float:
        """The seconds that it may be idle, by the target's Keep-Alive field; else infinite."""
        return self._idle_limit

    @cython.ccall
    def send(self, request: OutgoingRequest) -> object:
        """Send a request; the listener's `on_response` or `on_failure` follows."""
        return self._send(request, perf_counter())

    @cython.cfunc
    def _send(self, request: OutgoingRequest, now: cython.double) -> object:
        wire: bytes = request.wire
        self._request = request
        self.status = 0
        self.version = b"???"
        self.received = 0
        self._is_head = wire.startswith(b"HEAD ")
        self._complete = self._head_done = self._length_known = self._keep_alive = False
        self._is_odd = self._says_close = self._says_keep_alive = False
        self._raw.clear()
        self._oddity = ""
        self._size = 0
        self.first_byte_at = 0.0
        self.sent_at = now
        self._transport.write(wire if self._forward is None else self._forward(request))
        return None

    def expire(self, now: float, first_byte: float, total: float) -> None:
        """Close the connection if its response is overdue.

        Args:
            now: ``time.perf_counter()``.
            first_byte: the seconds that the response may take to begin.
            total: the seconds that it may take to end.
        """
        if self._request is None:
            return
        waited = now - self.sent_at
        if waited > total:
            self._fail_request(timed_out(f"no whole response within {total:g} s"))
        elif waited > first_byte and not self._size:
            self._fail_request(timed_out(f"no response within {first_byte:g} s"))

    def retire(self) -> None:
        """Close the connection after the response in flight, if there is one."""
        self._retires = True
        if self._request is None:
            self._close()

    def close(self) -> None:
        """Close the connection. A request in flight fails."""
        if self._request is not None:
            self._fail_request(STOPPING)
        else:
            self._close()

    # Called by the event loop.

    def connection_made(self, transport: BaseTransport) -> None:
        """Report the connection as open."""
        self._transport = transport
        self._opened_at = self.sent_at = self._idle_since = perf_counter()
        self._listener.on_open(self)

    def data_received(self, data: bytes) -> None:
        """Parse the next bytes of the response."""
        request = self._request
        if request is None:
            self._close()  # there is no request in flight
            return
        if self._size == 0 and not self._is_head:
            plain = parse_plain_response(data)
            if plain is not None:
                self.status = plain[0]
                self.received = plain[1]
                self.version = b"1.1"
                self._keep_alive = True
                if self._responses == 0:  # targets repeat the field in each response
                    self._apply_keep_alive(_KEEP_ALIVE.search(data))
                self._finish(request)
                return
        received: cython.longlong = self.received
        if self._size == 0:
            self.first_byte_at = perf_counter()
        self._size += len(data)
        if not self._head_done:
            self._raw += data
        try:
            self._parse(data)
        except OddHeadError as error:
            text = f"malformed response: {self._oddity}: {error}"
            self._fail_request(Outcome(text, "malformed", Trouble.UNINTELLIGIBLE))
            return
        except HttpParserUpgrade:
            text = "the target changed the protocol without being asked to"
            self._fail_request(Outcome(text, "malformed", Trouble.UNINTELLIGIBLE))
            return
        if self._head_done:
            self._raw.clear()  # it may hold much of the body
        if self._complete:
            self._finish(request)
        elif self.received > received:
            self._size = len(data)
        elif self._size > _MAX_HEAD_SIZE:
            what = "trailers are" if self._head_done else "head is"
            text = f"the response's {what} over {_MAX_HEAD_SIZE} bytes"
            self._fail_request(Outcome(text, "malformed", Trouble.UNINTELLIGIBLE))

    def _parse(self, data: bytes) -> None:
        """Parse the received part of the response.

        A head that the parser refuses is tidied and parsed again. After the head, malformed bytes
        end the response, which still counts, and the connection.

        Raises:
            OddHeadError: the head cannot be understood.
            HttpParserUpgrade: see httptools.
        """
        if self._oddity and not self._head_done:
            self._parse_tidied()
            return
        if self._parser is None:
            self._parser = HttpResponseParser(self)
        try:
            self._parser.feed_data(data)
        except HttpParserError as error:
            if self._head_done:
                self._end_oddly(str(error))
            else:
                self._oddity = str(error)
                self._parse_tidied()

    def _parse_tidied(self) -> None:
        tidied = tidy(bytes(self._raw))
        if tidied is None:
            return  # the head is not complete yet
        self._count_odd(self._oddity)
        self._complete = self._head_done = self._length_known = self._keep_alive = False
        self.received = 0
        self._closes = tidied[1]
        self._parser = HttpResponseParser(self)
        try:
            self._parser.feed_data(tidied[0])
        except HttpParserError as error:
            if not self._head_done:
                raise OddHeadError(str(error)) from None
            self._end_oddly(str(error))

    def _end_oddly(self, what: str) -> None:
        """Accept a response as complete, although malformed bytes follow its head."""
        self._count_odd(what)
        self._complete = True
        self._closes = True

    def _count_odd(self, what: str) -> None:
        """Report an odd response, once for each response."""
        if not self._is_odd:
            self._is_odd = True
            self._listener.on_odd(what)

    def eof_received(self) -> None:
        """Finish or fail the request in flight: the target closed the connection."""
        self._end("the target closed the connection", in_order=True)

    def connection_lost(self, error: Exception | None) -> None:
        """Fail the request in flight; the event loop also calls this after `close`."""
        self._end(str(error or "the connection was closed"), in_order=error is None)

    # Called by the parser.

    def on_message_begin(self) -> None:
        """Note the first byte of a message; a second message is one too many."""
        if self._complete:
            self._keep_alive = False

    def on_header(self, name: bytes, value: bytes) -> None:
        """Note the fields about the end of body (RFC 9112, 6.3) and connection (9.3)."""
        if len(name) == 10:
            name = name.lower()
            if name == b"connection":
                value = value.lower()
                self._says_close |= b"close" in value
                self._says_keep_alive |= b"keep-alive" in value
            elif name == b"keep-alive":
                self._apply_keep_alive(_TIMEOUT.search(value))
        elif len(name) in (14, 17):
            name = name.lower()
            if name == b"content-length" or (
                name == b"transfer-encoding" and value.lower().endswith(b"chunked")
            ):
                self._length_known = True

    def on_headers_complete(self) -> None:
        """Note the status; an interim one (RFC 9110, 15.2) is not the response yet."""
        assert self._parser is not None
        if self._complete:
            return  # a second response, to no request
        status = self._parser.get_status_code()
        if status >= 200:
            self._head_done = True
            self.status = status
            self.version = self._parser.get_http_version().encode()
            if self._is_head:
                # The parser does not know that the request was a HEAD, and would wait for a body.
                self._complete = True
                self._keep_alive = not self._says_close and (
                    self.version == b"1.1" or self._says_keep_alive
                )

    def on_body(self, data: bytes) -> None:
        """Count the body."""
        if not self._complete:
            self.received += len(data)

    def on_message_complete(self) -> None:
        """Note whether the connection stays."""
        assert self._parser is not None
        if self._head_done and not self._complete:
            self._complete = True
            self._keep_alive = self._parser.should_keep_alive()

    def _apply_keep_alive(self, hint: re.Match[bytes] | None) -> None:
        """Limit the connection's idle time to the target's Keep-Alive field."""
        if hint is not None:
            self._idle_limit = int(hint[1]) - _EARLY

    # Endings.

    @cython.cfunc
    def _finish(self, request: OutgoingRequest) -> object:
        now: cython.double = perf_counter()
        self._request = None
        self._idle_since = now
        self._responses += 1
        if self._is_head:
            self._parser = None
            if self.received:
                self._keep_alive = False
        # A target that responds before it has read the whole request may not read the rest.
        ready: cython.bint = (
            self._keep_alive
            and not self._closes
            and self._idle_limit > 0
            and not self._retires
            and self._transport.get_write_buffer_size() == 0
        )
        following = self._queue.on_response(self, request, now, ready)
        if following is not None:
            self._send(following, now)
        elif not ready:
            self._close()
        return None

    def _end(self, reason: str, in_order: bool) -> None:
        request = self._request
        if request is None:
            self._close()
        elif in_order and self._head_done and not self._length_known:
            self._keep_alive = False
            self._finish(request)
        else:
            self._fail_request(self._outcome_of_close(request, reason))

    def _outcome_of_close(self, request: OutgoingRequest, text: str) -> Outcome:
        """Return the outcome of a request whose connection the target closed.

        If the connection was used before and no byte of a response was received, the target most
        likely closed it before it read the request. Then the close says nothing about the target's
        health. Since the target may have read it after all, only idempotent requests are sent again
        (RFC 9110, 9.2.2).
        """
        if self._responses == 0 or self._size:
            return Outcome(text, "closed", Trouble.REFUSING)
        retry = Retry.ONCE if request.is_idempotent else Retry.NEVER
        return Outcome(text, "closed", retry=retry)

    def _fail_request(self, outcome: Outcome) -> None:
        request, self._request = self._request, None
        if request is not None:
            self._transport.abort()
            self._listener.on_failure(self, request, outcome)
            self._close()

    def _close(self) -> None:
        if not self._closed:
            self._closed = True
            self._parser = None  # it has a reference to this connection
            self._transport.close()
            self._listener.on_closed(self, None)
