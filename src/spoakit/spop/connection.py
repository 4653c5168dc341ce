"""Both ends of an SPOP connection as state machines without input and output.

The caller moves the bytes: what arrives goes into `receive_data` or `receive_eof`,
`events_received` says what it meant, `data_to_send` has what must be written, in one
write, since HAProxy may stall on a frame in pieces. Everything that decides which frame
may come when stands in the two tables `AgentConnection.RULES` and
`EngineConnection.RULES`; a frame that no rule names is an `InvalidFrameError`.

A violation by the peer is an event too, `Failed`: whoever drives the connection sends
what is still owed, calls `send_disconnect` and closes.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, ClassVar, TypeAlias

from spoakit.exceptions import (
    FragmentationError,
    FrameIdNotFoundError,
    FrameTooBigError,
    InterlacedFramesError,
    InvalidFrameError,
    ProtocolError,
    SpoakitError,
    StatusCode,
)
from spoakit.spop._decode_cy import Notify, split_notifies
from spoakit.spop._encode_cy import Action, append_ack
from spoakit.spop.actions import decode_actions
from spoakit.spop.constants import MIN_FRAME_SIZE, FrameFlag, FrameType
from spoakit.spop.frames import (
    FLAGS_SIZE,
    LENGTH_SIZE,
    NO_IDS,
    Frame,
    decode_frame,
    encode_frame,
    encode_ids,
)
from spoakit.spop.handshake import (
    ASYNC,
    FRAGMENTATION,
    PIPELINING,
    AgentHello,
    Disconnect,
    EngineHello,
)
from spoakit.spop.messages import Message, encode_messages

# What other protocols' first bytes look like where a frame's length should be.
_HTTP_METHODS = (b"GET ", b"HEAD", b"POST", b"PUT ", b"OPTI", b"DELE", b"PATC", b"CONN", b"PRI ")
_TLS_HANDSHAKE = b"\x16\x03"

# HAProxy's HELLO has less than 200 bytes; a stranger's connection is to hold no more.
_HELLO_SIZE_CAP = 4096

_FRAME_NAMES = {int(kind): kind.name.replace("_", "-") for kind in FrameType}


class State(Enum):
    """How far a connection has come."""

    HELLO = "HELLO"  # the peer's HELLO is awaited
    OPEN = "OPEN"  # NOTIFYs and ACKs go back and forth
    CLOSING = "CLOSING"  # nothing more is read


@dataclass(frozen=True, slots=True)
class AgentSettings:
    """What an agent offers and endures.

    Attributes:
        max_frame_size: the largest frame agreed to, in bytes; None takes the engine's.
        frame_size_cap: the longest frame read, whatever was agreed, in bytes.
        reassembled_size: the longest payload put together from fragments, in bytes.
        capabilities: what is announced; fragmentation always is, since HAProxy up to
            3.0 sends fragments to whoever announces it and never recovers from a refusal.
    """

    max_frame_size: int | None = None
    frame_size_cap: int = 1 << 20
    reassembled_size: int = 4 << 20
    capabilities: frozenset[str] = frozenset((FRAGMENTATION, PIPELINING))


@dataclass(frozen=True, slots=True)
class Opened:
    """The handshake is done."""

    engine: EngineHello
    agent: AgentHello


@dataclass(frozen=True, slots=True)
class HealthChecked:
    """HAProxy asked whether the agent is well, and the answer is ready: send it and close."""

    refused: bool


@dataclass(frozen=True, slots=True)
class Aborted:
    """The engine gave up a NOTIFY of which it had sent fragments."""

    ids: bytes


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """The agent's answer to a NOTIFY."""

    stream_id: int
    frame_id: int
    actions: tuple[Action, ...]


@dataclass(frozen=True, slots=True)
class Disconnected:
    """The peer ends the connection, and says why."""

    status_code: int
    message: str


@dataclass(frozen=True, slots=True)
class Failed:
    """The peer broke the protocol."""

    error: ProtocolError


@dataclass(frozen=True, slots=True)
class Skipped:
    """A frame of a type that is not known came, and was passed over (3.2.2)."""

    type: int


Event: TypeAlias = (
    Opened | HealthChecked | Notify | Aborted | Acknowledged | Disconnected | Failed | Skipped
)

# What is done with a frame of a type in a state.
Rules: TypeAlias = Mapping[tuple[State, int], Callable[[Any, Frame], None]]


class Connection:
    """What both ends have in common: framing, the rules' application, the end.

    Args:
        frame_size_cap: the longest frame read, in bytes.

    Attributes:
        state: how far the connection has come.
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
        """Whether nothing more is read: `data_to_send` is to be written, and that is all."""
        return self.state is State.CLOSING

    @property
    def is_between_frames(self) -> bool:
        """Whether it is open and nothing has come in part.

        Whole NOTIFYs may be handled then without passing through here.
        """
        return self.state is State.OPEN and self._holds_nothing()

    def receive_data(self, data: bytes) -> None:
        """Take bytes from the peer; then ask for `events_received` and `data_to_send`."""
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
        """Take note that the peer sends nothing more; an event tells of a frame cut short.

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
        self.outgoing += encode_frame(self.DISCONNECT, Disconnect(status_code, message).encode())

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
        """Take what needs no rule; return the offset of the first frame that does."""
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
        reason = Disconnect.decode(frame.payload)
        self._stop_reading()
        self._events.append(Disconnected(reason.status_code, reason.message))

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


