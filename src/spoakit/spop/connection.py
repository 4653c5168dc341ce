"""Base of both ends of an SPOP connection: state machines without input and output.

The caller moves the bytes. It passes received bytes to `receive_data` or `receive_eof`, handles
the events that `events_received` returns, and writes the bytes that `data_to_send` returns, in
one write, since HAProxy may stall on a frame in pieces. Two tables, `AgentConnection.RULES` and
`EngineConnection.RULES`, define the frames that are allowed in each state. A frame without a rule
is an `InvalidFrameError`.

A violation by the peer is the event `Failed`. The caller then sends the ACKs that are due, calls
`send_disconnect` and closes the connection.
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
    cache_small,
    decode_frame,
    encode_frame,
)
from spoakit.spop.handshake import Disconnect

# First bytes of other protocols, found where a frame's length should be.
_HTTP_METHODS = (b"GET ", b"HEAD", b"POST", b"PUT ", b"OPTI", b"DELE", b"PATC", b"CONN", b"PRI ")
_TLS_HANDSHAKE = b"\x16\x03"

# HAProxy's HELLO has less than 200 bytes. Until it has arrived, the peer may be anyone, and must
# not make the agent buffer much.
_HELLO_SIZE_CAP = 4096

_FRAME_NAMES = {int(kind): kind.name.replace("_", "-") for kind in FrameType}


class State(StrEnum):
    """State of a connection, from the reader's view."""

    HELLO = "HELLO"  # waits for the peer's HELLO
    OPEN = "OPEN"  # exchanges NOTIFYs and ACKs
    CLOSING = "CLOSING"  # ignores everything the peer sends


# The method that handles a frame, by state and frame type.
Rules: TypeAlias = Mapping[tuple[State, int], Callable[[Any, Frame], None]]


class Connection:
    """Base of both ends: framing, applying the rules, disconnecting.

    Args:
        frame_size_cap: the longest frame to accept, in bytes.

    Attributes:
        state: see `State`.
        outgoing: the bytes that `data_to_send` will return; ACKs are appended to it.
        max_frame_size: the agreed size in bytes, 256 until the handshake is done.
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
        """True if received bytes are ignored; `data_to_send` must still be written."""
        return self.state is State.CLOSING

    @property
    def is_between_frames(self) -> bool:
        """True if the connection is open and no frame is incomplete.

        Then the caller may handle unfragmented NOTIFYs by itself.
        """
        return self.state is State.OPEN and self._has_no_partial_frame()

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
            self._report_violation(error)
            return
        if consumed < len(data) and not self.is_closing:
            self._incomplete += data[consumed:]

    def receive_eof(self) -> None:
        """Handle the end of the peer's stream; within a frame it becomes the event `Failed`.

        Between two frames it is normal: HAProxy closes idle connections like this.
        """
        if self._incomplete and not self.is_closing:
            text = f"the connection ended within a frame, after {len(self._incomplete)} bytes"
            self._report_violation(InvalidFrameError(text))
        self._stop_reading()

    def events_received(self) -> list[Event]:
        """Return the events since the last call, in order."""
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
        """Send a DISCONNECT; the caller then writes it and closes the connection.

        Args:
            status_code: a `StatusCode`, or the one of the peer's DISCONNECT; see `Disconnect`.
            message: the reason; cut to 255 bytes of UTF-8.
        """
        self._stop_reading()
        self.outgoing += _encode_disconnect(self.DISCONNECT, status_code, message)

    def _report_violation(self, error: ProtocolError) -> None:
        self._stop_reading()
        self._events.append(Failed(error))

    def _stop_reading(self) -> None:
        """Enter CLOSING, and drop an incomplete frame."""
        self.state = State.CLOSING
        self._incomplete.clear()

    def _receive_frames(self, data: bytes, position: int) -> int:
        """Handle the complete frames from an offset on; return the offset after the last one."""
        while not self.is_closing and position < len(data):
            start = position + LENGTH_SIZE
            if len(data) < start:
                self._needed = LENGTH_SIZE
                break
            length = int.from_bytes(data[position:start], "big")
            limit = self._frame_size_cap if self.state is State.OPEN else _HELLO_SIZE_CAP
            if length > limit:
                raise FrameTooBigError(self._describe_oversized(length, limit, data[position:]))
            if length == 0:
                raise InvalidFrameError("a frame with a length of 0")
            if len(data) < start + length:
                self._needed = LENGTH_SIZE + length
                break
            position = start + length
            self._receive_frame(decode_frame(data[start:position]))
            position = self._receive_fast(data, position)
        return position

    def _has_no_partial_frame(self) -> bool:
        """Return whether no frame is incomplete."""
        return not self._incomplete

    def _receive_fast(self, data: bytes, position: int) -> int:
        """Parse frames that need no rule, and return the offset of the first that does."""
        return position

    def _receive_frame(self, frame: Frame) -> None:
        rule = self.RULES.get((self.state, frame.type))
        name = _FRAME_NAMES.get(frame.type, f"a frame of type {frame.type}")
        if rule is not None:
            rule(self, frame)
        elif frame.type in _FRAME_NAMES or self.state is State.HELLO:
            raise InvalidFrameError(f"{name} is not allowed in state {self.state.value}")
        else:
            self._events.append(Skipped(frame.type))

    def _receive_disconnect(self, frame: Frame) -> None:
        event = _decode_disconnect(frame.payload)
        self._stop_reading()
        self._events.append(event)

    def _check_hello(self, frame: Frame) -> None:
        """Raise if a HELLO is fragmented or has ids (3.2.4, 3.2.5)."""
        if not frame.is_final:
            raise FragmentationError("a HELLO must not be fragmented")
        if frame.ids != NO_IDS:
            text = f"a HELLO has stream {frame.stream_id}, frame {frame.frame_id}: both must be 0"
            raise InvalidFrameError(text)

    def _describe_oversized(self, length: int, limit: int, data: bytes) -> str:
        if self.state is State.HELLO and data.startswith(_HTTP_METHODS):
            return "an HTTP request, where an SPOP frame was expected"
        if self.state is State.HELLO and data.startswith(_TLS_HANDSHAKE):
            return "a TLS handshake, where an SPOP frame was expected"
        return f"a frame of {length} bytes exceeds the limit of {limit}"


@cache_small
def _decode_disconnect(payload: bytes) -> Disconnected:
    reason = Disconnect.decode(payload)
    return Disconnected(reason.status_code, reason.message)


@lru_cache(32)
def _encode_disconnect(kind: FrameType, status_code: int, message: str) -> bytes:
    # Nearly all connections end for one of a few reasons, so the frames are cached.
    return encode_frame(kind, Disconnect(status_code, message).encode())
