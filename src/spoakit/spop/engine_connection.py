"""Engine's end of a connection, for tests, benchmarks and tools."""

from collections.abc import Iterable
from typing import ClassVar

from spoakit.exceptions import (
    FragmentationError,
    FrameIdNotFoundError,
    FrameTooBigError,
    SpoakitError,
)
from spoakit.spop.actions import decode_actions
from spoakit.spop.connection import Connection, Rules, State
from spoakit.spop.constants import FrameFlag, FrameType
from spoakit.spop.events import Acknowledged, Opened
from spoakit.spop.frames import FLAGS_SIZE, Frame, encode_frame, encode_ids
from spoakit.spop.handshake import FRAGMENTATION, AgentHello, EngineHello
from spoakit.spop.messages import Message, encode_messages


class EngineConnection(Connection):
    """Engine's end of a connection, which checks the agent's frames as HAProxy does.

    Args:
        hello: the HELLO to send.
        frame_size_cap: the longest frame to accept, in bytes.

    Attributes:
        agent: the agent's HELLO; None before it has arrived.
    """

    DISCONNECT = FrameType.HAPROXY_DISCONNECT

    def __init__(self, hello: EngineHello, frame_size_cap: int = 1 << 20) -> None:
        super().__init__(frame_size_cap)
        self._hello = hello
        self.agent: AgentHello | None = None
        self._awaited: dict[bytes, tuple[int, int]] = {}

    def send_hello(self) -> None:
        """Begin the handshake; the event `Opened` completes it."""
        self.outgoing += encode_frame(FrameType.HAPROXY_HELLO, self._hello.encode())

    def send_notify(
        self,
        messages: Iterable[Message],
        *,
        stream_id: int,
        frame_id: int = 1,
        fragment_size: int | None = None,
    ) -> None:
        """Send messages in a NOTIFY; the event `Acknowledged` has the actions of its ACK.

        Args:
            messages: the messages of the NOTIFY.
            stream_id: 0 to 2**64 - 1.
            frame_id: 0 to 2**64 - 1; both together must not be in flight already.
            fragment_size: bytes of each fragment; by default a payload is fragmented only if
                it exceeds the agreed size and the agent announced fragmentation.

        Raises:
            SpoakitError: the handshake is not done, or the ids are in flight.
            FrameTooBigError: the payload exceeds the agreed size, and the agent did not announce
                fragmentation.
        """
        ids = encode_ids(stream_id, frame_id)
        if self.agent is None or self.state is not State.OPEN:
            raise SpoakitError(f"a NOTIFY must be sent in state OPEN, not {self.state.value}")
        if ids in self._awaited:
            raise SpoakitError(f"stream {stream_id}, frame {frame_id} is already in flight")
        payload = encode_messages(messages)
        room = self.max_frame_size - 1 - FLAGS_SIZE - len(ids)
        if fragment_size is None and len(payload) > room:
            if FRAGMENTATION not in self.agent.capabilities:
                raise FrameTooBigError(
                    f"a payload of {len(payload)} bytes exceeds the agreed {room}"
                )
            fragment_size = room
        self._awaited[ids] = (stream_id, frame_id)
        self.outgoing += _encode_notify(ids, payload, fragment_size or max(1, len(payload)))

    def send_abort(self, *, stream_id: int, frame_id: int = 1) -> None:
        """Abort a NOTIFY some of whose fragments have been sent."""
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
            raise FragmentationError("an ACK must not be fragmented")
        size = 1 + FLAGS_SIZE + len(frame.ids) + len(frame.payload)
        if size > self.max_frame_size:
            raise FrameTooBigError(
                f"an ACK of {size} bytes exceeds the agreed {self.max_frame_size}"
            )
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
    """Encode a payload as a NOTIFY, followed by UNSET frames if it is fragmented (3.2)."""
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
