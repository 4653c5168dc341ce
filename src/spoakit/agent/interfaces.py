"""Interfaces between the dispatcher and a connection, which a layer above implements."""

from collections.abc import Sequence
from typing import Protocol

from spoakit.exceptions import ProtocolError
from spoakit.spop._encode_cy import Action


class PendingFrame(Protocol):
    """Suspended frame: its ACK waits for a handler."""

    @property
    def ids(self) -> bytes:
        """STREAM-ID and FRAME-ID as they came, to be repeated by the ACK."""

    @property
    def actions(self) -> list[Action]:
        """The actions of the ACK."""

    @property
    def size(self) -> int:
        """Bytes that it holds in memory."""

    def cancel(self) -> None:
        """Cancel its handler, because nobody waits for the ACK any more."""


class EngineLink(Protocol):
    """Connection to an engine, which sends the ACKs of its frames."""

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
        """Time of the last read, on ``time.monotonic()``'s clock."""

    @property
    def accepts_frames(self) -> bool:
        """False while the limit on frames in flight is reached, or the peer does not read ACKs."""

    def wait(self, frame: PendingFrame) -> None:
        """Keep a suspended frame until `finish` or `close_with_error`."""

    def finish(self, frames: Sequence[PendingFrame]) -> None:
        """Send the ACKs of suspended frames."""

    def close_with_error(self, frame: PendingFrame, error: ProtocolError) -> None:
        """End the connection, because a message of a suspended frame is malformed."""
