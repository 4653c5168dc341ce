"""Text of frames for the debug log: values shortened, secrets masked."""

import re
from collections.abc import Iterator
from typing import Final

from spoakit.agent.headers import Headers
from spoakit.exceptions import InvalidFrameError
from spoakit.spop import Argument, Notify, Value, decode_actions, decode_messages
from spoakit.spop.constants import DataType, FrameType
from spoakit.spop.frames import LENGTH_SIZE, Frame, decode_frame
from spoakit.spop.handshake import Disconnect

_MAX_VALUE: Final = 80
_MAX_FIELDS: Final = 20
_MASK: Final = "***"

_SECRET: Final = r"[\w.-]*(?:passw|passphrase|secret|token|api[_-]?key|credential|signature)[\w.-]*"
_SECRET_NAME: Final = re.compile(
    rf"(?:{_SECRET}|.*authorization|(?:set-)?cookie2?|pass|pwd|sid|.*session.*|jwt)", re.I
)
# name=value of queries and forms, "name": "value" of JSON.
_SECRET_PAIR: Final = re.compile(
    rf"((?:^|[?&;,{{\s])[\"']?(?:{_SECRET}|pass|pwd|sid|jwt)[\"']?\s*[=:]\s*)(\"[^\"]*\"?|[^&;,\s]*)",
    re.I,
)
_BEARER: Final = re.compile(r"\b(bearer|basic)\s+[\w.~+/=-]+", re.I)


def describe_notify(notify: Notify, max_messages: int) -> str:
    """Return a NOTIFY as text: its ids, its messages and their arguments.

    Raises:
        ProtocolError: it is malformed, or has too many messages.
    """
    messages = (
        f"{message.name}({', '.join(map(_argument, message.arguments))})"
        for message in decode_messages(notify, max_messages)
    )
    return f"NOTIFY {notify.stream_id}/{notify.frame_id}: {' '.join(messages) or 'no message'}"


def describe_outgoing(data: bytes) -> Iterator[str]:
    """Yield each of the agent's frames as text; `data` is complete frames with their lengths."""
    start = 0
    while start < len(data):
        begin = start + LENGTH_SIZE
        start = begin + int.from_bytes(data[start:begin], "big")
        yield _outgoing(decode_frame(data[begin:start]))


def _outgoing(frame: Frame) -> str:
    match frame.type:
        case FrameType.ACK:
            actions = (
                f"{each.scope.name.lower()}.{each.name}={_value(each.name, each.value)}"
                for each in decode_actions(frame.payload)
            )
            return f"ACK {frame.stream_id}/{frame.frame_id}: {' '.join(actions) or 'no action'}"
        case FrameType.AGENT_DISCONNECT:
            reason = Disconnect.decode(frame.payload)
            return f"AGENT-DISCONNECT with status {reason.status_code}: {reason.message}"
        case _:
            return FrameType(frame.type).name.replace("_", "-")


def _argument(argument: Argument) -> str:
    name = f"{argument.name}=" if argument.name else ""
    if "hdr" in argument.name or "headers" in argument.name:
        return f"{name}{_headers(argument)}"
    return f"{name}{_value(argument.name, argument.value)}"


def _headers(argument: Argument) -> str:
    value = argument.value
    raw = value.encode("utf-8", "surrogateescape") if isinstance(value, str) else value
    if not isinstance(raw, bytes):
        return _value("", value)
    try:
        fields = Headers(raw, argument.type is DataType.BINARY).fields
    except (InvalidFrameError, ValueError):
        return f"({len(raw)} bytes that are not a header block)"
    shown = [f"{name}: {_value(name, value)}" for name, value in fields[:_MAX_FIELDS]]
    if len(fields) > _MAX_FIELDS:
        shown.append(f"... ({len(fields)} fields in all)")
    return f"[{', '.join(shown)}]"


def _value(name: str, value: Value) -> str:
    """Return a value as text; mask it if its name or its text looks like a secret."""
    if value is None or isinstance(value, bool | int):
        return str(value)
    if not isinstance(value, str | bytes):
        return str(value)
    if _SECRET_NAME.fullmatch(name):
        return _MASK
    text = value if isinstance(value, str) else value[: 4 * _MAX_VALUE].decode("latin-1")
    shown = _BEARER.sub(rf"\1 {_MASK}", text[: 4 * _MAX_VALUE])
    shown = _SECRET_PAIR.sub(rf"\1{_MASK}", shown)[:_MAX_VALUE]
    cut = f"... ({len(value)} in all)" if len(value) > _MAX_VALUE else ""
    return f"{shown!r}{cut}"
