"""Agent's end of a connection."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

from spoakit.exceptions import (
    FrameIdNotFoundError,
    FrameTooBigError,
    InterlacedFramesError,
    StatusCode,
)
from spoakit.spop._decode_cy import Notify, split_notifies
from spoakit.spop._encode_cy import Action, append_ack
from spoakit.spop.connection import Connection, Rules, State
from spoakit.spop.constants import MIN_FRAME_SIZE, FrameFlag, FrameType
from spoakit.spop.events import Aborted, HealthChecked, Opened
from spoakit.spop.frames import Frame, encode_frame
from spoakit.spop.handshake import ASYNC, FRAGMENTATION, PIPELINING, AgentHello, EngineHello


@dataclass(frozen=True, slots=True)
class AgentSettings:
    """Settings of the agent's end: its offer to the engine, and its limits.

    Attributes:
        max_frame_size: the largest frame to agree on, in bytes; None for the engine's offer.
        frame_size_cap: the longest frame to accept, whatever was agreed, in bytes.
        reassembled_size: the longest payload to reassemble from fragments, in bytes.
        capabilities: the capabilities to announce. Fragmentation is always announced, since
            HAProxy up to 3.0 sends fragments whenever it announced the capability itself, and
            never recovers from a refusal.
    """

    max_frame_size: int | None = None
    frame_size_cap: int = 1 << 20
    reassembled_size: int = 4 << 20
    capabilities: frozenset[str] = frozenset((FRAGMENTATION, PIPELINING))


class AgentConnection(Connection):
    """Agent's end of a connection.

    Args:
        settings: its offer to the engine, and its limits.

    Attributes:
        engine: the engine's HELLO; None before it has arrived.
        refuse_health_checks: answer them with a DISCONNECT, because the agent is stopping.
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
        """Acknowledge a NOTIFY; ACKs may be sent in any order.

        Returns:
            False if the actions exceeded the agreed frame size and were left out.
        """
        return append_ack(self.outgoing, notify.ids, tuple(actions), self.max_frame_size)

    def _stop_reading(self) -> None:
        if not self.is_closing:
            super()._stop_reading()
            self._fragments = None

    def _has_no_partial_frame(self) -> bool:
        return self._fragments is None and super()._has_no_partial_frame()

    def _receive_fast(self, data: bytes, position: int) -> int:
        if self.state is State.OPEN and self._fragments is None:
            return split_notifies(data, position, self._frame_size_cap, self._events)
        return position

    def _receive_hello(self, frame: Frame) -> None:
        self._check_hello(frame)
        opened, encoded = _respond_to_hello(frame.payload, self._settings)
        hello = opened.engine
        if hello.healthcheck and self.refuse_health_checks:
            self._events.append(HealthChecked(refused=True))
            self.send_disconnect(StatusCode.NORMAL, "the agent is stopping")
            return
        self.outgoing += encoded
        if hello.healthcheck:
            self._stop_reading()
            self._events.append(HealthChecked(refused=False))
            return
        self.state = State.OPEN
        self.engine = hello
        self.max_frame_size = opened.agent.max_frame_size
        self._events.append(opened)

    def _receive_notify(self, frame: Frame) -> None:
        """Parse a NOTIFY that is fragmented, or comes while another one is incomplete (3.2)."""
        if self._fragments is not None:
            raise InterlacedFramesError("a NOTIFY between the fragments of another one")
        if FrameFlag.ABORT in frame.flags:
            self._events.append(Aborted(frame.ids))
        elif frame.is_final:
            self._events.append(Notify(frame.ids, frame.payload, 0, len(frame.payload)))
        else:
            self._fragment_ids = frame.ids
            self._fragments = bytearray(frame.payload)

    def _receive_fragment(self, frame: Frame) -> None:
        if self._fragments is None:
            raise FrameIdNotFoundError("a fragment without a NOTIFY before it")
        if frame.ids != self._fragment_ids:
            raise InterlacedFramesError("a fragment with other ids than the NOTIFY before it")
        if FrameFlag.ABORT in frame.flags:
            self._fragments = None
            self._events.append(Aborted(frame.ids))
            return
        self._fragments += frame.payload
        if len(self._fragments) > self._settings.reassembled_size:
            limit = self._settings.reassembled_size
            raise FrameTooBigError(f"a fragmented NOTIFY exceeds the limit of {limit} bytes")
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


@lru_cache(64)
def _respond_to_hello(payload: bytes, settings: AgentSettings) -> tuple[Opened, bytes]:
    """Return both HELLOs as an event, and the agent's one encoded.

    An engine sends the same HELLO on all of its connections, and another one in all of its health
    checks, so the results are cached.

    Raises:
        ProtocolError: see `EngineHello.decode`.
    """
    hello = EngineHello.decode(payload)
    answer = AgentHello(_frame_size_for(hello, settings), _capabilities_for(hello, settings))
    return Opened(hello, answer), encode_frame(FrameType.AGENT_HELLO, answer.encode())


def _frame_size_for(hello: EngineHello, settings: AgentSettings) -> int:
    # HAProxy's health checks always offer 16380, and fail if the agent accepts more than
    # HAProxy's buffers hold.
    if hello.healthcheck:
        return MIN_FRAME_SIZE
    wanted = settings.max_frame_size or hello.max_frame_size
    return min(hello.max_frame_size, wanted, settings.frame_size_cap)


def _capabilities_for(hello: EngineHello, settings: AgentSettings) -> frozenset[str]:
    """Return the capabilities to announce: pipelining and async only if the engine has them."""
    mutual = hello.capabilities & settings.capabilities & {PIPELINING, ASYNC}
    return mutual | {FRAGMENTATION}
