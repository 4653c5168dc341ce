"""Response on an HTTP/2 stream."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from hpack import Decoder

from spoakit.apps.mirror._request_cy import OutgoingRequest

# Limits of the cache of header blocks: their number, and the size of one.
_MAX_KNOWN: Final = 64
_MAX_KNOWN_SIZE: Final = 512
_BODILESS: Final = (204, 304)
_MAX_LENGTH_DIGITS: Final = 18


@dataclass(frozen=True, slots=True)
class ResponseHead:
    """The relevant fields of a response's head, or of its trailers.

    Attributes:
        status: the status; 0 if it is missing.
        length: the Content-Length; None if it is missing.
        grpc_status: a gRPC call's status, as b"0"; None if it is missing. grpc_message: its
            message, percent-encoded. error: the reason why it is malformed; "" if it is not.
    """

    status: int = 0
    length: int | None = None
    grpc_status: bytes | None = None
    grpc_message: bytes = b""
    error: str = ""


class Http2Response:
    """Response on a stream, in flight or complete; see `access_log.Response`.

    Attributes:
        request: the request of the response.
        stream_id: its stream.
        sent_at: when the request was sent, on ``time.perf_counter()``'s clock.
        first_byte_at: when the response's head was received, on the same clock.
        status: the status; 0 before there is one.
        received: the bytes of the body so far, without padding.
        expected: the size that the body must have; None for any size.
        has_body: whether there may be a body (RFC 9110, 6.4.1); it is known after the head.
        grpc_status: a gRPC call's status, as "0"; None where there is none.
        grpc_message: its message, percent-encoded.
        unsent: the bytes of the request's body that wait for the peer's windows.
        window: the bytes that the stream's window allows to send.
        unacknowledged: the bytes received since the last WINDOW_UPDATE.
    """

    __slots__ = (
        "expected",
        "first_byte_at",
        "grpc_message",
        "grpc_status",
        "has_body",
        "received",
        "request",
        "sent_at",
        "status",
        "stream_id",
        "unacknowledged",
        "unsent",
        "window",
    )

    def __init__(self, request: OutgoingRequest, stream_id: int, sent_at: float) -> None:
        self.request: Final = request
        self.stream_id: Final = stream_id
        self.sent_at: Final = sent_at
        self.first_byte_at = 0.0
        self.status = self.received = self.window = self.unacknowledged = 0
        self.expected: int | None = None
        self.has_body = True
        self.grpc_status: bytes | None = None
        self.grpc_message = b""
        self.unsent = request.body_size

    @property
    def version(self) -> bytes:
        """The HTTP version, b"2"; b"???" before there is a response."""
        return b"2" if self.status else b"???"

    def add_head(self, head: ResponseHead, now: float) -> None:
        """Add the head, received at `now`."""
        self.status = head.status
        self.first_byte_at = now
        self.add_trailers(head)  # a gRPC call without messages has its status in the head
        self.has_body = head.status not in _BODILESS and self.request.method != b"HEAD"
        if self.has_body:  # else the length is the one a GET would have
            self.expected = head.length

    def add_trailers(self, head: ResponseHead) -> None:
        """Add the fields at the end of the response."""
        if head.grpc_status is not None:
            self.grpc_status = head.grpc_status
            self.grpc_message = head.grpc_message


class CachingDecoder(Decoder):
    """Decoder of header blocks, which decodes repeated ones only once.

    The meaning of a block depends on the table of recent fields, so the cache is cleared when the
    table changes. Servers send equal blocks while their Date stays the same.
    """

    def __init__(self, max_header_list_size: int) -> None:
        super().__init__(max_header_list_size)
        self._known: dict[bytes, ResponseHead] = {}

    def decode_head(self, block: bytes) -> ResponseHead:
        """Return the relevant fields of a block.

        Raises:
            HPACKError: the block is malformed or too large.
        """
        known = self._known.get(block)
        if known is not None:
            return known
        before = self._table()
        head = parse_response_head(self.decode(block, raw=True))
        after = self._table()
        if after != before or after[1] is not before[1] or len(self._known) >= _MAX_KNOWN:
            self._known.clear()
        elif len(block) <= _MAX_KNOWN_SIZE:
            self._known[block] = head
        return head

    def _table(self) -> tuple[int, object, int]:
        """Return a fingerprint of the table, by the identities of its newest and oldest entries.

        Entries are added at the front and evicted at the back.
        """
        entries = self.header_table.dynamic_entries
        return len(entries), entries[0] if entries else None, self.header_table_size


def parse_response_head(fields: Iterable[tuple[bytes, bytes]]) -> ResponseHead:
    """Return the relevant ones of some fields."""
    status = 0
    lengths: set[bytes] = set()
    grpc_status, grpc_message = None, b""
    for name, value in fields:
        if name == b":status":
            status = int(value) if len(value) == 3 and value.isdigit() else 0
        elif name == b"content-length":
            lengths.update(each.strip() for each in bytes(value).split(b","))
        elif name == b"grpc-status":
            grpc_status = bytes(value)
        elif name == b"grpc-message":
            grpc_message = bytes(value)
    length, error = None, ""
    if len(lengths) == 1 and (digits := next(iter(lengths))).isdigit():
        length = int(digits[:_MAX_LENGTH_DIGITS])
    elif lengths:
        shown = ", ".join(repr(each[:20]) for each in sorted(lengths)[:3])
        error = f"its Content-Length is {shown}"
    if status < 100:
        error = "it has no status"
    return ResponseHead(status, length, grpc_status, grpc_message, error)
