"""Outcome of a gRPC call over HTTP/2, which has a status of its own."""

from typing import Final
from urllib.parse import unquote_to_bytes

from spoakit.apps.mirror.http.http2_head import is_grpc
from spoakit.apps.mirror.http.http2_response import Http2Response
from spoakit.apps.mirror.http.outcome import Outcome

_OK: Final = b"0"
_MAX_STATUS_SIZE: Final = 20
_MAX_MESSAGE_SIZE: Final = 200


def grpc_failure(response: Http2Response) -> Outcome | None:
    """Return the failure that a complete response to a gRPC call reports; None for success.

    A response with HTTP status 200 and without a gRPC status is a failure.
    """
    status = response.grpc_status
    if status == _OK or not is_grpc(response.request):
        return None
    if status is not None:
        text = f"grpc-status {_line(status[:_MAX_STATUS_SIZE])}"
        # A percent-encoded byte has three characters.
        message = unquote_to_bytes(response.grpc_message[: 3 * _MAX_MESSAGE_SIZE])
        if shown := _line(message[:_MAX_MESSAGE_SIZE]):
            text += f": {shown}"
    elif response.status == 200:
        text = "grpc-status missing"
    else:
        return None
    return Outcome(text, "grpc", is_response=True)


def _line(text: bytes) -> str:
    """Return a peer's text as one printable line."""
    decoded = text.decode("utf-8", "replace")
    return " ".join("".join(each if each.isprintable() else " " for each in decoded).split())
