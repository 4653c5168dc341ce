"""Both ends of an SPOP connection as state machines without input and output.

The caller moves the bytes: what arrives goes into `receive_data` or `receive_eof`,
`events_received` says what it meant, `data_to_send` has what must be written, in one
write, since HAProxy may stall on a frame in pieces. Everything that decides which frame
may come when stands in the two tables `AgentConnection.RULES` and
`EngineConnection.RULES`; a frame that no rule names is an `InvalidFrameError`.

A violation by the peer is an event too, `Failed`: the caller sends the ACKs that are due,
calls `send_disconnect` and closes.
"""

from collections.abc import Callable, Mapping
from enum import StrEnum
from functools import lru_cache
from typing import Any, ClassVar, TypeAlias

from spoakit.exceptions import (
    FragmentationError,
    FrameTooBigError,
    InvalidFrameError,
    ProtocolError,
)
from spoakit.spop.constants import MIN_FRAME_SIZE, FrameType
from spoakit.spop.events import Disconnected, Event, Failed, Skipped
from spoakit.spop.frames import (
    LENGTH_SIZE,
    NO_IDS,
    Frame,
    decode_frame,
    encode_frame,
    remember_small,
)
from spoakit.spop.handshake import Disconnect

# What other protocols' first bytes look like where a frame's length should be.
_HTTP_METHODS = (b"GET ", b"HEAD", b"POST", b"PUT ", b"OPTI", b"DELE", b"PATC", b"CONN", b"PRI ")
_TLS_HANDSHAKE = b"\x16\x03"

# HAProxy's HELLO has less than 200 bytes; a stranger's connection is to hold no more.
_HELLO_SIZE_CAP = 4096

_FRAME_NAMES = {int(kind): kind.name.replace("_", "-") for kind in FrameType}


class State(StrEnum):
    """State of a connection, as seen from its reading side."""

    HELLO = "HELLO"  # the peer's HELLO is awaited
    OPEN = "OPEN"  # NOTIFYs and ACKs go back and forth
    CLOSING = "CLOSING"  # nothing more is read


# What is done with a frame of a type in a state.
Rules: TypeAlias = Mapping[tuple[State, int], Callable[[Any, Frame], None]]