class AgentConnection(Connection):
    """The agent's end of a connection.

    Args:
        settings: what is offered to the engine.

    Attributes:
        engine: what the engine said in its HELLO, None before.
        refuse_health_checks: answer them with a DISCONNECT, because the agent leaves.
    """

    DISCONNECT = FrameType.AGENT_DISCONNECT

    def __init__(self, settings: AgentSettings | None = None) -> None:
        self._settings = settings or AgentSettings()
        super().__init__(self._settings.frame_size_cap)
        self.engine: EngineHello | None = None
        self.refuse_health_checks = False
        self._fragments: bytearray | None = None
        self._fragment_ids = b""

    def send_ack(self, notify: Notify, actions: Iterable[Action] = ()) -> bool:
        """Acknowledge a NOTIFY; the order among several is free.

        Returns:
            False if the actions did not fit the agreed frame size and were left out.
        """
        return append_ack(self.outgoing, notify.ids, tuple(actions), self.max_frame_size)

    def _stop_reading(self) -> None:
        super()._stop_reading()
        self._fragments = None

    def _holds_nothing(self) -> bool:
        return self._fragments is None and super()._holds_nothing()

    def _receive_fast(self, data: bytes, position: int) -> int:
        if self.state is State.OPEN and self._fragments is None:
            return split_notifies(data, position, self._frame_size_cap, self._events)
        return position

    def _receive_hello(self, frame: Frame) -> None:
        self._check_hello(frame)
        hello = EngineHello.decode(frame.payload)
        if hello.healthcheck and self.refuse_health_checks:
            self._events.append(HealthChecked(refused=True))
            self.send_disconnect(StatusCode.NORMAL, "the agent is stopping")
            return
        answer = AgentHello(self._frame_size_for(hello), self._capabilities_for(hello))
        self.outgoing += encode_frame(FrameType.AGENT_HELLO, answer.encode())
        if hello.healthcheck:
            self._stop_reading()
            self._events.append(HealthChecked(refused=False))
            return
        self.state = State.OPEN
        self.engine = hello
        self.max_frame_size = answer.max_frame_size
        self._events.append(Opened(hello, answer))

    def _frame_size_for(self, hello: EngineHello) -> int:
        # A health check says 16380 whatever HAProxy's buffers are, and fails on an echo
        # that is larger than they are.
        if hello.healthcheck:
            return MIN_FRAME_SIZE
        wanted = self._settings.max_frame_size or hello.max_frame_size
        return min(hello.max_frame_size, wanted, self._settings.frame_size_cap)

    def _capabilities_for(self, hello: EngineHello) -> frozenset[str]:
        """Return what to announce: pipelining and async only to an engine that has them."""
        mutual = hello.capabilities & self._settings.capabilities & {PIPELINING, ASYNC}
        return mutual | {FRAGMENTATION}

    def _receive_notify(self, frame: Frame) -> None:
        """Take a NOTIFY that is not whole, or comes while another is not (3.2)."""
        if self._fragments is not None:
            raise InterlacedFramesError("a NOTIFY within the fragments of another")
        if FrameFlag.ABORT in frame.flags:
            self._events.append(Aborted(frame.ids))
        elif frame.is_final:
            self._events.append(Notify(frame.ids, frame.payload, 0, len(frame.payload)))
        else:
            self._fragment_ids = frame.ids
            self._fragments = bytearray(frame.payload)

    def _receive_fragment(self, frame: Frame) -> None:
        if self._fragments is None:
            raise FrameIdNotFoundError("a fragment of a NOTIFY that has not begun")
        if frame.ids != self._fragment_ids:
            raise InterlacedFramesError("a fragment of another NOTIFY than the one begun")
        if FrameFlag.ABORT in frame.flags:
            self._fragments = None
            self._events.append(Aborted(frame.ids))
            return
        self._fragments += frame.payload
        if len(self._fragments) > self._settings.reassembled_size:
            limit = self._settings.reassembled_size
            raise FrameTooBigError(f"a NOTIFY in fragments exceeds the limit of {limit} bytes")
        if frame.is_final:
            payload = bytes(self._fragments)
            self._fragments = None
            self._events.append(Notify(frame.ids, payload, 0, len(payload)))

    RULES: ClassVar[Rules] = {
        (State.HELLO, FrameType.HAPROXY_HELLO): _receive_hello,
        (State.HELLO, FrameType.HAPROXY_DISCONNECT): Connection._receive_disconnect,
        (State.OPEN, FrameType.NOTIFY): _receive_notify,
        (State.OPEN, FrameType.UNSET): _receive_fragment,
        (State.OPEN, FrameType.HAPROXY_DISCONNECT): Connection._receive_disconnect,
    }


