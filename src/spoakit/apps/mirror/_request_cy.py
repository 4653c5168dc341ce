# cython: wraparound=False
"""Making the copy of a request from what HAProxy sends about it. Hot code.

Nothing that came in can change how the copy is framed: Content-Length is written anew, the
fields that concern one connection only (RFC 9110, 7.6.1) are left out, and whatever holds a CR, an
LF or a NUL is refused. The rest goes on as it came: order, case, duplicates, empty values, bytes
that are not ASCII.

A `RequestBuilder` remembers which fields the last request had, and in which order. The next one
mostly has the same, so that comparing some bytes replaces reading, checking and looking up each
name; what is left to do for a field is copying its value.

Plain Python that compiles to C (see ``spoakit._cython``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from spoakit.agent.headers import Headers
from spoakit.apps.mirror.paths import TOKEN, PathRewriter, RefusedRequestError, split_target

if TYPE_CHECKING:
    from spoakit import _cython as cython
    from spoakit.apps.mirror.config.settings import Rewrite
    from spoakit.apps.mirror.url import TargetURL
else:
    try:
        import cython
    except ModuleNotFoundError:
        from spoakit import _cython as cython

COMPILED: bool = cython.compiled

# What a field is to a copy: repeated, or not so simple.
_ORDINARY = cython.declare(cython.uint, 0)
_LEFT_OUT = cython.declare(cython.uint, 1)
_CONNECTION = cython.declare(cython.uint, 2)
_CONTENT_LENGTH = cython.declare(cython.uint, 3)
_TRANSFER_ENCODING = cython.declare(cython.uint, 4)
_HOST = cython.declare(cython.uint, 5)
_FORWARDED_FOR = cython.declare(cython.uint, 6)
_REQUEST_ID = cython.declare(cython.uint, 7)
_MARKER = cython.declare(cython.uint, 8)

_SPECIAL: dict[bytes, int] = {
    b"keep-alive": _LEFT_OUT,
    b"proxy-connection": _LEFT_OUT,
    b"te": _LEFT_OUT,
    b"trailer": _LEFT_OUT,
    b"upgrade": _LEFT_OUT,
    # Not for one connection only, but nobody would wait for the 100 (RFC 9110, 10.1.1).
    b"expect": _LEFT_OUT,
    b"connection": _CONNECTION,
    b"content-length": _CONTENT_LENGTH,
    b"transfer-encoding": _TRANSFER_ENCODING,
    b"host": _HOST,
}
# What tells who somebody is; left out where a target is not to learn it.
_SECRETS: tuple[bytes, ...] = (
    b"authorization",
    b"proxy-authorization",
    b"cookie",
    b"x-api-key",
    b"x-auth-token",
    b"x-csrf-token",
    b"x-amz-security-token",
)
# What a Connection field cannot take away from a copy.
_KEPT: frozenset[bytes] = frozenset((b"host", b"content-length"))

# RFC 9110, 9.2.2: sent twice, these have the effect of once.
_IDEMPOTENT: frozenset[bytes] = frozenset(
    (b"GET", b"HEAD", b"OPTIONS", b"PUT", b"DELETE", b"TRACE", b"PROPFIND", b"REPORT", b"SEARCH")
)

# Those that need no check.
_known_methods: frozenset[bytes] = frozenset(
    (b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"OPTIONS", b"PATCH", b"TRACE")
)

# How many names a builder remembers, how long they may be, and of how many fields it expects to see
# them again in the same order.
_MAX_FIELDS = cython.declare(cython.Py_ssize_t, 4096)
_MAX_NAME_SIZE = cython.declare(cython.Py_ssize_t, 64)
_MAX_EXPECTED = cython.declare(cython.Py_ssize_t, 64)

# A longer number is no length (and int() of a long enough one takes long).
_MAX_DIGITS = cython.declare(cython.Py_ssize_t, 18)
# Fields of up to 32 MiB.
_MAX_SHIFT = cython.declare(cython.uint, 18)

# The pieces of a request line.
_FIRST = cython.declare(cython.Py_ssize_t, 5)


# Reasons to suspect that a body is not all of it; see `OutgoingRequest.suspect`.
NOT_WAITED_FOR: str = "not_waited_for"
PROBABLY_CUT: str = "probably_cut"

# Bytes. HAProxy keeps tune.maxrewrite of its buffer free, 1 KiB, so that this much less than a
# frame holds is what a full buffer gives.
_SLACK = cython.declare(cython.Py_ssize_t, 1024)
# About the bytes that a request takes besides the arguments' values: in a frame for its head and
# the arguments' names, in the buffer for its structure; and for each field, where a req.hdrs_bin
# has the two lengths, and the buffer 8 bytes.
_OVERHEAD = cython.declare(cython.Py_ssize_t, 200)
_FIELD_OVERHEAD = cython.declare(cython.Py_ssize_t, 6)


class TruncatedBodyError(RefusedRequestError):
    """The body is shorter than it was said to be: HAProxy's buffer did not hold all of it."""


