"""An engine's link that keeps suspended frames, and an agent's threads."""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Sequence

from spoakit import Action, Agent
from spoakit.agent.interfaces import PendingFrame
from spoakit.agent.runtime import Runtime
from spoakit.exceptions import ProtocolError
from spoakit.spop import Notify
from tests.support.waiting import TIMEOUT


def pool() -> list[threading.Thread]:
    """Return the threads of threaded handlers."""
    return [each for each in threading.enumerate() if each.name.startswith("spoakit-")]


class EngineLink:
    """A connection on which frames are broken, or get lost."""

    peer = "192.0.2.9:1234"
    engine_id = None
    max_frame_size = 16380
    accepts_frames = True

    def __init__(self) -> None:
        self.outgoing = bytearray()
        self.received = time.monotonic()
        self.waiting: list[PendingFrame] = []
        self.finished: list[list[Action]] = []
        self.failed: list[ProtocolError] = []

    def wait(self, frame: PendingFrame) -> None:
        self.waiting.append(frame)

    def finish(self, frames: Sequence[PendingFrame]) -> None:
        self.finished += [frame.actions for frame in frames]

    def close_with_error(self, frame: PendingFrame, error: ProtocolError) -> None:
        self.failed.append(error)


def running(agent: Agent, use: Callable[[Runtime, EngineLink], Awaitable[None]]) -> None:
    async def live() -> None:
        runtime = Runtime([agent])
        await runtime.start()
        await asyncio.wait_for(use(runtime, EngineLink()), TIMEOUT)
        await runtime.aclose()

    asyncio.run(live())


def dispatch(runtime: Runtime, link: EngineLink, payload: bytes) -> None:
    notify = Notify(b"\1\1", payload, 0, len(payload))
    assert runtime.dispatcher.dispatch([notify], 0, link) == 1
