# cython: wraparound=False
"""Builder of the copies of requests, for one target. Hot code.

A client cannot change how the copy is framed: Content-Length is written anew, hop-by-hop fields
(RFC 9110, 7.6.1) are left out, and a request with a CR, an LF or a NUL in a field is refused.
Everything else is preserved: order, case, duplicates, empty values, bytes that are not ASCII.

A `RequestBuilder` remembers the field names of the last request, in their order. The next request
mostly has the same ones, so comparing bytes replaces parsing, checking and looking up each name;
only the value has to be copied.

Plain Python that compiles to C (see ``spoakit._cython``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from spoakit.apps.mirror._request_cy import NOT_WAITED_FOR, PROBABLY_CUT
from spoakit.apps.mirror.exceptions import (
    BodyTooLargeError,
    LoopedRequestError,
    RefusedRequestError,
    SuspectBodyError,
    TruncatedBodyError,
)
from spoakit.apps.mirror.paths import TOKEN, PathRewriter, split_target

if TYPE_CHECKING:
    from spoakit import _cython as cython
    from spoakit._cython import memcmp
    from spoakit.apps.mirror._buffer_cy import Buffer
    from spoakit.apps.mirror._request_cy import (
        IncomingRequest,
        OutgoingRequest,
        new_request,
    )
    from spoakit.apps.mirror.config.schema import TargetSettings
else:
    try:
        import cython
    except ModuleNotFoundError:
        from spoakit import _cython as cython
    if cython.compiled:
        from cython.cimports.libc.string import memcmp
        from cython.cimports.spoakit.apps.mirror._buffer_cy import Buffer
        from cython.cimports.spoakit.apps.mirror._request_cy import (
            IncomingRequest,
            OutgoingRequest,
            new_request,
        )
    else:
        from spoakit.apps.mirror._buffer_cy import Buffer
        from spoakit.apps.mirror._request_cy import (
            IncomingRequest,
            OutgoingRequest,
            new_request,
        )

COMPILED: bool = cython.compiled

# The kind of a field decides its treatment: an ordinary one is copied, the others are not.
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
    # Expect is not a hop-by-hop field, but the mirror does not wait for the 100 (RFC 9110, 10.1.1).
    b"expect": _LEFT_OUT,
    b"connection": _CONNECTION,
    b"content-length": _CONTENT_LENGTH,
    b"transfer-encoding": _TRANSFER_ENCODING,
    b"host": _HOST,
}
# Credentials, which `Rewrite.strip_secrets` leaves out.
_SECRETS: tuple[bytes, ...] = (
    b"authorization",
    b"proxy-authorization",
    b"cookie",
    b"x-api-key",
    b"x-auth-token",
    b"x-csrf-token",
    b"x-amz-security-token",
)
# Fields that a Connection field cannot remove from a copy.
_KEPT: frozenset[bytes] = frozenset((b"host", b"content-length"))

# Methods known to be tokens, which need no check.
_known_methods: frozenset[bytes] = frozenset(
    (b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"OPTIONS", b"PATCH", b"TRACE")
)

# Limits of a builder's memory: the number of names, their length, and the number of fields that it
# expects in the same order.
_MAX_FIELDS = cython.declare(cython.Py_ssize_t, 4096)
_MAX_NAME_SIZE = cython.declare(cython.Py_ssize_t, 64)
_MAX_EXPECTED = cython.declare(cython.Py_ssize_t, 64)

# Bytes of a head that are counted together: the counters are bytes, and must not overflow.
_CHUNK = cython.declare(cython.Py_ssize_t, 240)

# int() of a number with thousands of digits takes long.
_MAX_DIGITS = cython.declare(cython.Py_ssize_t, 18)
# A larger shift would be a field of over 32 MiB.
_MAX_SHIFT = cython.declare(cython.uint, 18)

# HAProxy keeps 1 KiB of its buffer free (tune.maxrewrite), so a full buffer gives a frame up to
# that many bytes shorter than the largest.
_SLACK = cython.declare(cython.Py_ssize_t, 1024)
# Estimated bytes that a request needs besides the arguments' values: in a frame for its head and
# the arguments' names, in HAProxy's buffer for its structure. The second figure is for each field:
# a req.hdrs_bin has two lengths, and the buffer 8 bytes.
_OVERHEAD = cython.declare(cython.Py_ssize_t, 200)
_FIELD_OVERHEAD = cython.declare(cython.Py_ssize_t, 6)


@cython.final
@cython.cclass
class _Field:
    """Field name, in its received and its sent form."""

    name: bytes
    kind: cython.uint
    # The name after its length, as in a req.hdrs_bin; empty if it is too long to be remembered.
    received: bytes
    received_size: cython.Py_ssize_t
    # The name as a head has it: "\\r\
    # name: ".
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
    """Build the copies of requests for one target.

    Args:
        settings: how copies differ from their originals. The URL's base path is put before each
            path, and its user and password become the copies' Authorization.
    """

    # The rewriting of each path, and the prefix added afterwards.
    _rewriter: Any
    _prefix: bytes
    _authority: bytes
    # The Host of each copy; empty to keep the original one.
    _host: bytes
    _truncated: str
    _skips_suspect: cython.bint
    _has_bodies: cython.bint
    # The size of the largest body; -1 for no limit.
    _max_body: cython.longlong
    # The kinds of fields by name, and the fields appended after all others.
    _kinds: dict[bytes, int]
    _tail: list[Any]
    # The marker's value, and the marker as it is configured.
    _marker: bytes
    _marker_text: str
    _forwards_for: cython.bint
    _adds_id: cython.bint
    # The fields seen so far, by name, and the fields of the last request in their order.
    _fields: dict[bytes, Any]
    _expected: list[Any]
    # State of the copy that is being built, from here on: its head so far, and the number of fields
    # in the head.
    _head: Buffer
    _count: cython.Py_ssize_t
    _body_size: cython.Py_ssize_t
    # The least size of the whole body, and the number of its bytes that were not received.
    _whole: cython.longlong
    _missing: cython.longlong
    _options: bytes
    _is_chunked: cython.bint
    _has_length: cython.bint
    _states_length: cython.bint
    _has_host: cython.bint
    _has_id: cython.bint
    _forwarded_for: cython.Py_ssize_t
    # The position in a ``req.hdrs_bin``.
    _pos: cython.Py_ssize_t

    def __init__(self, settings: TargetSettings) -> None:
        url, headers, path = settings.url, settings.headers, settings.path
        self._prefix = (url.base_path + path.add_prefix.rstrip("/")).encode()
        self._rewriter = None
        if path.strip_prefix or path.pattern is not None:
            self._rewriter = PathRewriter(path.strip_prefix, path.pattern, path.replace)
        self._authority = url.authority.encode()
        self._host = {"keep": "", "target": url.authority}.get(
            settings.host, settings.host
        ).encode()
        self._truncated = settings.truncated
        self._skips_suspect = settings.truncated_suspect == "skip"
        self._has_bodies = settings.body == "keep"
        self._max_body = -1 if settings.max_body is None else settings.max_body
        marker = () if settings.marker is None else (settings.marker,)
        own = (("Authorization", url.authorization),) if url.authorization else ()
        self._tail = []
        for name, value in (*headers.set, *own, *headers.add, *marker):
            self._tail.append((b"\r\n%b: " % name.encode(), value.encode()))
        left_out = [*headers.remove, *(name for name, _ in (*headers.set, *own, *marker))]
        self._kinds = _SPECIAL | {name.lower().encode(): _LEFT_OUT for name in left_out}
        if headers.secrets == "strip":
            self._kinds |= dict.fromkeys(_SECRETS, _LEFT_OUT)
        self._marker = b""
        self._marker_text = ""
        for name, value in marker:
            self._kinds[name.lower().encode()] = _MARKER
            self._marker = value.encode()
            self._marker_text = f"{name}: {value}"
        self._forwards_for = settings.forwarded_for
        if settings.forwarded_for:
            self._kinds.setdefault(b"x-forwarded-for", _FORWARDED_FOR)
        self._adds_id = settings.request_id
        if settings.request_id:
            self._kinds.setdefault(b"x-request-id", _REQUEST_ID)
        self._fields = {}
        self._expected = []
        self._head = Buffer()
        self._count = 0
        self._body_size = self._whole = self._missing = self._forwarded_for = self._pos = 0
        self._options = b""
        self._has_length = self._states_length = self._has_host = self._has_id = False
        self._is_chunked = False

    def build(self, original: IncomingRequest) -> OutgoingRequest:
        """Return the copy of a request.

        Raises:
            LoopedRequestError: the request has the marker of this target's copies.
            TruncatedBodyError: the body was cut, and the settings say to skip those requests.
            SuspectBodyError: the body was probably cut, and the settings say to skip those
                requests.
            BodyTooLargeError: the body is larger than max-body.
            RefusedRequestError: a part is malformed, or the method is CONNECT.
        """
        method: bytes = original.method
        target: bytes = original.target
        body: bytes = original.body
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
        head: Buffer = self._head
        head.truncate(0)
        head.add(method)
        head.add(b" ")
        head.add(prefix)
        head.add(target)
        fields: cython.Py_ssize_t = head.add(b" HTTP/1.1")
        self._count = 0
        received: cython.Py_ssize_t = len(body)
        if not self._has_bodies:
            body = b""
        self._body_size = len(body)
        self._whole = max(original.size, received)
        self._is_chunked = False
        self._options = b""
        self._has_length = self._states_length = self._has_host = self._has_id = False
        self._forwarded_for = 0
        if original.headers.binary:
            self._add_binary(original.headers.raw)
        else:
            self._add_text(original.headers.raw)
        if received and not self._has_length:
            # Over HTTP/2 a body needs no Content-Length, so its full size is unknown.
            if original.headers.get("content-type", "").startswith("application/grpc"):
                self._whole = max(self._whole, received + _missing_grpc_bytes(body))
            self._add_length(b"\r\ncontent-length: ")
        if self._options:
            self._remove_options(fields)
        if self._max_body >= 0 and self._whole > self._max_body:
            raise BodyTooLargeError(
                f"its body of {self._whole} bytes is larger than max-body, {self._max_body}"
            )
        self._missing = 0
        suspect: str = ""
        # Without the argument arg_body, or with body = "drop", a missing body is intended.
        if original.has_body and self._has_bodies:
            self._missing = self._whole - received
            suspect = self._suspect(original)
        self._add_rest(original)
        if not self._has_host:
            head.insert(fields, b"\r\nhost: " + (self._host or host or self._authority))
            self._count += 1
        head.add(b"\r\n\r\n")
        wire: bytes = head.copy()
        # Methods, targets and names were checked before. A value may have any bytes that do not end
        # a line.
        if not _has_lines(wire, self._count + 2):
            raise RefusedRequestError("there is a CR, LF or NUL in its header fields")
        return new_request(
            wire, body, len(method), len(prefix) + len(target), self._missing, suspect
        )

    @cython.cfunc
    @cython.inline
    def _suspect(self, original: IncomingRequest) -> str:
        """Return the reason to suspect that the body was cut; "" for none."""
        reason: str = ""
        if self._body_size == 0:
            # HAProxy had not read the first chunk yet; an empty body looks the same.
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
        """Return whether the request's frame was about as large as the largest one.

        A frame that is far larger was fragmented, which shows nothing about HAProxy's buffer.
        """
        if original.max_frame_size == 0:
            return False
        size: cython.Py_ssize_t = len(original.method) + len(original.target) + _OVERHEAD
        size += len(original.version) + len(original.headers.raw) + len(original.body)
        size += len(original.source) + len(original.request_id) + len(original.key)
        size += self._count * _FIELD_OVERHEAD
        return -_SLACK <= original.max_frame_size - size <= _SLACK

    @cython.cfunc
    @cython.inline
    def _add_rest(self, original: IncomingRequest) -> object:
        """Add the fields that only the copy has."""
        if self._forwards_for and original.source:
            if self._forwarded_for and not self._options:
                self._head.insert(self._forwarded_for, b", " + original.source)
            else:
                self._add_field(b"\r\nx-forwarded-for: ", original.source)
        if self._adds_id and original.request_id and not self._has_id:
            self._add_field(b"\r\nx-request-id: ", original.request_id)
        if self._missing > 0:
            if self._truncated == "skip":
                raise TruncatedBodyError(
                    f"{self._body_size} bytes of a body of {self._body_size + self._missing} "
                    f"{'' if self._states_length else 'or more '}were received"
                )
            if self._truncated == "mark":
                # Without a Content-Length, only the size of the last, incomplete chunk is known.
                missing: bytes = b"%d" % self._missing if self._states_length else b"unknown"
                self._add_field(b"\r\nx-mirror-truncated: ", missing)
        for before, value in self._tail:
            self._add_field(before, value)
        return None

    @cython.cfunc
    @cython.inline
    @cython.exceptval(-1, check=False)
    def _add_field(self, before: bytes, value: bytes) -> cython.Py_ssize_t:
        """Add a field; `before` is its name as in `_Field.sent`."""
        self._count += 1
        self._head.add(before)
        return self._head.add(value)

    @cython.cfunc
    def _remove_options(self, first: cython.Py_ssize_t) -> object:
        """Remove the fields that a Connection field names; the fields begin at index `first`."""
        names: set[bytes] = set()
        for option in self._options.lower().split(b","):
            names.add(option.strip(b" \t"))
        names -= _KEPT
        fields: bytes = self._head.copy(first)
        if not _has_lines(fields, self._count):
            raise RefusedRequestError("there is a CR, LF or NUL in its header fields")
        self._head.truncate(first)
        self._count = 0
        for field in fields.split(b"\r\n")[1:]:
            name, _, _ = field.partition(b":")
            if name.lower() not in names:
                self._add_field(b"\r\n", field)
        return None

    @cython.cfunc
    @cython.exceptval(-1, check=False)
    def _add_binary(self, headers: bytes) -> cython.Py_ssize_t:
        self._pos = 0
        index: cython.Py_ssize_t = 0
        head: Buffer = self._head
        while True:
            field = self._next_field(headers, index)
            size: cython.Py_ssize_t = self._parse_size(headers)
            start: cython.Py_ssize_t = self._pos
            self._pos += size
            if field is None:
                break
            if field.kind == _ORDINARY:
                self._count += 1
                head.add(field.sent)
                head.add_part(headers, start, self._pos)
            else:
                self._add_special(field, headers[start : self._pos])
            index += 1
        if size or self._pos != len(headers):
            raise RefusedRequestError("its header block does not end with an empty name and value")
        return 0

    @cython.cfunc
    @cython.inline
    def _next_field(self, headers: bytes, index: cython.Py_ssize_t) -> _Field | None:
        """Parse the name of field number `index`; return None for the empty name at the end."""
        expected: list[Any] = self._expected
        field: _Field
        if index < len(expected):
            field = expected[index]
            if _stands_at(headers, self._pos, field.received):
                self._pos += field.received_size
                return field
            del expected[index:]
        size: cython.Py_ssize_t = self._parse_size(headers)
        name: bytes = headers[self._pos : self._pos + size]
        self._pos += size
        if not name:
            return None
        field = self._look_up(name)
        if field.received and index == len(expected) and index < _MAX_EXPECTED:
            expected.append(field)
        return field

    @cython.cfunc
    @cython.inline
    @cython.exceptval(-1, check=False)
    def _parse_size(self, headers: bytes) -> cython.Py_ssize_t:
        """Parse the length of a name or value at the position: a varint (SPOE.txt 3.1).

        It moves the position to the name or value, which is within the block.
        """
        pos: cython.Py_ssize_t = self._pos
        end: cython.Py_ssize_t = len(headers)
        if pos >= end:
            raise RefusedRequestError("its header block ends without an empty name and value")
        size: cython.Py_ssize_t = headers[pos]
        pos += 1
        if size >= 0xF0:
            shift: cython.uint = 4
            more: cython.bint = True
            while more:
                if pos >= end or shift > _MAX_SHIFT:
                    raise RefusedRequestError("its header block has a malformed length")
                octet: cython.Py_ssize_t = headers[pos]
                pos += 1
                size += octet << shift
                shift += 7
                more = octet >= 0x80
        if size > end - pos:
            raise RefusedRequestError("its header block ends within a field")
        self._pos = pos
        return size

    @cython.cfunc
    def _add_text(self, headers: bytes) -> object:
        """Add the fields of a ``req.hdrs``."""
        while headers.endswith(b"\r\n"):
            headers = headers[: len(headers) - 2]
        line: bytes
        for line in headers.split(b"\r\n") if headers else ():
            name, colon, value = line.partition(b":")
            if not colon:
                raise RefusedRequestError(f"the header line {line[:40]!r} has no colon")
            self._add(self._look_up(name), value.strip(b" \t"))
        return None

    @cython.cfunc
    def _look_up(self, name: bytes) -> _Field:
        """Return the field with a name; check the name if it is new."""
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
            self._add_field(field.sent, value)
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
            self._add_field(field.sent, value)
        elif kind == _CONNECTION:
            self._options += b"," + value
        elif kind == _CONTENT_LENGTH:
            self._states_length = True
            self._whole = max(self._whole, _parse_length(value))
            self._add_length(field.sent)
        elif kind == _TRANSFER_ENCODING:
            self._is_chunked = True
            self._add_length(b"\r\ncontent-length: ")
        elif kind == _FORWARDED_FOR:
            self._forwarded_for = self._add_field(field.sent, value)
        elif kind == _REQUEST_ID:
            self._has_id = True
            self._add_field(field.sent, value)
        elif kind == _MARKER and value.strip(b" \t") == self._marker:
            raise LoopedRequestError(f"has the marker {self._marker_text!r} already")
        return None

    @cython.cfunc
    def _add_length(self, before: bytes) -> object:
        """Add the Content-Length, in place of the first field that framed the original."""
        if not self._has_length:
            self._has_length = True
            self._count += 1
            self._head.add(before)
            self._head.add_number(self._body_size)
        return None


@cython.cfunc
def _missing_grpc_bytes(body: bytes) -> cython.longlong:
    """Return the number of bytes that the last message of a gRPC call lacks.

    Each message follows a flag (one byte) and its size (four bytes).
    """
    end: cython.longlong = 0
    while end < len(body):
        end += 5 + int.from_bytes(body[end + 1 : end + 5], "big")
    return end - len(body)


@cython.cfunc
@cython.exceptval(check=False)
def _has_lines(head: bytes, lines: cython.Py_ssize_t) -> cython.bint:
    """Return whether a head has `lines` line ends, no other CR or LF, and no NUL."""
    if not cython.compiled:
        return head.count(b"\n") == head.count(b"\r") == lines and b"\0" not in head
    # The loop has no branches and counts in bytes, so that the C compiler can vectorize it.
    octets: cython.p_char = head
    size: cython.Py_ssize_t = len(head)
    all_returns: cython.Py_ssize_t = 0
    all_feeds: cython.Py_ssize_t = 0
    all_nulls: cython.Py_ssize_t = 0
    at: cython.Py_ssize_t = 0
    while at < size:
        end: cython.Py_ssize_t = min(at + _CHUNK, size)
        returns: cython.uchar = 0
        feeds: cython.uchar = 0
        nulls: cython.uchar = 0
        index: cython.Py_ssize_t
        for index in range(at, end):
            returns += octets[index] == 0x0D
            feeds += octets[index] == 0x0A
            nulls += octets[index] == 0
        at = end
        all_returns += returns
        all_feeds += feeds
        all_nulls += nulls
    return all_returns == all_feeds == lines and all_nulls == 0


@cython.cfunc
@cython.inline
@cython.exceptval(check=False)
def _stands_at(data: bytes, pos: cython.Py_ssize_t, expected: bytes) -> cython.bint:
    """Return ``data.startswith(expected, pos)``, without creating number objects."""
    if not cython.compiled:
        return data.startswith(expected, pos)
    size: cython.Py_ssize_t = len(expected)
    if size > len(data) - pos:
        return False
    # C pointers have no bounds check: the comparison of sizes above is the check.
    received: cython.p_char = data
    known: cython.p_char = expected
    return memcmp(cython.address(received[pos]), known, size) == 0


@cython.cfunc
def _check_method(method: bytes) -> None:
    if not method or method.translate(None, TOKEN):
        raise RefusedRequestError(f"the method {method[:40]!r} is not a token")
    if method == b"CONNECT":
        raise RefusedRequestError("CONNECT opens a tunnel, which cannot be copied")


@cython.cfunc
def _check_target(target: bytes) -> None:
    found: cython.uint = 0
    octet: cython.uchar
    for octet in target:  # no branches, as in `_has_lines`
        found += (octet <= 0x20) | (octet == 0x7F)
    if found:
        raise RefusedRequestError(
            f"the target {target[:80]!r} has white space or a control character"
        )


@cython.cfunc
def _parse_length(value: bytes) -> cython.longlong:
    if not value.isdigit() or len(value) > _MAX_DIGITS:
        raise RefusedRequestError(f"its Content-Length is {value[:40]!r}")
    return int(value)
