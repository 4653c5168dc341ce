"""The head of a request, from the form of HTTP/1.1 into that of HTTP/2 and of HPACK."""

from collections.abc import Iterable
from typing import Any, Final, cast

from hpack import Encoder

from spoakit.apps.mirror._request_cy import OutgoingRequest

Field = tuple[bytes, bytes]

# Fields come again and again: looking one up replaces working it out. A table that is full begins
# anew, which costs those that are in use one miss each.
_MAX_KNOWN: Final = 4096
_MAX_KNOWN_SIZE: Final = 256

_AUTHORITY: Final = b":authority"
_GRPC: Final = b"application/grpc"
_TE: Final = (b"te", b"trailers")
# RFC 9113, 8.2.2: HTTP/2 has no fields about one connection.
_LEFT_OUT: Final = frozenset(
    (b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade")
)

# A line of a head, and the field it is; None where HTTP/2 has none.
_fields: dict[bytes, Field | None] = {}
# A field, and its form in HPACK.
_encoded: dict[Field, bytes] = {}


def read_head(request: OutgoingRequest, scheme: bytes) -> list[Field]:
    """Return the fields of a request's head, pseudo-header fields first (RFC 9113, 8.3.1).

    The order, duplicates, empty values and bytes that are not ASCII stay as they are; names are in
    lower case. The Host, the first where there are several, becomes ``:authority``. ``te`` is left
    only as "trailers", and put in for gRPC, which demands it.

    Args:
        request: a request as a `RequestBuilder` makes it.
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
    return _has_grpc(read_head(request, b"http"))


class PlainEncoder(Encoder):
    """Encode fields as literals, each by itself and the same way each time, and remember how.

    hpack's own way takes most of a request's time: Huffman's code is made byte by byte and the
    table of recent fields is searched from end to end, in Python. Literals cost the bytes that
    HTTP/1.1 costs. They are the kind that is never indexed (RFC 7541, 6.2.3), which keeps them out
    of the tables of all intermediaries, and secrets among them from being guessed (ibid., 7.1).
    """

    def encode(self, headers: Iterable[Any], huffman: bool = False) -> bytes:
        """Return the block of fields for a head."""
        fields = cast(Iterable[Field], headers)
        if self.header_table.resized:
            # The peer changed the table's size, which the next block has to acknowledge.
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
    field = _read_field(line)
    if len(line) <= _MAX_KNOWN_SIZE:
        if len(_fields) >= _MAX_KNOWN:
            _fields.clear()
        _fields[line] = field
    return field


def _read_field(line: bytes) -> Field | None:
    name, _, value = line.partition(b":")
    name = name.lower()
    value = value.strip(b" \t")  # RFC 9113, 8.2.1: with white space around, it is malformed
    if name in _LEFT_OUT:
        return None
    if name == b"host":
        return (_AUTHORITY, value) if value else None
    if name == b"te":
        return _TE if b"trailers" in value.lower() else None
    return name, value


def _has_grpc(fields: list[Field]) -> bool:
    return any(name == b"content-type" and value.startswith(_GRPC) for name, value in fields)
