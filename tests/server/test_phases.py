"""The phases of a connection, under random sequences of all that can happen to it.

Whatever happens in whichever order: after a violation no handler is called, nothing is written
behind the end, each frame that could be read before it has exactly one ACK, no exception escapes.
"""

import asyncio
import socket
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from spoakit import Action, Agent, Argument, DataType, Message
from spoakit.agent.runtime import Runtime
from spoakit.exceptions import InputOutputError, ProtocolError
from spoakit.metrics.memory import SharedMetrics
from spoakit.server.event_loops import loop_factory
from spoakit.server.protocol import Phase, SpopProtocol
from spoakit.server.server_state import ServerState
from spoakit.server.settings import Limits, LoopName, ServerSettings
from spoakit.spop import (
    Disconnect,
    EngineHello,
    FrameType,
    decode_frame,
    encode_frame,
    encode_ids,
    encode_messages,
)
from tests.support.waiting import TIMEOUT

pytestmark = pytest.mark.slow

CUT = b"\x05ab"
"""The beginning of a message: its payload cannot be read."""

HELLO = encode_frame(
    FrameType.HAPROXY_HELLO, EngineHello(16380, capabilities=frozenset({"pipelining"})).encode()
)
DISCONNECT = encode_frame(FrameType.HAPROXY_DISCONNECT, Disconnect(42, "bye").encode())

# Frames by kind, as the messages in them. A message "wait" is pending until its gate opens,
# "misfit" is for an async handler too, which is not called; "cut" cannot be read.
READABLE = {
    "inline": ("echo",),
    "async": ("wait",),
    "mixed": ("echo", "wait", "echo"),
    "twice": ("wait", "wait"),
    "misfit": ("misfit", "echo"),
    "empty": (),
}
VIOLATING = {
    "cut": ("cut",),
    "cut later": ("echo", "cut"),
    "cut in suspend": ("misfit", "cut"),
    "cut behind a call": ("wait", "cut"),
}


def encode(kind: str, n: int) -> bytes:
    payload = b""
    for name in (READABLE | VIOLATING)[kind]:
        argument = Argument("n", DataType.INT64, n)
        if name == "cut":
            payload += CUT
        elif name == "misfit":
            payload += encode_messages([Message("wait", (Argument("n", DataType.STRING, "x"),))])
        else:
            payload += encode_messages([Message(name, (argument,))])
    return encode_frame(FrameType.NOTIFY, payload, ids=encode_ids(n, 1))


class Handlers:
    """An agent, the calls of its handlers, and the gates of those that wait."""

    def __init__(self) -> None:
        self.agent = Agent("phases")
        self.calls: list[int] = []
        self.gates: defaultdict[int, asyncio.Event] = defaultdict(asyncio.Event)
        variable = self.agent.variable("txn.n", int)

        @self.agent.message("echo")
        def echo(n: int) -> Action:
            self.calls.append(n)
            return variable.set(n)

        @self.agent.message("wait", timeout=TIMEOUT)
        async def wait(n: int) -> Action:
            self.calls.append(n)
            await self.gates[n].wait()
            return variable.set(n)


class Transport(asyncio.Transport):
    """A transport that records what is written, and refuses to write behind the end."""

    def __init__(self, loop: asyncio.AbstractEventLoop, protocol: SpopProtocol) -> None:
        super().__init__()
        self._loop = loop
        self._protocol = protocol
        self._incoming: list[bytes | None] = []
        self._is_reading = True
        self._is_closing = False
        self._has_eof = False
        self.written = bytearray()
        self.on_write: Callable[[], None] | None = None
        """Called within the next write, as a transport calls `pause_writing`."""

    def write(self, data: Any) -> None:
        assert data
        assert not self._has_eof, "a write after write_eof"
        assert not self._is_closing, "a write after close"
        self.written += data
        if self.on_write is not None:
            self.on_write()
            self.on_write = None

    def get_write_buffer_size(self) -> int:
        return 0

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self._has_eof = True

    def is_closing(self) -> bool:
        return self._is_closing

    def close(self) -> None:
        if not self._is_closing:
            self._is_closing = True
            self._loop.call_soon(self._protocol.connection_lost, None)

    def abort(self) -> None:
        self.close()

    def pause_reading(self) -> None:
        self._is_reading = False

    def resume_reading(self) -> None:
        self._is_reading = True
        self._loop.call_soon(self.deliver)

    def put(self, data: bytes | None) -> None:
        """Have bytes received, or the end."""
        self._incoming.append(data)
        self.deliver()

    @property
    def has_delivered(self) -> bool:
        return not self._incoming

    def deliver(self) -> None:
        while self._incoming and self._is_reading and not self._is_closing:
            data = self._incoming.pop(0)
            if data is not None:
                self._protocol.data_received(data)
            elif not self._protocol.eof_received():
                self.close()


