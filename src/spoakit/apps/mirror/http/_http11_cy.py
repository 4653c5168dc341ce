"""One HTTP/1.1 connection to a target: a request, its response, the next request. Hot code.

Plain Python that compiles to C (see ``spoakit._cython``).
"""

from __future__ import annotations

import re
from math import inf
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from spoakit.apps.mirror.http._response_cy import read_plain_response
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

# A response's head, interim ones included; none needs as much. Neither do trailers or a chunk's
# extensions, and the parser would gather a field without end.
_MAX_HEAD_SIZE: Final = 64 * 1024

_KEEP_ALIVE: Final = re.compile(rb"\r\nkeep-alive:[^\r\n]*?timeout=([0-9]{1,6})", re.IGNORECASE)
_TIMEOUT: Final = re.compile(rb"timeout=([0-9]{1,6})")
# Seconds before a target would close an unused connection at which it is not used any more: a
# request that meets the end of its connection is lost, if it must not be sent twice.
_EARLY: Final = 1.0


@cython.final
@cython.cclass
class Connection(RequestSlot):
    """Send requests one at a time, and read the responses, whose bodies are counted and not kept.

    An `asyncio.Protocol` in all but its base class, which a class of C cannot have.
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
        """When it was opened, on ``time.perf_counter()``'s clock."""
        return self._opened_at

    @property
    def in_flight(self) -> int:
        """The number of requests that wait for their response: 1 or 0."""
        return int(self._request is not None)

    @property
    def idle_since(self) -> float:
        """When its last response was complete, or it was opened, on the same clock."""
        return self._idle_since

    @property
    def idle_limit(self) -> float:
        """The seconds that it may be unused, by what the target says; infinite if it is silent."""
        return self._idle_limit

    @cython.ccall
    def send(self, request: OutgoingRequest) -> object:
        """Send a request; `on_response` or `on_failure` will follow."""
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
        """Give up on a response that is overdue, and so on the connection.

        Args:
            now: ``time.perf_counter()``.
            first_byte: the seconds that the response may take to begin.
            total: the seconds that it may take to end.
        """
        if self._request is None:
            return
        waited = now - self.sent_at
        if waited > total:
            self._fail(timed_out(f"no whole response within {total:g} s"))
        elif waited > first_byte and not self._size:
            self._fail(timed_out(f"no response within {first_byte:g} s"))

    def retire(self) -> None:
        """Close the connection once the response that is awaited has come."""
        self._retires = True
        if self._request is None:
            self._close()

    def close(self) -> None:
        """Close the connection. A request on its way fails."""
        if self._request is not None:
            self._fail(STOPPING)
        else:
            self._close()

    # Called by the event loop.

    def connection_made(self, transport: BaseTransport) -> None:
        """Offer the connection to the queue."""
        self._transport = transport
        self._opened_at = self.sent_at = self._idle_since = perf_counter()
        self._listener.on_open(self)

    def data_received(self, data: bytes) -> None:
        """Read on in the response."""
        request = self._request
        if request is None:
            self._close()  # nothing was asked
            return
        if self._size == 0 and not self._is_head:
            plain = read_plain_response(data)
            if plain is not None:
                self.status = plain[0]
                self.received = plain[1]
                self.version = b"1.1"
                self._keep_alive = True
                if self._responses == 0:  # it says the same each time
                    self._heed(_KEEP_ALIVE.search(data))
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
            self._fail(Outcome(text, "malformed", Trouble.UNINTELLIGIBLE))
            return
        except HttpParserUpgrade:
            text = "the target changed the protocol, which nobody asked for"
            self._fail(Outcome(text, "malformed", Trouble.UNINTELLIGIBLE))
            return
        if self._head_done:
            self._raw.clear()  # which may have much of the body
        if self._complete:
            self._finish(request)
        elif self.received > received:
            self._size = len(data)
        elif self._size > _MAX_HEAD_SIZE:
            what = "trailers are" if self._head_done else "head is"
            text = f"the response's {what} over {_MAX_HEAD_SIZE} bytes"
            self._fail(Outcome(text, "malformed", Trouble.UNINTELLIGIBLE))

    def _parse(self, data: bytes) -> None:
        """Parse what has come of the response.

        What the parser refuses of a head is tried again, tidied. Once the head has been read it is
        a response: whatever is odd behind it ends it, and the connection.

        Raises:
            OddHeadError: the head means nothing.
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
            return  # the rest of the head is to come
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
        """Take a response as complete, though something odd is behind its head."""
        self._count_odd(what)
        self._complete = True
        self._closes = True

    def _count_odd(self, what: str) -> None:
        """Report an odd response, once however much is odd about it."""
        if not self._is_odd:
            self._is_odd = True
            self._listener.on_odd(what)

    def eof_received(self) -> None:
        """See the target close the connection."""
        self._end("the target closed the connection", in_order=True)

    def connection_lost(self, error: Exception | None) -> None:
        """See the connection end in any way; the event loop calls it after a close, too."""
        self._end(str(error or "the connection was closed"), in_order=error is None)

    # Called by the parser. What it has to say of a complete message, it says only in here.

    def on_message_begin(self) -> None:
        """See the first byte of a message, which is one too many after the response."""
        if self._complete:
            self._keep_alive = False

    def on_header(self, name: bytes, value: bytes) -> None:
        """Learn how the body ends (RFC 9112, 6.3), and whether the connection stays (9.3)."""
        if len(name) == 10:
            name = name.lower()
            if name == b"connection":
                value = value.lower()
                self._says_close |= b"close" in value
                self._says_keep_alive |= b"keep-alive" in value
            elif name == b"keep-alive":
                self._heed(_TIMEOUT.search(value))
        elif len(name) in (14, 17):
            name = name.lower()
            if name == b"content-length" or (
                name == b"transfer-encoding" and value.lower().endswith(b"chunked")
            ):
                self._length_known = True

    def on_headers_complete(self) -> None:
        """Learn the status; an interim one (RFC 9110, 15.2) is not the response yet."""
        assert self._parser is not None
        if self._complete:
            return  # of a second response, which nobody asked for
        status = self._parser.get_status_code()
        if status >= 200:
            self._head_done = True
            self.status = status
            self.version = self._parser.get_http_version().encode()
            if self._is_head:
                # The parser waits for a body now, which does not come, and takes one without a
                # length for a reason to close.
                self._complete = True
                self._keep_alive = not self._says_close and (
                    self.version == b"1.1" or self._says_keep_alive
                )

    def on_body(self, data: bytes) -> None:
        """Count the body."""
        if not self._complete:
            self.received += len(data)

    def on_message_complete(self) -> None:
        """Learn whether the connection stays."""
        assert self._parser is not None
        if self._head_done and not self._complete:
            self._complete = True
            self._keep_alive = self._parser.should_keep_alive()

    def _heed(self, hint: re.Match[bytes] | None) -> None:
        """Use the connection no longer than the target says that it keeps it."""
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
        # A target that responds before it has read the request may not read on.
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
            self._fail(self._closed_by_target(request, reason))

    def _closed_by_target(self, request: OutgoingRequest, text: str) -> Outcome:
        """Return the outcome of a request that met the end of its connection.

        A connection that was used before and sent nothing of a response was most likely closed
        before the target saw the request, and says nothing about the target. A request that it saw
        after all may be sent again if that has the effect of once (RFC 9110, 9.2.2).
        """
        if self._responses == 0 or self._size:
            return Outcome(text, "closed", Trouble.REFUSING)
        retry = Retry.ONCE if request.is_idempotent else Retry.NEVER
        return Outcome(text, "closed", retry=retry)

    def _fail(self, outcome: Outcome) -> None:
        request, self._request = self._request, None
        if request is not None:
            self._transport.abort()
            self._listener.on_failure(self, request, outcome)
            self._close()

    def _close(self) -> None:
        if not self._closed:
            self._closed = True
            self._parser = None  # which refers to this connection
            self._transport.close()
            self._listener.on_closed(self, None)