class EngineConnection(Connection):
    """HAProxy's end of a connection, for tests, benchmarks and tools.

    It holds the agent to what HAProxy holds it to.

    Args:
        hello: what to offer.
        frame_size_cap: the longest frame read, in bytes.

    Attributes:
        agent: what the agent said in its HELLO, None before.
    """

    DISCONNECT = FrameType.HAPROXY_DISCONNECT

    def __init__(self, hello: EngineHello, frame_size_cap: int = 1 << 20) -> None:
        super().__init__(frame_size_cap)
        self._hello = hello
        self.agent: AgentHello | None = None
        self._awaited: dict[bytes, tuple[int, int]] = {}

    def send_hello(self) -> None:
        """Begin the handshake; `Opened` tells that the agent agreed."""
        self.outgoing += encode_frame(FrameType.HAPROXY_HELLO, self._hello.encode())

    def send_notify(
        self,
        messages: Iterable[Message],
        *,
        stream_id: int,
        frame_id: int = 1,
        fragment_size: int | None = None,
    ) -> None:
        """Send messages; `Acknowledged` brings the answer.

        Args:
            messages: what to send.
            stream_id: 0 to 2**64 - 1.
            frame_id: 0 to 2**64 - 1; together they must not be in flight already.
            fragment_size: send the payload in fragments of so many bytes; by default
                only a payload that exceeds the agreed size is cut, if the agent
                announced fragmentation.

        Raises:
            SpoakitError: the handshake is not done, or the ids are in flight.
            FrameTooBigError: the payload exceeds the agreed size, and the agent takes no
                fragments.
        """
        ids = encode_ids(stream_id, frame_id)
        if self.agent is None or self.state is not State.OPEN:
            raise SpoakitError(f"no NOTIFY can be sent in state {self.state.value}")
        if ids in self._awaited:
            raise SpoakitError(f"stream {stream_id}, frame {frame_id} is in flight already")
        payload = encode_messages(messages)
        room = self.max_frame_size - 1 - FLAGS_SIZE - len(ids)
        if fragment_size is None and len(payload) > room:
            if FRAGMENTATION not in self.agent.capabilities:
                raise FrameTooBigError(f"a payload of {len(payload)} bytes, {room} are agreed")
            fragment_size = room
        self._awaited[ids] = (stream_id, frame_id)
        self.outgoing += _encode_notify(ids, payload, fragment_size or max(1, len(payload)))

    def send_abort(self, *, stream_id: int, frame_id: int = 1) -> None:
        """Give up a NOTIFY whose fragments have begun to be sent by hand."""
        ids = encode_ids(stream_id, frame_id)
        flags = FrameFlag.FIN | FrameFlag.ABORT
        self.outgoing += encode_frame(FrameType.UNSET, b"", ids=ids, flags=flags)

    def _receive_hello(self, frame: Frame) -> None:
        self._check_hello(frame)
        self.agent = AgentHello.decode(frame.payload, self._hello)
        self.max_frame_size = self.agent.max_frame_size
        if self._hello.healthcheck:
            self._stop_reading()
        else:
            self.state = State.OPEN
        self._events.append(Opened(self._hello, self.agent))

    def _receive_ack(self, frame: Frame) -> None:
        if not frame.is_final:
            raise FragmentationError("an ACK in fragments")
        size = 1 + FLAGS_SIZE + len(frame.ids) + len(frame.payload)
        if size > self.max_frame_size:
            raise FrameTooBigError(f"an ACK of {size} bytes, {self.max_frame_size} were agreed")
        known = self._awaited.pop(frame.ids, None)
        if known is None:
            text = f"an ACK for stream {frame.stream_id}, frame {frame.frame_id}: not in flight"
            raise FrameIdNotFoundError(text)
        self._events.append(Acknowledged(*known, tuple(decode_actions(frame.payload))))

    RULES: ClassVar[Rules] = {
        (State.HELLO, FrameType.AGENT_HELLO): _receive_hello,
        (State.HELLO, FrameType.AGENT_DISCONNECT): Connection._receive_disconnect,
        (State.OPEN, FrameType.ACK): _receive_ack,
        (State.OPEN, FrameType.AGENT_DISCONNECT): Connection._receive_disconnect,
    }


def _encode_notify(ids: bytes, payload: bytes, fragment_size: int) -> bytes:
    """Encode a payload as a NOTIFY and as many UNSET frames as it takes (3.2)."""
    frames = bytearray()
    parts = range(0, max(1, len(payload)), fragment_size)
    for start in parts:
        frames += encode_frame(
            FrameType.NOTIFY if start == 0 else FrameType.UNSET,
            payload[start : start + fragment_size],
            ids=ids,
            flags=FrameFlag.FIN if start == parts[-1] else FrameFlag(0),
        )
    return bytes(frames)
