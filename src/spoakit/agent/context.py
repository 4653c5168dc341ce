"""Context of a message: its frame and its connection, for handlers that ask for it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, TypeAlias, TypeVar

T = TypeVar("T")


class PerFrameMarker:
    """Marker of `PerFrame` among the extras of an annotated type."""

    def __repr__(self) -> str:
        return "PerFrame"


PER_FRAME = PerFrameMarker()

PerFrame: TypeAlias = Annotated[T, PER_FRAME]
"""Type of a parameter that all messages of one frame share.

``state: PerFrame[State]`` is a ``State`` object, created by ``State()`` for the first handler of
a frame that has the parameter, shared with the others, and dropped with the frame. HAProxy
evaluates the arguments of all messages before it sends the frame, so variables set for one message
are not among the arguments of the next. This object passes them on.
"""


class MaxFrameSizeMarker:
    """Marker of `MaxFrameSize` among the extras of an annotated type."""

    def __repr__(self) -> str:
        return "MaxFrameSize"


MaxFrameSize: TypeAlias = Annotated[int, MaxFrameSizeMarker()]
"""Type of a parameter for the max-frame-size agreed with the engine (SPOE.txt 3.2.4).

``agreed: MaxFrameSize`` is an int: the largest frame of the connection in bytes, without the
length field. A request whose arguments come near it may have been cut by HAProxy's buffer. It
costs next to nothing, unlike `Context`.
"""


@dataclass(frozen=True, slots=True)
class Context:
    """Frame and connection of a message, for handlers with a Context parameter.

    Attributes:
        message: the message's name.
        engine_id: the id in the engine's HELLO: one per HAProxy thread up to 3.0, one per
            spoe-agent section from 3.1; None without one (SPOE.txt 3.2.4).
        peer: the engine's address as "192.0.2.1:45678" or "[2001:db8::1]:45678", or the path of
            the Unix socket it is connected to.
        stream_id: HAProxy's number of the stream. From 3.1 it counts per connection, so
            send ``unique-id`` as an argument to relate messages of one request.
        frame_id: the number of the frame in its stream, from 3.1 always 1.
        received: when the frame was read, in seconds on ``time.monotonic()``'s clock.
        deadline: when the fallback is sent instead, on the same clock; None for handlers
            without a deadline.
    """

    message: str
    engine_id: str | None
    peer: str
    stream_id: int
    frame_id: int
    received: float
    deadline: float | None = None


class FrameState:
    """PerFrame objects of one frame, created when the first handler needs them.

    Args:
        received: when the frame was read, in seconds on ``time.monotonic()``'s clock.
    """

    __slots__ = ("_objects", "received")

    def __init__(self, received: float) -> None:
        self.received = received
        self._objects: dict[Callable[[], Any], Any] = {}

    def get(self, factory: Callable[[], T]) -> T:
        """Return the frame's object of this type, created by ``factory()`` on first use."""
        if factory not in self._objects:
            self._objects[factory] = factory()
        found: T = self._objects[factory]
        return found