class LoopedRequestError(RefusedRequestError):
    """The request has the target's marker: it is a copy that came back."""


class SuspectBodyError(RefusedRequestError):
    """The body is probably not all of it.

    Args:
        reason: see `OutgoingRequest.suspect`.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class BodyTooLargeError(RefusedRequestError):
    """The body is larger than the target's max-body."""


@cython.final
@cython.freelist(8)
@cython.cclass
class IncomingRequest:
    """A request as HAProxy tells of it, of which copies are made.

    Args:
        method: the method.
        target: a path with its query, a complete URL (the absolute form), or ``*``.
        version: the HTTP version, as b"1.1" or b"2.0".
        headers: the fields: a ``req.hdrs_bin`` (names and values, each behind its length as a
            varint, up to an empty pair) or a ``req.hdrs`` (lines that end with CR LF).
        body: the body, perhaps empty; None where bodies are not asked for, so that none is missing.
        size: the size that the body should have, where HAProxy says it, else -1.
        source: the client's address as text, where HAProxy says it.
        request_id: the request's id, likewise.
        key: what makes samples coherent, likewise.
        max_frame_size: the bytes that the frame could have at most; 0 where that is not known.
    """

    _method: bytes
    _target: bytes
    _version: bytes
    _headers: Any
    _body: bytes
    _has_body: cython.bint
    _size: cython.longlong
    _source: bytes
    _request_id: bytes
    _key: bytes
    _max_frame_size: cython.Py_ssize_t

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
        self._method = method
        self._target = target
        self._version = version
        self._headers = headers
        self._body = b"" if body is None else body
        self._has_body = body is not None
        self._size = size
        self._source = source
        self._request_id = request_id
        self._key = key
        self._max_frame_size = max_frame_size

    @property
    def method(self) -> bytes:
        """The method."""
        return self._method

    @property
    def target(self) -> bytes:
        """A path with its query, a complete URL, or ``*``."""
        return self._target

    @property
    def version(self) -> bytes:
        """The HTTP version."""
        return self._version

    @property
    def is_http2(self) -> bool:
        """Whether it came over HTTP/2, or a later version."""
        return self._version >= b"2"

    @property
    def headers(self) -> Headers:
        """The fields."""
        headers: Headers = self._headers
        return headers

    @property
    def source(self) -> bytes:
        """The client's address as text; empty where HAProxy does not say it."""
        return self._source

    @property
    def key(self) -> bytes:
        """What makes samples coherent; empty where HAProxy does not say it."""
        return self._key


