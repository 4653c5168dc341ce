"""Payloads of HELLO and DISCONNECT frames (SPOE.txt 3.2.4, 3.2.5, 3.2.8, 3.2.9)."""

from collections.abc import Iterable
from dataclasses import dataclass

from spoakit.exceptions import (
    BadFrameSizeError,
    CapabilitiesNotFoundError,
    InvalidFrameError,
    MaxFrameSizeNotFoundError,
    StatusCode,
    UnsupportedVersionError,
    VersionNotFoundError,
)
from spoakit.spop._decode_cy import Cursor, Value
from spoakit.spop._encode_cy import encode_string, encode_value
from spoakit.spop.constants import MAX_DISCONNECT_MESSAGE, MIN_FRAME_SIZE, VERSION, DataType

FRAGMENTATION = "fragmentation"
PIPELINING = "pipelining"
ASYNC = "async"

# HAProxy sends five items; a peer that sends more than this is not HAProxy.
_MAX_ITEMS = 64


@dataclass(frozen=True, slots=True)
class EngineHello:
    """The payload of a HAPROXY-HELLO (3.2.4)."""

    max_frame_size: int
    versions: tuple[str, ...] = (VERSION,)
    capabilities: frozenset[str] = frozenset()
    healthcheck: bool = False
    engine_id: str | None = None

    def encode(self) -> bytes:
        """Return the payload."""
        items: list[tuple[str, DataType, Value]] = [
            ("supported-versions", DataType.STRING, ",".join(self.versions)),
            ("max-frame-size", DataType.UINT32, self.max_frame_size),
            ("capabilities", DataType.STRING, ",".join(sorted(self.capabilities))),
        ]
        if self.healthcheck:
            items.append(("healthcheck", DataType.BOOL, True))
        if self.engine_id is not None:
            items.append(("engine-id", DataType.STRING, self.engine_id))
        return _encode_items(items)

    @classmethod
    def decode(cls, payload: bytes) -> "EngineHello":
        """Decode and check the payload.

        Raises:
            InvalidFrameError: it is not a KV-LIST.
            VersionNotFoundError, MaxFrameSizeNotFoundError, CapabilitiesNotFoundError:
                an item is missing or of a wrong type.
            UnsupportedVersionError: the engine does not offer version 2.
            BadFrameSizeError: the size is below 256.
        """
        items = _decode_items(payload)
        versions = _words(items, "supported-versions")
        if versions is None:
            raise VersionNotFoundError("the engine's HELLO has no supported-versions")
        size = _frame_size(items, "the engine's HELLO")
        capabilities = _words(items, "capabilities")
        if capabilities is None:
            raise CapabilitiesNotFoundError("the engine's HELLO has no capabilities")
        # An engine that announces 2.x supports 2.0 too.
        if not any(version.split(".")[0] == VERSION.split(".")[0] for version in versions):
            offered = ", ".join(versions) or "none"
            raise UnsupportedVersionError(f"the engine offers SPOP {offered}, not {VERSION}")
        engine_id = items.get("engine-id")
        return cls(
            max_frame_size=size,
            versions=versions,
            capabilities=frozenset(capabilities),
            healthcheck=items.get("healthcheck") is True,
            engine_id=engine_id if isinstance(engine_id, str) else None,
        )


