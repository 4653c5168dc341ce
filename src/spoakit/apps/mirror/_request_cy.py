# cython: wraparound=False
"""Making the copy of a request from what HAProxy sends about it. Hot code.

Nothing that came in can change how the copy is framed: Content-Length is written anew, the
fields that concern one connection only (RFC 9110, 7.6.1) are left out, and whatever holds a CR, an
LF or a NUL is refused. The rest goes on as it came: order, case, duplicates, empty values, bytes
that are not ASCII.

Plain Python that compiles to C (see ``spoakit._cython``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

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

# The names of ordinary fields met so far, with what is around them in a head. Looking a name up
# replaces checking it.
_ordinary: dict[bytes, bytes] = {}
_MAX_ORDINARY = cython.declare(cython.Py_ssize_t, 4096)
_MAX_ORDINARY_SIZE = cython.declare(cython.Py_ssize_t, 64)

# A longer number is no length (and int() of a long enough one takes long).
_MAX_DIGITS = cython.declare(cython.Py_ssize_t, 18)
# Fields of up to 32 MiB.
_MAX_SHIFT = cython.declare(cython.uint, 18)


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
        retried: whether it was sent once already, in vain.
    """

    _wire: bytes
    _head_size: cython.Py_ssize_t
    _retried: cython.bint

    def __init__(self, wire: bytes, head_size: int, retried: bool = False) -> None:
        self._wire = wire
        self._head_size = head_size
        self._retried = retried

    @property
    def wire(self) -> bytes:
        """The bytes to send."""
        return self._wire

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
        return self._wire[: self._wire.find(b" ")]

    @property
    def target(self) -> bytes:
        """What is asked for: a path with its query, or ``*``."""
        start: cython.Py_ssize_t = self._wire.find(b" ") + 1
        return self._wire[start : self._wire.find(b" ", start)]

    @property
    def is_head(self) -> bool:
        """Whether its answer has no body, whatever the answer's fields say (RFC 9112, 6.3)."""
        return self._wire.startswith(b"HEAD ")

    @property
    def is_idempotent(self) -> bool:
        """Whether it may be sent again when nobody knows if it was acted on."""
        return self.method in _IDEMPOTENT

    def access_line(
        self,
        prefix: str,
        elapsed: float,
        origin: str,
        version: str,
        status: int,
        received: int,
        seconds: float,
        result: str,
    ) -> str:
        """Return the request's line of the access log, in the form of the C program.

        Bytes are the characters of the same numbers, so that Latin-1 is how to encode it.

        Args:
            prefix: what goes first.
            elapsed: seconds since the start.
            origin: the target's scheme and authority.
            version: the answer's HTTP version, as "1.1".
            status: the answer's status.
            received: the size of the answer's body in bytes.
            seconds: from the request's sending to now.
            result: "ok", or what went wrong.
        """
        wire: bytes = self._wire
        start: cython.Py_ssize_t = wire.find(b" ")
        end: cython.Py_ssize_t = wire.find(b" ", start + 1)
        method: bytes = wire[:start]
        target: bytes = wire[start + 1 : end]
        up: cython.Py_ssize_t = len(wire) - self._head_size
        # C integers: a float takes three times as long to format.
        at: cython.longlong = int(elapsed * 1_000_000)
        took: cython.longlong = int(seconds * 1_000_000)
        code: cython.longlong = status
        down: cython.longlong = received
        return (
            f"{prefix}[{at // 1_000_000:5d}.{at % 1_000_000:06d}] "
            f'"{method.decode("latin-1")} {origin}{target.decode("latin-1")} HTTP/{version}" '
            f"{code} {up}/{down} {took // 1000}.{took % 1000:03d} {result}\n"
        )

    def as_retried(self) -> Request:
        """Return the request marked as sent once already."""
        return Request(self._wire, self._head_size, True)


@cython.cfunc
@cython.inline
def _make_request(wire: bytes, head_size: cython.Py_ssize_t) -> Request:
    """Return ``Request(wire, head_size)``, without the cost of a call from Python."""
    request: Request = Request.__new__(Request)
    request._wire = wire
    request._head_size = head_size
    request._retried = False
    return request


