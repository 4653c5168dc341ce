"""The outcome of a gRPC call (gRPC over HTTP/2): its status is not HTTP's."""

from typing import Final
from urllib.parse import unquote_to_bytes

from spoakit.apps.mirror.http.http2_head import is_grpc
from spoakit.apps.mirror.http.http2_response import Http2Response
from spoakit.apps.mirror.http.outcome import Outcome

_OK: Final = b"0"
_MAX_STATUS_SIZE: Final = 20
_MAX_MESSAGE_SIZE: Final = 200


def grpc_failure(response: Http2Response) -> Outcome | None:
    """Return the failure that a complete response to a gRPC call tells of, None for any other.

    A response without a gRPC status is a failure where HTTP's status says that all is well.
    """
    status = response.grpc_status
    if status == _OK or not is_grpc(response.request):
        return None
    if status is not None:
        text = f"grpc-status {_line(status[:_MAX_STATUS_SIZE])}"
        # Percent-encoded, a byte is up to three.
        message = unquote_to_bytes(response.grpc_message[: 3 * _MAX_MESSAGE_SIZE])
        if shown := _line(message[:_MAX_MESSAGE_SIZE]):
            text += f": {shown}"
    elif response.status == 200:
        text = "grpc-status missing"
    else:
        return None
    return Outcome(text, "grpc", is_response=True)


def _line(text: bytes) -> str:
    """Return a peer's text as one line of what can be printed."""
    decoded = text.decode("utf-8", "replace")
    return " ".join("".join(each if each.isprintable() else " " for each in decoded).split())
