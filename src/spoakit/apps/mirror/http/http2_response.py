"""Response to a request that was sent as an HTTP/2 stream."""

from typing import Final

from spoakit.apps.mirror._request_cy import OutgoingRequest


class Http2Response:
    """A response that is awaited or has been read; see `access_log.Response`.

    Attributes:
        request: what is answered.
        stream_id: its stream.
        sent_at: when the request was sent, on ``time.perf_counter()``'s clock.
        first_byte_at: when the response's head came, on the same clock.
        status: the status; 0 before there is one.
        received: the bytes of the body so far, without padding.
        grpc_status: a gRPC call's status, as "0"; None where there is none.
        unsent: the bytes of the request's body that wait for the peer's windows to open.
    """

    __slots__ = (
        "first_byte_at",
        "grpc_status",
        "received",
        "request",
        "sent_at",
        "status",
        "stream_id",
        "unsent",
    )

    def __init__(self, request: OutgoingRequest, stream_id: int, sent_at: float) -> None:
        self.request: Final = request
        self.stream_id: Final = stream_id
        self.sent_at: Final = sent_at
        self.first_byte_at = 0.0
        self.status = 0
        self.received = 0
        self.grpc_status: bytes | None = None
        self.unsent = request.body_size

    @property
    def version(self) -> bytes:
        """The HTTP version, b"2"; b"???" before there is a response."""
        return b"2" if self.status else b"???"
