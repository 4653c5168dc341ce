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

from spoakit.exceptions import SpoakitError

if TYPE_CHECKING:
    from spoakit import _cython as cython
else:
    try:
        import cython
    except ModuleNotFoundError:
        from spoakit import _cython as cython

COMPILED: bool = cython.compiled

# What a field is to a copy: repeated, or not so simple.
_ORDINARY = cython.declare(cython.uint, 0)
_HOP_BY_HOP = cython.declare(cython.uint, 1)
_CONNECTION = cython.declare(cython.uint, 2)
_CONTENT_LENGTH = cython.declare(cython.uint, 3)
_TRANSFER_ENCODING = cython.declare(cython.uint, 4)
_HOST = cython.declare(cython.uint, 5)

_SPECIAL: dict[bytes, int] = {
    b"keep-alive": _HOP_BY_HOP,
    b"proxy-connection": _HOP_BY_HOP,
    b"te": _HOP_BY_HOP,
    b"trailer": _HOP_BY_HOP,
    b"upgrade": _HOP_BY_HOP,
    # Not for one connection only, but nobody would wait for the 100 (RFC 9110, 10.1.1).
    b"expect": _HOP_BY_HOP,
    b"connection": _CONNECTION,
    b"content-length": _CONTENT_LENGTH,
    b"transfer-encoding": _TRANSFER_ENCODING,
    b"host": _HOST,
}
# What a Connection field cannot take away from a copy.
_KEPT: frozenset[bytes] = frozenset((b"host", b"content-length"))

# RFC 9110, 5.6.2
_TOKEN: bytes = b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
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


class RefusedRequestError(SpoakitError):
    """A request of which no safe or no faithful copy can be made; the text says why."""


class TruncatedBodyError(RefusedRequestError):
    """The body is shorter than its Content-Length: HAProxy's buffer did not hold all of it."""


