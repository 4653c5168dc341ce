"""Requests as HAProxy sends them, and builders of their copies."""

from collections.abc import Sequence
from types import ModuleType
from typing import Any

from spoakit.agent.headers import Headers
from spoakit.apps.mirror._request_cy import IncomingRequest
from spoakit.apps.mirror.config.schema import TargetSettings
from spoakit.apps.mirror.url import TargetURL

Fields = Sequence[tuple[bytes, bytes]]


def varint(number: int) -> bytes:
    if number < 240:
        return bytes((number,))
    encoded = bytes((number & 15 | 240,))
    number = number - 240 >> 4
    while number >= 128:
        encoded += bytes((number & 127 | 128,))
        number = number - 128 >> 7
    return encoded + bytes((number,))


def binary(fields: Fields) -> bytes:
    parts = [varint(len(part)) + part for field in fields for part in field]
    return b"".join(parts) + b"\0\0"


def text(fields: Fields) -> bytes:
    return b"".join(b"%b: %b\r\n" % field for field in fields) + b"\r\n"


def original(method: bytes, target: bytes, lines: bytes, **more: Any) -> Any:
    headers = Headers(lines, more.pop("binary", False))
    return IncomingRequest(method, target, b"1.1", headers, **more)


def builder(building: ModuleType, base: str = "", **settings: Any) -> Any:
    url = TargetURL.parse(f"http://fallback:81{base}")
    return building.RequestBuilder(TargetSettings(url, **settings))


def build(
    building: ModuleType,
    fields: Fields = ((b"host", b"h"),),
    *,
    method: bytes = b"GET",
    target: bytes = b"/",
    body: bytes | None = b"",
    base: str = "",
    size: int = -1,
    source: bytes = b"",
    request_id: bytes = b"",
    adds_id: bool = False,
    max_frame_size: int = 0,
    body_kept: str = "keep",
    **settings: Any,
) -> Any:
    more = {"body": body, "size": size, "source": source, "request_id": request_id}
    more["max_frame_size"] = max_frame_size
    settings |= {"request_id": adds_id, "body": body_kept}
    request = original(method, target, binary(fields), binary=True, **more)
    return builder(building, base, **settings).build(request)


def wire(building: ModuleType, fields: Fields = ((b"host", b"h"),), **arguments: Any) -> bytes:
    built: bytes = build(building, fields, **arguments).wire
    return built


HOST = (b"host", b"h")