class Connection:
    """Base of both ends: framing, the rules' application, the end.

    Args:
        frame_size_cap: the longest frame read, in bytes.

    Attributes:
        state: see `State`.
        outgoing: what `data_to_send` will return; ACKs are built in it.
        max_frame_size: the agreed size, 256 until there is one.
    """

    RULES: ClassVar[Rules]
    DISCONNECT: ClassVar[FrameType]

    def __init__(self, frame_size_cap: int) -> None:
        self.state = State.HELLO
        self.outgoing = bytearray()
        self.max_frame_size = MIN_FRAME_SIZE
        self._frame_size_cap = frame_size_cap
        self._events: list[Event] = []
        self._incomplete = bytearray()
        self._needed = 0

    @property
    def is_closing(self) -> bool:
        """True if nothing more is read: only `data_to_send` is still to be written."""
        return self.state is State.CLOSING

    @property
    def is_between_frames(self) -> bool:
        """True if it is open and nothing has come in part.

        Whole NOTIFYs may be handled then without passing through here.
        """
        return self.state is State.OPEN and self._holds_nothing()

    def receive_data(self, data: bytes) -> None:
        """Parse bytes from the peer; then call `events_received` and `data_to_send`."""
        if self.is_closing:
            return
        if self._incomplete:
            self._incomplete += data
            if len(self._incomplete) < self._needed:
                return
            data = bytes(self._incomplete)
            self._incomplete.clear()
        try:
            consumed = self._receive_fast(data, 0)
            if consumed < len(data):
                consumed = self._receive_frames(data, consumed)
        except ProtocolError as error:
            self._fail(error)
            return
        if consumed < len(data) and not self.is_closing:
            self._incomplete += data[consumed:]

    def receive_eof(self) -> None:
        """Note that the peer sends nothing more; a frame cut short becomes an event.

        Between two frames it is normal: HAProxy closes idle connections so.
        """
        if self._incomplete and not self.is_closing:
            text = f"the connection ended within a frame, after {len(self._incomplete)} bytes"
            self._fail(InvalidFrameError(text))
        self._stop_reading()

    def events_received(self) -> list[Event]:
        """Return what came since the last call, in its order."""
        events = self._events
        if events:
            self._events = []
        return events

    def data_to_send(self) -> bytes:
        """Return what is to be written, in one write; the next call starts anew."""
        data = bytes(self.outgoing)
        self.outgoing.clear()
        return data

    def send_disconnect(self, status_code: int, message: str) -> None:
        """Tell the peer that the connection ends, and why; the caller then closes it.

        Args:
            status_code: a `StatusCode`, or what the peer's DISCONNECT had; see `Disconnect`.
            message: the reason; cut to 255 bytes of UTF-8.
        """
        self._stop_reading()
        self.outgoing += _encode_disconnect(self.DISCONNECT, status_code, message)

    def _fail(self, error: ProtocolError) -> None:
        self._stop_reading()
        self._events.append(Failed(error))

    def _stop_reading(self) -> None:
        """Leave for CLOSING, and keep nothing that was received in part."""
        self.state = State.CLOSING
        self._incomplete.clear()

    def _receive_frames(self, data: bytes, position: int) -> int:
        """Handle the whole frames from an offset on; return the offset behind the last one."""
        while not self.is_closing and position < len(data):
            start = position + LENGTH_SIZE
            if len(data) < start:
                self._needed = LENGTH_SIZE
                break
            length = int.from_bytes(data[position:start], "big")
            limit = self._frame_size_cap if self.state is State.OPEN else _HELLO_SIZE_CAP
            if length > limit:
                raise FrameTooBigError(self._too_big(length, limit, data[position:]))
            if length == 0:
                raise InvalidFrameError("a frame of zero bytes")
            if len(data) < start + length:
                self._needed = LENGTH_SIZE + length
                break
            position = start + length
            self._receive_frame(decode_frame(data[start:position]))
            position = self._receive_fast(data, position)
        return position

    def _holds_nothing(self) -> bool:
        """Return whether nothing has come in part."""
        return not self._incomplete

    def _receive_fast(self, data: bytes, position: int) -> int:
        """Parse frames that need no rule; return the offset of the first one that does."""
        return position

    def _receive_frame(self, frame: Frame) -> None:
        rule = self.RULES.get((self.state, frame.type))
        name = _FRAME_NAMES.get(frame.type, f"a frame of type {frame.type}")
        if rule is not None:
            rule(self, frame)
        elif frame.type in _FRAME_NAMES or self.state is State.HELLO:
            raise InvalidFrameError(f"{name} in state {self.state.value}")
        else:
            self._events.append(Skipped(frame.type))

    def _receive_disconnect(self, frame: Frame) -> None:
        event = _decode_disconnect(frame.payload)
        self._stop_reading()
        self._events.append(event)

    def _check_hello(self, frame: Frame) -> None:
        """Raise for a HELLO in fragments, or one with ids (3.2.4, 3.2.5)."""
        if not frame.is_final:
            raise FragmentationError("a HELLO in fragments")
        if frame.ids != NO_IDS:
            text = f"a HELLO of stream {frame.stream_id}, frame {frame.frame_id}: both must be 0"
            raise InvalidFrameError(text)

    def _too_big(self, length: int, limit: int, data: bytes) -> str:
        if self.state is State.HELLO and data.startswith(_HTTP_METHODS):
            return "an HTTP request, where an SPOP frame was expected"
        if self.state is State.HELLO and data.startswith(_TLS_HANDSHAKE):
            return "a TLS handshake, where an SPOP frame was expected"
        return f"a frame of {length} bytes, over the limit of {limit}"


@remember_small
def _decode_disconnect(payload: bytes) -> Disconnected:
    reason = Disconnect.decode(payload)
    return Disconnected(reason.status_code, reason.message)


@lru_cache(32)
def _encode_disconnect(kind: FrameType, status_code: int, message: str) -> bytes:
    # Nearly all connections end for the same few reasons.
    return encode_frame(kind, Disconnect(status_code, message).encode())