@cython.final
@cython.freelist(64)
@cython.cclass
class Request:
    """A request in the form it is sent in, kept as one object of bytes: queues are long.

    Args:
        wire: the request line, the fields, the empty line and the body.
        head_size: the bytes before the body.
        method_size: the bytes of the method.
        target_size: the bytes of the target.
        retried: whether it was sent once already, in vain.
    """

    _wire: bytes
    _head_size: cython.Py_ssize_t
    _method_size: cython.Py_ssize_t
    _target_size: cython.Py_ssize_t
    _retried: cython.bint

    def __init__(
        self,
        wire: bytes,
        head_size: int,
        method_size: int,
        target_size: int,
        retried: bool = False,
    ) -> None:
        self._wire = wire
        self._head_size = head_size
        self._method_size = method_size
        self._target_size = target_size
        self._retried = retried

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
        """Whether its answer has no body, whatever the answer's fields say (RFC 9112, 6.3)."""
        return self._wire.startswith(b"HEAD ")

    @property
    def is_idempotent(self) -> bool:
        """Whether it may be sent again when nobody knows if it was acted on."""
        return self.method in _IDEMPOTENT

    def as_retried(self) -> Request:
        """Return the request marked as sent once already."""
        return Request(self._wire, self._head_size, self._method_size, self._target_size, True)


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
        base_path: what to put in front of each path, without a slash at its end.
        authority: the Host to send where the request names none.
    """

    _base_path: bytes
    _authority: bytes
    # The fields met so far, by name, and those of the last request in their order.
    _fields: dict[bytes, Any]
    _expected: list[Any]
    # Of the request that is being made: its pieces, what its Connection fields name, what it has.
    _pieces: list[Any]
    _body_size: cython.Py_ssize_t
    _options: bytes
    _has_length: cython.bint
    _has_host: cython.bint
    # Where in a ``req.hdrs_bin`` it is.
    _pos: cython.Py_ssize_t

    def __init__(self, base_path: bytes, authority: bytes) -> None:
        self._base_path = base_path
        self._authority = authority
        self._fields = {}
        self._expected = []
        self._pieces = []
        self._body_size = self._pos = 0
        self._options = b""
        self._has_length = self._has_host = False

    def build(
        self, method: bytes, target: bytes, headers: bytes, binary: bool, body: bytes
    ) -> Request:
        """Make the copy of a request.

        Args:
            method: any method but CONNECT.
            target: a path with its query, a complete URL (the absolute form), or ``*``.
            headers: the fields, as in `binary`.
            binary: whether they are a ``req.hdrs_bin`` (names and values, each behind its length as
                a varint, up to an empty pair) and not a ``req.hdrs`` (lines that end with CR LF).
            body: the body, perhaps empty.

        Raises:
            TruncatedBodyError: the body is shorter than its Content-Length.
            RefusedRequestError: a part is malformed, or the method is CONNECT.
        """
        if method not in _known_methods:
            _check_method(method)
        _check_target(target)
        host: bytes = self._authority
        if not target.startswith(b"/"):
            named, target = _split_target(method, target)
            host = named or host
        base_path: bytes = b"" if target == b"*" else self._base_path
        # The request line, then two pieces for each field: its name, with what is around it, and
        # its value.
        pieces: list[Any] = [method, b" ", base_path, target, b" HTTP/1.1"]
        self._pieces = pieces
        self._body_size = len(body)
        self._options = b""
        self._has_length = self._has_host = False
        if binary:
            self._add_binary(headers)
        else:
            self._add_text(headers)
        if body and not self._has_length:
            pieces += (b"\r\ncontent-length: ", b"%d" % len(body))
        if self._options:
            pieces[_FIRST:] = _without(pieces[_FIRST:], self._options)
        if not self._has_host:
            pieces[_FIRST:_FIRST] = (b"\r\nhost: ", host)
        lines: cython.Py_ssize_t = (len(pieces) - _FIRST) // 2 + 2
        pieces.append(b"\r\n\r\n")
        head: bytes = b"".join(pieces)
        # Methods, targets and names are checked for what they may have; of values, only this
        # matters: that none has an end of line, or looks like one.
        if not _is_head(head, lines):
            raise RefusedRequestError("there is a CR, LF or NUL in its header fields")
        request: Request = Request.__new__(Request)  # without the cost of a call from Python
        request._wire = head + body if body else head
        request._head_size = len(head)
        request._method_size = len(method)
        request._target_size = len(base_path) + len(target)
        request._retried = False
        return request

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
        if not name or name.translate(None, _TOKEN):
            raise RefusedRequestError(f"the field name {name[:40]!r} is not a token")
        field = _Field(name, _SPECIAL.get(name.lower(), _ORDINARY))
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
            self._has_host = True
            self._pieces += (field.sent, value)
        elif kind == _CONNECTION:
            self._options += b"," + value
        elif kind == _CONTENT_LENGTH:
            _check_length(value, self._body_size)
            self._add_length(field.sent)
        elif kind == _TRANSFER_ENCODING:
            self._add_length(b"\r\ncontent-length: ")
        return None

    @cython.cfunc
    def _add_length(self, before: bytes) -> object:
        """Frame the body, where the first field that did so stood."""
        if not self._has_length:
            self._has_length = True
            self._pieces += (before, b"%d" % self._body_size)
        return None


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
    if not method or method.translate(None, _TOKEN):
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
def _split_target(method: bytes, target: bytes) -> tuple[bytes, bytes]:
    """Return the authority and the path of a target that is no path (RFC 9112, 3.2)."""
    if target == b"*":
        return b"", target
    scheme, separator, rest = target.partition(b"://")
    if not separator or not scheme[:1].isalpha() or scheme.translate(None, _TOKEN):
        if target:
            raise RefusedRequestError(f"{target[:80]!r} is neither a path nor a URL")
        return b"", b"/"
    end: cython.Py_ssize_t = len(rest)
    for mark in (b"/", b"?", b"#"):
        found: cython.Py_ssize_t = rest.find(mark, 0, end)
        if found >= 0:
            end = found
    path: bytes = rest[end:]
    if not path:
        # RFC 9112, 3.2.4: without a path, it is the server that is asked for its options.
        path = b"*" if method == b"OPTIONS" else b"/"
    elif not path.startswith(b"/"):
        path = b"/" + path
    return rest[:end].rpartition(b"@")[2], path


@cython.cfunc
def _check_length(value: bytes, size: cython.Py_ssize_t) -> None:
    if not value.isdigit() or len(value) > _MAX_DIGITS:
        raise RefusedRequestError(f"its Content-Length is {value[:40]!r}")
    if int(value) > size:
        raise TruncatedBodyError(f"{size} bytes of a body of {int(value)} were received")


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