class RealTransport:
    """The same for a transport of the event loop, over a pair of sockets."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._has_eof = False

    def write(self, data: bytes) -> None:
        assert not self._has_eof, "a write after write_eof"
        assert not self._transport.is_closing(), "a write after close"
        self._transport.write(data)

    def write_eof(self) -> None:
        self._has_eof = True
        self._transport.write_eof()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


@dataclass
class Story:
    """What has been done with a connection, and what must have come of it."""

    handlers: Handlers
    sent: list[tuple[str, int]] = field(default_factory=list)
    violations: list[ProtocolError] = field(default_factory=list)
    calls_at_violation: int | None = None
    ended: bool = False  # by this side, or cut off by the other
    finished: set[int] = field(default_factory=set)
    errors: list[Any] = field(default_factory=list)

    async def settle(self) -> None:
        """Let the loop do all that is due: a call takes a few rounds from its gate to its ACK."""
        for _ in range(8):
            await asyncio.sleep(0)
        if self.calls_at_violation is None:
            self.finished = {n for n, gate in self.handlers.gates.items() if gate.is_set()}

    def violated(self, error: ProtocolError) -> None:
        self.violations.append(error)
        if not isinstance(error, InputOutputError):
            self.calls_at_violation = len(self.handlers.calls)

    def check(self, written: bytes) -> None:
        assert self.errors == []
        assert len(self.violations) <= 1
        if self.calls_at_violation is not None:
            assert len(self.handlers.calls) == self.calls_at_violation
        kinds, acks = read_frames(written)
        assert kinds[:1] in ([], [FrameType.AGENT_HELLO], [FrameType.AGENT_DISCONNECT])
        assert FrameType.AGENT_DISCONNECT not in kinds[:-1]
        assert len(acks) == len(set(acks))
        readable = {n for kind, n in self.sent if kind in READABLE}
        assert set(acks) <= readable
        if not self.ended:
            assert self.must_have_acks() <= set(acks)

    def must_have_acks(self) -> set[int]:
        if self.calls_at_violation is None:
            return {n for kind, n in self.sent if kind in READABLE}
        # The first bad frame may be one that had to wait: what came behind it may be handled.
        first_bad = next(i for i, (kind, _) in enumerate(self.sent) if kind in VIOLATING)
        return {
            n
            for kind, n in self.sent[:first_bad]
            if kind in READABLE and ("wait" not in READABLE[kind] or n in self.finished)
        }


def read_frames(data: bytes) -> tuple[list[int], list[int]]:
    """Return the types of frames, and the stream ids of those that are ACKs."""
    kinds, acks = [], []
    while data:
        size = 4 + int.from_bytes(data[:4], "big")
        frame = decode_frame(data[4:size])
        kinds.append(frame.type)
        if frame.type == FrameType.ACK:
            acks.append(frame.stream_id)
        data = data[size:]
    return kinds, acks


def run(loop: LoopName, main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    with asyncio.Runner(loop_factory=loop_factory(loop)) as runner:
        runner.run(main())


class WatchedState(ServerState):
    """A server's state that tells a story of violations and of exceptions that escape."""

    def __init__(self, runtime: Runtime, frames: int, story: Story) -> None:
        settings = ServerSettings(limits=Limits(in_flight=2, frames=frames))
        super().__init__(runtime, settings, SharedMetrics(1).worker(0), lambda: None)
        self._story = story
        self.loop.set_exception_handler(lambda _, context: story.errors.append(context))

    def failed(self, peer: str, error: ProtocolError) -> None:
        self._story.violated(error)
        super().failed(peer, error)


@asynccontextmanager
async def serving(story: Story, frames: int = 0) -> AsyncIterator[WatchedState]:
    runtime = Runtime([story.handlers.agent])
    await runtime.start()
    state = WatchedState(runtime, frames, story)
    yield state
    state.close()
    await runtime.aclose()


