# cython: wraparound=False
"""Requests: one as HAProxy describes it, and its copy as a target receives it. Hot code.

Plain Python that compiles to C (see ``spoakit._cython``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from spoakit import Headers

if TYPE_CHECKING:
    from spoakit import _cython as cython
else:
    try:
        import cython
    except ModuleNotFoundError:
        from spoakit import _cython as cython

COMPILED: bool = cython.compiled

# RFC 9110, 9.2.2: sent twice, these have the effect of once.
_IDEMPOTENT: frozenset[bytes] = frozenset(
    (b"GET", b"HEAD", b"OPTIONS", b"PUT", b"DELETE", b"TRACE", b"PROPFIND", b"REPORT", b"SEARCH")
)

# Reasons to suspect that a body was cut; see `OutgoingRequest.suspect`.
NOT_WAITED_FOR: str = "not_waited_for"
PROBABLY_CUT: str = "probably_cut"


@cython.final
@cython.freelist(8)
@cython.cclass
class IncomingRequest:
    """Request as HAProxy describes it, of which copies are made.

    Args:
        method: the method.
        target: a path with its query, a complete URL (the absolute form), or ``*``.
        version: the HTTP version, as b"1.1" or b"2.0".
        headers: the fields: a ``req.hdrs_bin`` (names and values, each behind its length as a
            varint, up to an empty pair) or a ``req.hdrs`` (lines that end with CR LF).
        body: the body, perhaps empty; None if the message has no argument for it.
        size: the full size of the body; -1 if HAProxy does not send it.
        source: the client's address as text; empty if HAProxy does not send it.
        request_id: the request's ID, likewise.
        key: the value to sample by, likewise.
        max_frame_size: the largest size of the frame in bytes; 0 if it is not known.

    Attributes:
        has_body: whether the message has an argument for the body.
        is_http2: whether the client used HTTP/2 or a later version.
    """

    if not cython.compiled:
        method: bytes
        target: bytes
        version: bytes
        headers: Headers
        body: bytes
        has_body: bool
        size: int
        source: bytes
        request_id: bytes
        key: bytes
        max_frame_size: int
        is_http2: bool

    def __init__(
        self,
        method: bytes,
        target: bytes,
        version: bytes,
        headers: Headers,
        body: bytes | None = b"",
        size: int = -1,
        source: bytes = b"",
        request_id: bytes = b"",
        key: bytes = b"",
        max_frame_size: int = 0,
    ) -> None:
        self.method = method
        self.target = target
        self.version = version
        self.headers = headers
        self.body = b"" if body is None else body
        self.has_body = body is not None
        self.size = size
        self.source = source
        self.request_id = request_id
        self.key = key
        self.max_frame_size = max_frame_size
        self.is_http2 = version >= b"2"


@cython.final
@cython.freelist(64)
@cython.cclass
class OutgoingRequest:
    """Copy of a request as it is sent: one bytes object, since queues are long.

    Args:
        wire: the request line, the fields, the empty line and the body.
        head_size: the bytes before the body.
        method_size: the bytes of the method.
        target_size: the bytes of the target.
        missing: the number of bytes of the body that HAProxy's buffer did not hold.
        retried: whether it was sent once already, without a response.
        suspect: the reason to suspect that the body was cut; "" for none. "not_waited_for": a
            Transfer-Encoding announces a body, and there is none. "probably_cut": the size of the
            body is unknown, and its frame is nearly full.

    Attributes:
        waiting_since: the time at which it was queued, on ``time.perf_counter()``'s clock.
    """

    if not cython.compiled:
        wire: bytes
        head_size: int
        method_size: int
        target_size: int
        missing: int
        retried: bool
        suspect: str
        waiting_since: float

    def __init__(
        self,
        wire: bytes,
        head_size: int,
        method_size: int,
        target_size: int,
        missing: int = 0,
        retried: bool = False,
        suspect: str = "",
    ) -> None:
        self.wire = wire
        self.head_size = head_size
        self.method_size = method_size
        self.target_size = target_size
        self.missing = missing
        self.retried = retried
        self.suspect = suspect
        self.waiting_since = 0.0

    @property
    def body_size(self) -> int:
        """The size of the body in bytes."""
        return len(self.wire) - self.head_size

    @property
    def method(self) -> bytes:
        """The method, in its original case."""
        return self.wire[: self.method_size]

    @property
    def target(self) -> bytes:
        """The request target: a path with its query, or ``*``."""
        start: cython.Py_ssize_t = self.method_size + 1
        return self.wire[start : start + self.target_size]

    @property
    def is_head(self) -> bool:
        """The method is HEAD: the response has no body, whatever its fields say (RFC 9112, 6.3)."""
        return self.wire.startswith(b"HEAD ")

    @property
    def is_idempotent(self) -> bool:
        """The method may be sent again if it is not known whether the target acted on it."""
        return self.method in _IDEMPOTENT

    def as_retried(self) -> OutgoingRequest:
        """Return the request marked as sent once already."""
        return OutgoingRequest(
            self.wire,
            self.head_size,
            self.method_size,
            self.target_size,
            self.missing,
            True,
            self.suspect,
        )


@cython.ccall
def new_request(
    head: bytes,
    body: bytes,
    method_size: cython.Py_ssize_t,
    target_size: cython.Py_ssize_t,
    missing: cython.longlong,
    suspect: str,
) -> OutgoingRequest:
    """Return a copy; a `RequestBuilder` calls this, which costs less than the class does."""
    request: OutgoingRequest = OutgoingRequest.__new__(OutgoingRequest)
    request.wire = head + body if body else head
    request.head_size = len(head)
    request.method_size = method_size
    request.target_size = target_size
    request.missing = missing
    request.retried = False
    request.suspect = suspect
    request.waiting_since = 0.0
    return request