@cython.final
@cython.freelist(64)
@cython.cclass
class OutgoingRequest:
    """A request in the form it is sent in, kept as one object of bytes: queues are long.

    Args:
        wire: the request line, the fields, the empty line and the body.
        head_size: the bytes before the body.
        method_size: the bytes of the method.
        target_size: the bytes of the target.
        missing: the bytes that its body should have besides.
        retried: whether it was sent once already, in vain.
        suspect: the reason to suspect that its body is not all of it; "" for none.
    """

    _wire: bytes
    _head_size: cython.Py_ssize_t
    _method_size: cython.Py_ssize_t
    _target_size: cython.Py_ssize_t
    _missing: cython.longlong
    _retried: cython.bint
    _suspect: str

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
        self._wire = wire
        self._head_size = head_size
        self._method_size = method_size
        self._target_size = target_size
        self._missing = missing
        self._retried = retried
        self._suspect = suspect

    @property
    def wire(self) -> bytes:
        """The bytes to send."""
        return self._wire

    @property
    def head_size(self) -> int:
        """The size of all that comes before the body, in bytes."""
        return self._head_size

    @property
    def method_size(self) -> int:
        """The size of the method, in bytes."""
        return self._method_size

    @property
    def target_size(self) -> int:
        """The size of the target, in bytes."""
        return self._target_size

    @property
    def body_size(self) -> int:
        """The size of the body in bytes."""
        return len(self._wire) - self._head_size

    @property
    def missing(self) -> int:
        """How many bytes its body should have besides: HAProxy's buffer did not hold them."""
        return self._missing

    @property
    def suspect(self) -> str:
        """The reason to suspect that its body is not all of it; "" for none.

        "not_waited_for": a Transfer-Encoding announces a body, and there is none. "probably_cut":
        nothing states the size of its body, and the frame that it came in is nearly full.
        """
        return self._suspect

    @property
    def retried(self) -> bool:
        """Whether it was sent once already."""
        return self._retried

    @property
    def method(self) -> bytes:
        """The method, in the case it came in."""
        return self._wire[: self._method_size]

    @property
    def target(self) -> bytes:
        """What is asked for: a path with its query, or ``*``."""
        start: cython.Py_ssize_t = self._method_size + 1
        return self._wire[start : start + self._target_size]

    @property
    def is_head(self) -> bool:
        """Whether its response has no body, whatever the response's fields say (RFC 9112, 6.3)."""
        return self._wire.startswith(b"HEAD ")

    @property
    def is_idempotent(self) -> bool:
        """Whether it may be sent again when nobody knows if it was acted on."""
        return self.method in _IDEMPOTENT

    def as_retried(self) -> OutgoingRequest:
        """Return the request marked as sent once already."""
        return OutgoingRequest(
            self._wire,
            self._head_size,
            self._method_size,
            self._target_size,
            self._missing,
            True,
            self._suspect,
        )


@cython.final
@cython.cclass
class _Field:
    """The name of a field, as it comes and as it goes on."""

    name: bytes
    kind: cython.uint
    # The name behind its length, as in a req.hdrs_bin; empty where it is not to be remembered.
    received: bytes
    received_size: cython.Py_ssize_t
    # With what is around it in a head: "\\r\\nname: ".
    sent: bytes

    def __init__(self, name: bytes, kind: int) -> None:
        self.name = name
        self.kind = kind
        self.sent = b"\r\n%b: " % name
        self.received = bytes((len(name),)) + name if len(name) <= _MAX_NAME_SIZE else b""
        self.received_size = len(self.received)