KINDS = st.sampled_from([*READABLE, *READABLE, *READABLE, *VIOLATING])
READS = st.tuples(st.just("read"), st.lists(KINDS, min_size=1, max_size=6), st.integers(0, 100))
PEERS = st.one_of(
    READS,
    READS,
    READS,
    st.tuples(st.just("finish"), st.integers(0, 5)),
    st.tuples(st.sampled_from(["disconnect", "eof", "cut off"])),
)
STEPS = st.one_of(
    PEERS,
    PEERS,
    st.tuples(st.sampled_from(["pause", "pause in write", "resume", "read too late"])),
    st.tuples(st.sampled_from(["leave", "expire", "abort", "lose", "lose in write"])),
)


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
@given(st.lists(STEPS, max_size=20), st.sampled_from([0, 0, 3]), st.booleans())
@example([("read", ["cut in suspend", "inline"], 0), ("read", ["inline"], 0)], 0, False)
@example([("read", ["async"], 0), ("cut off",), ("finish", 0)], 0, False)
@example([("read", ["async", "async", "cut", "inline"], 0), ("finish", 0)], 0, True)
@example([("read", ["async", "inline"], 9), ("abort",), ("abort",), ("finish", 0)], 0, True)
def test_whatever_happens(loop: LoopName, steps: list[Any], frames: int, batch: bool) -> None:
    async def main() -> None:
        story = Story(Handlers())
        async with serving(story, frames) as state:
            protocol = SpopProtocol(state, "peer")
            transport = Transport(state.loop, protocol)
            protocol.connection_made(transport)
            transport.put(HELLO)
            read_ended = False
            for step in steps:
                match step:
                    case ("read", kinds, split) if not read_ended:
                        numbered = [(kind, len(story.sent) + i) for i, kind in enumerate(kinds)]
                        story.sent += numbered
                        data = b"".join(encode(kind, n) for kind, n in numbered)
                        for part in (data[:split], data[split:]):
                            if part:
                                transport.put(part)
                    case ("finish", index):
                        open_gate(story, index)
                    case ("disconnect",) if not read_ended:
                        read_ended = True
                        transport.put(DISCONNECT)
                    case ("eof",) if not read_ended:
                        read_ended = True
                        transport.put(None)
                    case ("cut off",) if not read_ended:
                        read_ended = True
                        transport.put(b"\0\0\1")
                        transport.put(None)
                    case ("pause",) if protocol.phase is not Phase.CLOSED:
                        protocol.pause_writing()
                    case ("resume",) if protocol.phase is not Phase.CLOSED:
                        protocol.resume_writing()
                    case ("pause in write",):
                        transport.on_write = protocol.pause_writing
                    case ("read too late",) if read_ended and transport.has_delivered:
                        protocol.data_received(encode("inline", 999))
                    case ("lose in write",):
                        story.ended = True
                        transport.on_write = transport.close
                    case ("leave",):
                        story.ended = True
                        protocol.leave("the agent is stopping")
                    case ("expire",) if not protocol.done:
                        protocol.expire()
                    case ("abort",):
                        story.ended = True
                        protocol.abort()
                    case ("lose",):
                        story.ended = True
                        transport.close()
                if not batch:
                    await story.settle()
            await finish_all(story, protocol)
            if frames and len(story.sent) > frames:
                story.ended = True  # frames that were not read any more have no ACK
            story.check(bytes(transport.written))
            assert protocol.phase in (Phase.OPEN, Phase.CLOSED)
            assert protocol.backlog.is_empty
            assert protocol.phase is not Phase.OPEN or protocol.is_fast_path_open is (not frames)
            transport.close()
            await story.settle()
            assert story.errors == []

    run(loop, main)


def open_gate(story: Story, index: int) -> None:
    """Let one of the calls that wait finish."""
    waiting = [n for n in story.handlers.calls if not story.handlers.gates[n].is_set()]
    if waiting:
        n = waiting[index % len(waiting)]
        story.handlers.gates[n].set()


async def finish_all(story: Story, protocol: SpopProtocol) -> None:
    """Let everything finish that can."""
    for _ in range(len(story.sent) + 2):
        await story.settle()
        if protocol._is_write_paused:
            protocol.resume_writing()
            await story.settle()
        open_gate(story, 0)
    await story.settle()
    if protocol._is_write_paused:
        protocol.resume_writing()
        await story.settle()


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
@given(st.lists(PEERS, max_size=8))
def test_whatever_happens_on_a_socket(loop: LoopName, steps: list[Any]) -> None:
    async def main() -> None:
        story = Story(Handlers())
        async with serving(story) as state:
            protocols: list[SpopProtocol] = []

            class Recorded(SpopProtocol):
                def connection_made(self, transport: Any) -> None:
                    super().connection_made(RealTransport(transport))
                    protocols.append(self)

            ours, theirs = socket.socketpair()
            ours.setblocking(False)
            with theirs:
                theirs.setblocking(False)
                await state.loop.connect_accepted_socket(lambda: Recorded(state, "peer"), ours)
                read_ended = False
                theirs.sendall(HELLO)
                for step in steps:
                    match step:
                        case ("read", kinds, _) if not read_ended:
                            numbered = [(kind, len(story.sent) + i) for i, kind in enumerate(kinds)]
                            story.sent += numbered
                            try:
                                theirs.sendall(b"".join(encode(kind, n) for kind, n in numbered))
                            except BrokenPipeError:
                                read_ended = True
                        case ("finish", index):
                            open_gate(story, index)
                        case ("disconnect" | "eof" | "cut off" as how,) if not read_ended:
                            read_ended = True
                            try:
                                if how != "eof":
                                    theirs.sendall(DISCONNECT if how == "disconnect" else b"\0\0\1")
                                if how != "disconnect":
                                    theirs.shutdown(socket.SHUT_WR)
                            except OSError:
                                pass
                    await story.settle()
                [protocol] = protocols
                await finish_all(story, protocol)
                assert protocol.backlog.is_empty
                if protocol.phase is Phase.OPEN:
                    protocol.leave("the agent is stopping")
                await story.settle()
                written = bytearray()
                while data := await state.loop.sock_recv(theirs, 65536):
                    written += data
                story.check(bytes(written))
            while state.connections:
                await story.settle()
            assert story.errors == []

    run(loop, main)
