"""Interfaces that the layers above implement: a connection, as a dispatcher sees it."""

from collections.abc import Sequence
from typing import Protocol

from spoakit.exceptions import ProtocolError
from spoakit.spop._encode_cy import Action


class PendingFrame(Protocol):
    """A frame whose ACK waits for a handler, as its connection sees it."""

    @property
    def ids(self) -> bytes:
        """STREAM-ID and FRAME-ID as they came, to be repeated by the ACK."""

    @property
    def actions(self) -> list[Action]:
        """The actions of the ACK."""

    @property
    def size(self) -> int:
        """The bytes that it holds in memory."""

    def cancel(self) -> None:
        """Cancel its handler, because nobody waits for the ACK any more."""


class EngineLink(Protocol):
    """A connection to an engine, which sends the ACKs of its frames."""

    @property
    def outgoing(self) -> bytearray:
        """The output buffer, to which ACKs are appended; the same object throughout."""

    @property
    def max_frame_size(self) -> int:
        """The agreed max-frame-size, which an ACK must not exceed."""

    @property
    def peer(self) -> str:
        """The engine's address, for logs and for `Context`."""

    @property
    def engine_id(self) -> str | None:
        """The engine-id of the HELLO; None if it had none."""

    @property
    def received(self) -> float:
        """The time of the last read, on ``time.monotonic()``'s clock."""

    @property
    def takes_frames(self) -> bool:
        """False if no more frames may be handled now, since as many as may be are in flight."""

    def wait(self, frame: PendingFrame) -> None:
        """Keep a suspended frame until `finish` or `fail`."""

    def finish(self, frames: Sequence[PendingFrame]) -> None:
        """Send the ACKs of suspended frames."""

    def fail(self, frame: PendingFrame, error: ProtocolError) -> None:
        """End the connection: a message of a suspended frame cannot be read."""
