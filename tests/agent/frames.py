"""Frames for a dispatcher, and the connection they come by."""

from spoakit import Action, Message
from spoakit.agent.interfaces import PendingFrame
from spoakit.exceptions import ProtocolError
from spoakit.spop import Notify, decode_actions, decode_frame, encode_messages


class EngineLink:
    """A connection that only collects."""

    peer = "192.0.2.9:1234"
    engine_id = None
    received = 0.0
    takes_frames = True

    def __init__(self, max_frame_size: int = 16380) -> None:
        self.outgoing = bytearray()
        self.max_frame_size = max_frame_size

    def wait(self, frame: PendingFrame) -> None:
        raise AssertionError("nothing here takes time")

    def finish(self, frame: PendingFrame, actions: list[Action]) -> None:
        raise AssertionError("nothing here takes time")

    def fail(self, frame: PendingFrame, error: ProtocolError) -> None:
        raise AssertionError("nothing here takes time")

    def acks(self) -> list[tuple[int, list[Action]]]:
        """Take the ACKs apart: stream ids and actions."""
        found = []
        while self.outgoing:
            end = 4 + int.from_bytes(self.outgoing[:4], "big")
            frame = decode_frame(bytes(self.outgoing[4:end]))
            found.append((frame.stream_id, decode_actions(frame.payload)))
            del self.outgoing[:end]
        return found


def notify(stream_id: int, *messages: Message) -> Notify:
    return raw_notify(stream_id, encode_messages(messages))


def raw_notify(stream_id: int, payload: bytes) -> Notify:
    return Notify(bytes((stream_id, 1)), payload, 0, len(payload))
