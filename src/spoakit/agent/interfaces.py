"""What a dispatcher must know of the connection a frame came by."""

from typing import TYPE_CHECKING, Protocol

from spoakit.exceptions import ProtocolError
from spoakit.spop._encode_cy import Action

if TYPE_CHECKING:
    from spoakit.agent.suspension import SuspendedFrame


class EngineLink(Protocol):
    """A connection to an engine, as handlers' calls see it."""

    @property
    def outgoing(self) -> bytearray:
        """Where ACKs are appended; the same object as long as the connection lives."""

    @property
    def max_frame_size(self) -> int:
        """The agreed size, which an ACK must fit."""

    @property
    def peer(self) -> str:
        """The engine's address, for logs and for `Context`."""

    @property
    def engine_id(self) -> str | None:
        """What the engine calls itself, if it said."""

    @property
    def received(self) -> float:
        """When the last bytes were read, on ``time.monotonic()``'s clock."""

    def wait(self, frame: "SuspendedFrame") -> None:
        """Keep a frame in mind until `finish` or `fail`."""

    def finish(self, frame: "SuspendedFrame", actions: list[Action]) -> None:
        """Send the ACK of a frame that had to wait."""

    def fail(self, frame: "SuspendedFrame", error: ProtocolError) -> None:
        """End the connection, because a frame that waited turned out broken."""