@dataclass(frozen=True, slots=True)
class AgentHello:
    """The payload of an AGENT-HELLO (3.2.5)."""

    max_frame_size: int
    capabilities: frozenset[str] = frozenset()
    version: str = VERSION

    def encode(self) -> bytes:
        """Return the payload; HAProxy's health check requires all three items."""
        return _encode_items(
            [
                ("version", DataType.STRING, self.version),
                ("max-frame-size", DataType.UINT32, self.max_frame_size),
                ("capabilities", DataType.STRING, ",".join(sorted(self.capabilities))),
            ]
        )

    @classmethod
    def decode(cls, payload: bytes, offered: EngineHello) -> "AgentHello":
        """Decode the payload, and check it against the engine's offer, as HAProxy does.

        Raises:
            InvalidFrameError: it is not a KV-LIST.
            VersionNotFoundError, MaxFrameSizeNotFoundError, CapabilitiesNotFoundError:
                an item is missing or of a wrong type.
            UnsupportedVersionError: the engine did not offer the version.
            BadFrameSizeError: the size is below 256 or above the engine's offer.
        """
        items = _decode_items(payload)
        version = items.get("version")
        if not isinstance(version, str):
            raise VersionNotFoundError("the agent's HELLO has no version")
        size = _frame_size(items, "the agent's HELLO")
        capabilities = _words(items, "capabilities")
        if capabilities is None:
            raise CapabilitiesNotFoundError("the agent's HELLO has no capabilities")
        if version.strip() not in offered.versions:
            raise UnsupportedVersionError(
                f"the agent chose SPOP {version}, which the engine did not offer"
            )
        if size > offered.max_frame_size:
            raise BadFrameSizeError(
                f"the agent chose a max-frame-size of {size}, over {offered.max_frame_size}"
            )
        return cls(size, frozenset(capabilities), version.strip())


@dataclass(frozen=True, slots=True)
class Disconnect:
    """The payload of a HAPROXY-DISCONNECT or AGENT-DISCONNECT (3.2.8, 3.2.9)."""

    status_code: int
    message: str

    def encode(self) -> bytes:
        """Return the payload, with the message cut to the 255 bytes that HAProxy accepts.

        A status code above 99 becomes 99: HAProxy 3.1 and 3.2 use it as an unchecked index.
        """
        status_code = min(self.status_code, StatusCode.UNKNOWN)
        raw = self.message.encode("utf-8", "replace")[:MAX_DISCONNECT_MESSAGE]
        return _encode_items(
            [
                ("status-code", DataType.UINT32, status_code),
                ("message", DataType.STRING, raw.decode("utf-8", "ignore")),
            ]
        )

    @classmethod
    def decode(cls, payload: bytes) -> "Disconnect":
        """Decode the payload; an item that is missing or of a wrong type becomes 99 or "".

        The message is cut to 255 bytes, as HAProxy does, because it will be logged.

        Raises:
            InvalidFrameError: it is not a KV-LIST.
        """
        items = _decode_items(payload)
        code, message = items.get("status-code"), items.get("message")
        # bool is a subclass of int, and codes are UINT32.
        if type(code) is not int or not 0 <= code < 2**32:
            code = StatusCode.UNKNOWN
        return cls(code, message[:MAX_DISCONNECT_MESSAGE] if isinstance(message, str) else "")


def _encode_items(items: Iterable[tuple[str, DataType, Value]]) -> bytes:
    """Encode a KV-LIST (3.2)."""
    return b"".join(
        encode_string(name.encode()) + encode_value(data_type, value)
        for name, data_type, value in items
    )


def _decode_items(payload: bytes) -> dict[str, Value]:
    """Decode a KV-LIST (3.2); the last of several items with one name counts, as in HAProxy."""
    cursor = Cursor(payload, 0, len(payload))
    items: dict[str, Value] = {}
    while not cursor.at_end():
        name = cursor.string().decode("utf-8", "surrogateescape")
        items[name] = cursor.value()[1]
        if len(items) > _MAX_ITEMS:
            raise InvalidFrameError(f"a list exceeds the limit of {_MAX_ITEMS} items")
    return items


def _words(items: dict[str, Value], name: str) -> tuple[str, ...] | None:
    """Return the items of a comma-separated list; None if it is missing."""
    text = items.get(name)
    if not isinstance(text, str):
        return None
    return tuple(word for part in text.split(",") if (word := part.strip()))


def _frame_size(items: dict[str, Value], sender: str) -> int:
    size = items.get("max-frame-size")
    if isinstance(size, bool) or not isinstance(size, int):
        raise MaxFrameSizeNotFoundError(f"{sender} has no max-frame-size")
    if size < MIN_FRAME_SIZE:
        raise BadFrameSizeError(
            f"{sender}: max-frame-size must be at least {MIN_FRAME_SIZE}, got {size}"
        )
    return size