@cython.final
@cython.cclass
class RequestBuilder:
    """Makes the copies of requests for one target.

    Args:
        url: whose base path goes in front of each path, and whose user and password are the
            copies' Authorization.
        rewrite: how copies differ from their originals.
    """

    # What is done to each path, and what goes in front of it then.
    _rewriter: Any
    _prefix: bytes
    _authority: bytes
    # The Host of each copy; empty for the original's.
    _host: bytes
    _truncated: str
    _skips_suspect: cython.bint
    _has_bodies: cython.bint
    # The largest body; -1 for any.
    _max_body: cython.longlong
    # The kinds of fields by name, and the pieces that go behind all fields.
    _kinds: dict[bytes, int]
    _tail: list[Any]
    # The marker's value, and the marker as it is configured.
    _marker: bytes
    _marker_text: str
    _forwards_for: cython.bint
    _adds_id: cython.bint
    # The fields met so far, by name, and those of the last request in their order.
    _fields: dict[bytes, Any]
    _expected: list[Any]
    # Of the request that is being made: its pieces, what its Connection fields name, what it has,
    # where the value of its last X-Forwarded-For is.
    _pieces: list[Any]
    _body_size: cython.Py_ssize_t
    # The bytes that the whole body has at least, and those of them that did not come.
    _whole: cython.longlong
    _missing: cython.longlong
    _options: bytes
    _is_chunked: cython.bint
    _has_length: cython.bint
    _states_length: cython.bint
    _has_host: cython.bint
    _has_id: cython.bint
    _forwarded_for: cython.Py_ssize_t
    # Where in a ``req.hdrs_bin`` it is.
    _pos: cython.Py_ssize_t

    def __init__(self, url: TargetURL, rewrite: Rewrite) -> None:
        self._prefix = (url.base_path + rewrite.add_prefix.rstrip("/")).encode()
        self._rewriter = None
        if rewrite.strip_prefix or rewrite.path_pattern is not None:
            self._rewriter = PathRewriter(
                rewrite.strip_prefix, rewrite.path_pattern, rewrite.path_replacement
            )
        self._authority = url.authority.encode()
        self._host = {"keep": "", "target": url.authority}.get(rewrite.host, rewrite.host).encode()
        self._truncated = rewrite.truncated
        self._skips_suspect = rewrite.truncated_suspect == "skip"
        self._has_bodies = rewrite.body == "keep"
        self._max_body = -1 if rewrite.max_body is None else rewrite.max_body
        marker = () if rewrite.marker is None else (rewrite.marker,)
        own = (("Authorization", url.authorization),) if url.authorization else ()
        self._tail = []
        for name, value in (*rewrite.set, *own, *rewrite.add, *marker):
            self._tail += (b"\r\n%b: " % name.encode(), value.encode())
        left_out = [*rewrite.remove, *(name for name, _ in (*rewrite.set, *own, *marker))]
        self._kinds = _SPECIAL | {name.lower().encode(): _LEFT_OUT for name in left_out}
        if rewrite.strip_secrets:
            self._kinds |= dict.fromkeys(_SECRETS, _LEFT_OUT)
        self._marker = b""
        self._marker_text = ""
        for name, value in marker:
            self._kinds[name.lower().encode()] = _MARKER
            self._marker = value.encode()
            self._marker_text = f"{name}: {value}"
        self._forwards_for = rewrite.forwarded_for
        if rewrite.forwarded_for:
            self._kinds.setdefault(b"x-forwarded-for", _FORWARDED_FOR)
        self._adds_id = rewrite.request_id
        if rewrite.request_id:
            self._kinds.setdefault(b"x-request-id", _REQUEST_ID)
        self._fields = {}
        self._expected = []
        self._pieces = []
        self._body_size = self._whole = self._missing = self._forwarded_for = self._pos = 0
        self._options = b""
        self._has_length = self._states_length = self._has_host = self._has_id = False
        self._is_chunked = False

    def build(self, original: IncomingRequest) -> OutgoingRequest:
        """Make the copy of a request.

        Raises:
            LoopedRequestError: it has the marker of this target's copies.
            TruncatedBodyError: the body is shorter than it should be, and is not to be sent so.
            SuspectBodyError: the body is probably not all of it, and is not to be sent so.
            BodyTooLargeError: the body is larger than it may be.
            RefusedRequestError: a part is malformed, or the method is CONNECT.
        """
        method: bytes = original._method
        target: bytes = original._target
        body: bytes = original._body
        if method not in _known_methods:
            _check_method(method)
        _check_target(target)
        host: bytes = b""
        if not target.startswith(b"/"):
            host, target = split_target(method, target)
        prefix: bytes = self._prefix
        if target == b"*":
            prefix = b""
        elif self._rewriter is not None:
            target = self._rewriter.rewrite(target)
            _check_target(target)
        # The request line, then two pieces for each field: its name, with what is around it, and
        # its value.
        pieces: list[Any] = [method, b" ", prefix, target, b" HTTP/1.1"]
        self._pieces = pieces
        received: cython.Py_ssize_t = len(body)
        if not self._has_bodies:
            body = b""
        self._body_size = len(body)
        self._whole = max(original._size, received)
        self._is_chunked = False
        self._options = b""
        self._has_length = self._states_length = self._has_host = self._has_id = False
        self._forwarded_for = 0
        if original._headers.binary:
            self._add_binary(original._headers.raw)
        else:
            self._add_text(original._headers.raw)
        if received and not self._has_length:
            # It came over HTTP/2, and HAProxy knows no more of its size than what there is.
            if original._headers.get("content-type", "").startswith("application/grpc"):
                self._whole = max(self._whole, received + _missing_of_grpc(body))
            self._add_length(b"\r\ncontent-length: ")
        if self._options:
            pieces[_FIRST:] = _without(pieces[_FIRST:], self._options)
        if self._max_body >= 0 and self._whole > self._max_body:
            raise BodyTooLargeError(
                f"its body of {self._whole} bytes is larger than max-body, {self._max_body}"
            )
        self._missing = 0
        suspect: str = ""
        # Where bodies are not asked for or not wanted, none is missing.
        if original._has_body and self._has_bodies:
            self._missing = self._whole - received
            suspect = self._suspect(original)
        self._add_rest(original, host)
        lines: cython.Py_ssize_t = (len(pieces) - _FIRST) // 2 + 2
        pieces.append(b"\r\n\r\n")
        head: bytes = b"".join(pieces)
        # Methods, targets and names are checked for what they may have; of values, only this
        # matters: that none has an end of line, or looks like one.
        if not _is_head(head, lines):
            raise RefusedRequestError("there is a CR, LF or NUL in its header fields")
        request: OutgoingRequest = OutgoingRequest.__new__(
            OutgoingRequest
        )  # without the cost of a call from Python
        request._wire = head + body if body else head
        request._head_size = len(head)
        request._method_size = len(method)
        request._target_size = len(prefix) + len(target)
        request._missing = self._missing
        request._retried = False
        request._suspect = suspect
        return request

    @cython.cfunc
    @cython.inline
    def _suspect(self, original: IncomingRequest) -> str:
        """Return the reason to suspect that the body is not all of it; "" for none."""
        reason: str = ""
        if self._body_size == 0:
            # HAProxy had not read the first chunk; one that is empty looks the same.
            if self._is_chunked:
                reason = NOT_WAITED_FOR
        elif not self._states_length and self._missing == 0 and self._fills_frame(original):
            reason = PROBABLY_CUT
        if reason and self._skips_suspect:
            raise SuspectBodyError(reason)
        return reason

    @cython.cfunc
    @cython.exceptval(-1, check=False)
    def _fills_frame(self, original: IncomingRequest) -> cython.bint:
        """Return whether the frame that the request came in was about as large as it could be.

        One that is far larger came in fragments, which say nothing about the buffer.
        """
        if original._max_frame_size == 0:
            return False
        size: cython.Py_ssize_t = len(original._method) + len(original._target) + _OVERHEAD
        size += len(original._version) + len(original._headers.raw) + len(original._body)
        size += len(original._source) + len(original._request_id) + len(original._key)
        size += (len(self._pieces) - _FIRST) // 2 * _FIELD_OVERHEAD
        return -_SLACK <= original._max_frame_size - size <= _SLACK

    @cython.cfunc
    @cython.inline
    def _add_rest(self, original: IncomingRequest, host: bytes) -> object:
        """Add what the original does not have and the copy shall have."""
        pieces: list[Any] = self._pieces
        if not self._has_host:
            pieces[_FIRST:_FIRST] = (b"\r\nhost: ", self._host or host or self._authority)
            self._forwarded_for += 2 if self._forwarded_for else 0
        if self._forwards_for and original._source:
            if self._forwarded_for and not self._options:
                pieces[self._forwarded_for] += b", " + original._source
            else:
                pieces += (b"\r\nx-forwarded-for: ", original._source)
        if self._adds_id and original._request_id and not self._has_id:
            pieces += (b"\r\nx-request-id: ", original._request_id)
        if self._missing > 0:
            if self._truncated == "skip":
                raise TruncatedBodyError(
                    f"{self._body_size} bytes of a body of {self._body_size + self._missing} "
                    f"{'' if self._states_length else 'or more '}were received"
                )
            if self._truncated == "mark":
                # Without a Content-Length, only the chunk that was being received is known of.
                missing: bytes = b"%d" % self._missing if self._states_length else b"unknown"
                pieces += (b"\r\nx-mirror-truncated: ", missing)
        if self._tail:
            pieces += self._tail
        return None

    @cython.cfunc
    @cython.exceptval(-1, check=False)
    def _add_binary(self, headers: bytes) -> cython.Py_ssize_t:
        self._pos = 0
        index: cython.Py_ssize_t = 0
        while True:
            field = self._next_field(headers, index)
            value: bytes = self._take(headers)
            if field is None:
                break
            self._add(field, value)
            index += 1
        if value or self._pos != len(headers):
            raise RefusedRequestError("its block of fields does not end with an empty one")
        return 0

    @cython.cfunc
    @cython.inline
    def _next_field(self, headers: bytes, index: cython.Py_ssize_t) -> _Field | None:
        """Read the name of the field with that index; return None for the empty name at the end."""
        expected: list[Any] = self._expected
        field: _Field
        if index < len(expected):
            field = expected[index]
            if headers.startswith(field.received, self._pos):
                self._pos += field.received_size
                return field
            del expected[index:]
        name: bytes = self._take(headers)
        if not name:
            return None
        field = self._look_up(name)
        if field.received and index == len(expected) and index < _MAX_EXPECTED:
            expected.append(field)
        return field

    @cython.cfunc
    @cython.inline
    def _take(self, headers: bytes) -> bytes:
        """Read a name or value behind its length as a varint (SPOE.txt 3.1)."""
        pos: cython.Py_ssize_t = self._pos
        end: cython.Py_ssize_t = len(headers)
        if pos >= end:
            raise RefusedRequestError("its block of fields ends without an empty one")
        size: cython.Py_ssize_t = headers[pos]
        pos += 1
        if size >= 0xF0:
            shift: cython.uint = 4
            more: cython.bint = True
            while more:
                if pos >= end or shift > _MAX_SHIFT:
                    raise RefusedRequestError("its block of fields has a broken length")
                octet: cython.Py_ssize_t = headers[pos]
                pos += 1
                size += octet << shift
                shift += 7
                more = octet >= 0x80
        if size > end - pos:
            raise RefusedRequestError("its block of fields ends within a field")
        self._pos = pos + size
        # A slice of this is not checked when compiled, and costs half: hence the check before it.
        start_of: cython.p_char = headers
        return start_of[pos : pos + size]

    @cython.cfunc
    def _add_text(self, headers: bytes) -> object:
        """Add the fields of a ``req.hdrs``."""
        while headers.endswith(b"\r\n"):
            headers = headers[: len(headers) - 2]
        line: bytes
        for line in headers.split(b"\r\n") if headers else ():
            name, colon, value = line.partition(b":")
            if not colon:
                raise RefusedRequestError(f"the line {line[:40]!r} is not a field")
            self._add(self._look_up(name), value.strip(b" \t"))
        return None

    @cython.cfunc
    def _look_up(self, name: bytes) -> _Field:
        """Return the field of that name, a new one after checking the name."""
        field: _Field
        known = self._fields.get(name)
        if known is not None:
            field = known
            return field
        if not name or name.translate(None, TOKEN):
            raise RefusedRequestError(f"the field name {name[:40]!r} is not a token")
        field = _Field(name, self._kinds.get(name.lower(), _ORDINARY))
        if field.received and len(self._fields) < _MAX_FIELDS:
            self._fields[name] = field
        return field

    @cython.cfunc
    @cython.inline
    def _add(self, field: _Field, value: bytes) -> object:
        if field.kind == _ORDINARY:
            self._pieces.append(field.sent)
            self._pieces.append(value)
        else:
            self._add_special(field, value)
        return None

    @cython.cfunc
    def _add_special(self, field: _Field, value: bytes) -> object:
        kind: cython.uint = field.kind
        if kind == _HOST:
            if self._host:
                if self._has_host:
                    return None
                value = self._host
            self._has_host = True
            self._pieces += (field.sent, value)
        elif kind == _CONNECTION:
            self._options += b"," + value
        elif kind == _CONTENT_LENGTH:
            self._states_length = True
            self._whole = max(self._whole, _read_length(value))
            self._add_length(field.sent)
        elif kind == _TRANSFER_ENCODING:
            self._is_chunked = True
            self._add_length(b"\r\ncontent-length: ")
        elif kind == _FORWARDED_FOR:
            self._forwarded_for = len(self._pieces) + 1
            self._pieces += (field.sent, value)
        elif kind == _REQUEST_ID:
            self._has_id = True
            self._pieces += (field.sent, value)
        elif kind == _MARKER and value.strip(b" \t") == self._marker:
            raise LoopedRequestError(f"has the marker {self._marker_text!r} already")
        return None

    @cython.cfunc
    def _add_length(self, before: bytes) -> object:
        """Frame the body, where the first field that did so stood."""
        if not self._has_length:
            self._has_length = True
            self._pieces += (before, b"%d" % self._body_size)
        return None


