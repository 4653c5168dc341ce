"""Conversion of a request's head from HTTP/1.1 to HTTP/2 and HPACK."""

from collections.abc import Iterable
from typing import Any, Final, cast

from hpack import Encoder

from spoakit.apps.mirror._request_cy import OutgoingRequest

Field = tuple[bytes, bytes]

# Fields repeat, so the results are cached. A full cache is cleared, which costs each field in use
# one miss.
_MAX_KNOWN: Final = 4096
_MAX_KNOWN_SIZE: Final = 256

_AUTHORITY: Final = b":authority"
_GRPC: Final = b"application/grpc"
_TE: Final = (b"te", b"trailers")
# RFC 9113, 8.2.2: HTTP/2 has no hop-by-hop fields.
_LEFT_OUT: Final = frozenset(
    (b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade")
)

# A line of a head, and its field; None if HTTP/2 does not have the field.
_fields: dict[bytes, Field | None] = {}
# A field, and its HPACK encoding.
_encoded: dict[Field, bytes] = {}


def parse_head(request: OutgoingRequest, scheme: bytes) -> list[Field]:
    """Return the fields of a request's head, pseudo-header fields first (RFC 9113, 8.3.1).

    Order, duplicates, empty values and bytes that are not ASCII are preserved; names become lower
    case. The first Host becomes ``:authority``. ``te`` stays only as "trailers", and is added for
    gRPC, which requires it.

    Args:
        request: a request made by a `RequestBuilder`.
        scheme: "http" or "https".
    """
    wire = request.wire
    head = wire[: len(wire) - request.body_size - 4]
    lines = iter(head.split(b"\r\n"))
    method, target, _ = next(lines).split(b" ")
    pseudo = [(b":method", method), (b":scheme", scheme), (b":path", target)]
    fields: list[Field] = []
    known = _fields
    for line in lines:
        field = known[line] if line in known else _learn(line)
        if field is None:
            continue
        if field[0] != _AUTHORITY:
            fields.append(field)
        elif len(pseudo) == 3:
            pseudo.insert(2, field)
    if _GRPC in head and _TE not in fields and _has_grpc(fields):
        fields.append(_TE)
    return pseudo + fields


def is_grpc(request: OutgoingRequest) -> bool:
    """Return whether a request is a gRPC call."""
    if request.wire.find(_GRPC, 0, request.head_size) < 0:
        return False
    return _has_grpc(parse_head(request, b"http"))


class PlainEncoder(Encoder):
    """Encoder of fields as HPACK literals, with a cache.

    hpack's encoder would take most of a request's time: in Python it computes the Huffman code byte
    by byte and searches the whole table of recent fields. Literals need as many bytes as HTTP/1.1.
    They are never-indexed ones (RFC 7541, 6.2.3), so that no intermediary keeps them in a table, in
    which secrets could be guessed (7.1).
    """

    def encode(self, headers: Iterable[Any], huffman: bool = False) -> bytes:
        """Return the header block for a head."""
        fields = cast(Iterable[Field], headers)
        if self.header_table.resized:
            # The peer changed the table's size, and the next block must acknowledge it.
            return super().encode([(*field, True) for field in fields], huffman=False)
        known = _encoded
        return b"".join(
            [known[field] if field in known else self._learn(field) for field in fields]
        )

    def _learn(self, field: Field) -> bytes:
        encoded = self.add(field, sensitive=True, huffman=False)
        if len(encoded) <= _MAX_KNOWN_SIZE:
            if len(_encoded) >= _MAX_KNOWN:
                _encoded.clear()
            _encoded[field] = encoded
        return encoded


def _learn(line: bytes) -> Field | None:
    field = _parse_field(line)
    if len(line) <= _MAX_KNOWN_SIZE:
        if len(_fields) >= _MAX_KNOWN:
            _fields.clear()
        _fields[line] = field
    return field


def _parse_field(line: bytes) -> Field | None:
    name, _, value = line.partition(b":")
    name = name.lower()
    value = value.strip(b" \t")  # RFC 9113, 8.2.1: surrounding white space is malformed
    if name in _LEFT_OUT:
        return None
    if name == b"host":
        return (_AUTHORITY, value) if value else None
    if name == b"te":
        return _TE if b"trailers" in value.lower() else None
    return name, value


def _has_grpc(fields: list[Field]) -> bool:
    return any(name == b"content-type" and value.startswith(_GRPC) for name, value in fields)
