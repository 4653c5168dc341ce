"""Context of a message: its frame and its connection, for handlers that ask."""

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
"""A parameter that all messages of one frame share.

``state: PerFrame[State]`` is a ``State`` to the handler: made by ``State()`` when the
first handler of a frame asks for it, the same object for all the others, dropped with
the frame. HAProxy evaluates the arguments of all messages before it sends the frame,
so what one message sets is not among the arguments of the next; this carries it there.
"""


class MaxFrameSizeMarker:
    """Marker of `MaxFrameSize` among the extras of an annotated type."""

    def __repr__(self) -> str:
        return "MaxFrameSize"


MaxFrameSize: TypeAlias = Annotated[int, MaxFrameSizeMarker()]
"""A parameter that is the max-frame-size agreed on with the engine (SPOE.txt 3.2.4).

``agreed: MaxFrameSize`` is an int to the handler: the bytes that a frame of the connection
has at most, its length field aside. A request whose arguments come near it may have been
cut by HAProxy's buffer. Unlike `Context` it costs next to nothing.
"""


@dataclass(frozen=True, slots=True)
class Context:
    """The frame and the connection a message came in, for handlers with a Context parameter.

    Attributes:
        message: the message's name.
        engine_id: what the engine calls itself: one id per HAProxy thread up to 3.0, one per
            spoe-agent section from 3.1, None where it gave none (SPOE.txt 3.2.4).
        peer: the engine's address as "192.0.2.1:45678" or "[2001:db8::1]:45678", or the path of
            the Unix socket that it has connected to.
        stream_id: HAProxy's number of the stream. From 3.1 it counts per connection, so
            send ``unique-id`` as an argument to relate messages of one request.
        frame_id: the number of the frame in its stream, from 3.1 always 1.
        received: when the frame was read, in seconds on ``time.monotonic()``'s clock.
        deadline: when the fallback is answered instead, on the same clock; None for
            handlers that have no deadline.
    """

    message: str
    engine_id: str | None
    peer: str
    stream_id: int
    frame_id: int
    received: float
    deadline: float | None = None


class FrameState:
    """Objects of one frame that handlers share, made when the first of them asks.

    Args:
        received: when the frame was read, in seconds on ``time.monotonic()``'s clock.
    """

    __slots__ = ("_objects", "received")

    def __init__(self, received: float) -> None:
        self.received = received
        self._objects: dict[Callable[[], Any], Any] = {}

    def get(self, factory: Callable[[], T]) -> T:
        """Return the frame's object of this type, made by ``factory()`` the first time."""
        if factory not in self._objects:
            self._objects[factory] = factory()
        found: T = self._objects[factory]
        return found