@cython.cfunc
def _missing_of_grpc(body: bytes) -> cython.longlong:
    """Return what the last message of a gRPC call lacks; each is behind a flag and its size."""
    end: cython.longlong = 0
    while end < len(body):
        end += 5 + int.from_bytes(body[end + 1 : end + 5], "big")
    return end - len(body)


@cython.cfunc
@cython.exceptval(check=False)
def _is_head(head: bytes, lines: cython.Py_ssize_t) -> cython.bint:
    """Return whether it has that many ends of lines, no other CR or LF, and no NUL."""
    if not cython.compiled:
        return head.count(b"\n") == head.count(b"\r") == lines and b"\0" not in head
    # Without branches, so that the C compiler looks at many bytes at a time.
    returns: cython.uint = 0
    feeds: cython.uint = 0
    nulls: cython.uint = 0
    octet: cython.uchar
    for octet in head:
        returns += octet == 0x0D
        feeds += octet == 0x0A
        nulls += octet == 0
    return returns == feeds == lines and nulls == 0


@cython.cfunc
def _check_method(method: bytes) -> None:
    if not method or method.translate(None, TOKEN):
        raise RefusedRequestError(f"the method {method[:40]!r} is not a token")
    if method == b"CONNECT":
        raise RefusedRequestError("CONNECT asks for a tunnel, of which there is no copy")


@cython.cfunc
def _check_target(target: bytes) -> None:
    octet: cython.uchar
    for octet in target:
        if octet <= 0x20 or octet == 0x7F:
            raise RefusedRequestError(f"there is white space or a control in {target[:80]!r}")


@cython.cfunc
def _read_length(value: bytes) -> cython.longlong:
    if not value.isdigit() or len(value) > _MAX_DIGITS:
        raise RefusedRequestError(f"its Content-Length is {value[:40]!r}")
    return int(value)


@cython.cfunc
def _without(pieces: list[bytes], options: bytes) -> list[bytes]:
    """Return the fields, two pieces each, without those that a Connection field names."""
    names: set[bytes] = set()
    for option in options.lower().split(b","):
        names.add(option.strip(b" \t"))
    names -= _KEPT
    kept: list[bytes] = []
    index: cython.Py_ssize_t
    for index in range(0, len(pieces), 2):
        if pieces[index].strip(b"\r\n: ").lower() not in names:
            kept += pieces[index : index + 2]
    return kept
