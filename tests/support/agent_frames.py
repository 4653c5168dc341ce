"""Frames for a dispatcher, and the connection they come by."""

from array import array
from collections.abc import Callable, Sequence
from typing import Any

from spoakit import Action, Message
from spoakit.agent._dispatch_cy import BoundHandler
from spoakit.agent.handlers import Handler
from spoakit.agent.interfaces import PendingFrame
from spoakit.exceptions import ProtocolError
from spoakit.metrics._histogram_cy import BLOCK, HistogramCells
from spoakit.spop import Notify, decode_actions, decode_frame, encode_messages


class EngineLink:
    """A connection that only collects."""

    peer = "192.0.2.9:1234"
    engine_id = None
    received = 0.0
    accepts_frames = True

    def __init__(self, max_frame_size: int = 16380) -> None:
        self.outgoing = bytearray()
        self.max_frame_size = max_frame_size

    def wait(self, frame: PendingFrame) -> None:
        raise AssertionError("nothing here takes time")

    def finish(self, frames: Sequence[PendingFrame]) -> None:
        raise AssertionError("nothing here takes time")

    def close_with_error(self, frame: PendingFrame, error: ProtocolError) -> None:
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


def bound_handler(
    handler: Handler,
    function: Callable[..., Any],
    on_error: Callable[[BaseException], object] | None = None,
) -> BoundHandler:
    """Return a handler that uses no resources, and whose times nobody looks at."""
    cells = HistogramCells(array("d", bytes(8 * BLOCK)), 1e-6)
    return BoundHandler(handler, function, {}.__getitem__, cells, cells, on_error)