def build_request(
    method: bytes,
    target: bytes,
    headers: bytes,
    binary: bool,
    body: bytes,
    base_path: bytes,
    authority: bytes,
) -> Request:
    """Make the copy of a request.

    Args:
        method: any method but CONNECT.
        target: a path with its query, a complete URL (the absolute form), or ``*``.
        headers: the fields, as in `binary`.
        binary: whether they are a ``req.hdrs_bin`` (names and values, each behind its length as a
            varint, up to an empty pair) and not a ``req.hdrs`` (lines that end with CR LF).
        body: the body, perhaps empty.
        base_path: what to put in front of the path, without a slash at its end.
        authority: the Host to send where the request names none.

    Raises:
        TruncatedBodyError: the body is shorter than its Content-Length.
        RefusedRequestError: a part is malformed, or the method is CONNECT.
    """
    if method not in _known_methods:
        _check_method(method)
    _check_target(target)
    host: bytes = b""
    if not target.startswith(b"/"):
        host, target = _split_target(method, target)
    fields: list[bytes] = _binary_fields(headers) if binary else _string_fields(headers)
    # Methods, targets and names are checked for what they may have; of values, only this matters.
    text: bytes = b"".join(fields)
    if b"\n" in text or b"\r" in text or b"\0" in text:
        raise RefusedRequestError("there is a CR, LF or NUL in its header fields")
    if target == b"*":
        base_path = b""
    # The request line, then two pieces for each field: its name, with what is around it, and its
    # value.
    pieces: list[bytes] = [method, b" ", base_path, target, b" HTTP/1.1"]
    first: cython.Py_ssize_t = len(pieces)
    options: bytes = b""
    has_length: cython.bint = False
    has_host: cython.bint = False
    ordinary: dict[bytes, bytes] = _ordinary
    index: cython.Py_ssize_t
    for index in range(0, len(fields), 2):
        name: bytes = fields[index]
        value: bytes = fields[index + 1]
        before = ordinary.get(name)
        if before is None:
            kind: cython.uint = _SPECIAL.get(name.lower(), _ORDINARY)
            if kind == _ORDINARY:
                before = _learn_name(name)
            elif kind == _HOP_BY_HOP:
                continue
            elif kind == _CONNECTION:
                options += b"," + value
                continue
            else:
                if kind == _CONTENT_LENGTH:
                    _check_length(value, len(body))
                else:
                    name = b"content-length"
                if has_length:
                    continue
                has_length = True
                before = b"\r\n%b: " % name
                value = b"%d" % len(body)
        if len(name) == 4 and name.lower() == b"host":
            has_host = True
        pieces.append(before)
        pieces.append(value)
    if body and not has_length:
        pieces += (b"\r\ncontent-length: ", b"%d" % len(body))
    if options:
        pieces[first:] = _without(pieces[first:], options)
    if not has_host:
        pieces[first:first] = (b"\r\nhost: ", host or authority)
    pieces.append(b"\r\n\r\n")
    head: bytes = b"".join(pieces)
    return _make_request(head + body if body else head, len(head))


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
def _learn_name(name: bytes) -> bytes:
    """Return a name with what is around it in a head, and remember that."""
    if not name or name.translate(None, _TOKEN):
        raise RefusedRequestError(f"the field name {name[:40]!r} is not a token")
    before: bytes = b"\r\n%b: " % name
    if len(_ordinary) < _MAX_ORDINARY and len(name) <= _MAX_ORDINARY_SIZE:
        _ordinary[name] = before
    return before


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


@cython.cfunc
def _string_fields(headers: bytes) -> list[bytes]:
    fields: list[bytes] = []
    while headers.endswith(b"\r\n"):
        headers = headers[: len(headers) - 2]
    for line in headers.split(b"\r\n") if headers else ():
        name, colon, value = line.partition(b":")
        if not colon:
            raise RefusedRequestError(f"the line {line[:40]!r} is not a field")
        fields.append(name)
        fields.append(value.strip(b" \t"))
    return fields


@cython.cfunc
def _binary_fields(headers: bytes) -> list[bytes]:
    fields: list[bytes] = []
    end: cython.Py_ssize_t = len(headers)
    pos: cython.Py_ssize_t = 0
    # Slices of it are not checked when compiled, and cost half: hence the check before them.
    start_of: cython.p_char = headers
    while pos < end:
        size: cython.Py_ssize_t = headers[pos]
        pos += 1
        if size >= 0xF0:  # a varint of several bytes (SPOE.txt 3.1)
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
        fields.append(start_of[pos : pos + size])
        pos += size
    if len(fields) < 2 or len(fields) % 2 or fields.pop() or fields.pop():
        raise RefusedRequestError("its block of fields does not end with an empty one")
    return fields
