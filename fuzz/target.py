"""What is fuzzed: an agent with handlers of every kind behind the bytes it receives.

An execution feeds one stream twice, in one read and cut into several, and holds both to what
must be true whatever comes: nothing but `ProtocolError` is raised, each NOTIFY that can be read
is acknowledged once, in whole frames that fit, no handler is called with what it does not take,
no more is kept than the limits allow, and cutting makes no difference.
"""

import asyncio
import logging
from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address, IPv6Address
from typing import Annotated, Any

from spoakit import Agent, Context, DataType, Fetch, Headers, IPAddress, Message
from spoakit.agent.interfaces import PendingFrame
from spoakit.agent.runtime import Runtime
from spoakit.exceptions import ProtocolError
from spoakit.spop import (
    Action,
    AgentConnection,
    AgentSettings,
    Event,
    Failed,
    FrameType,
    Notify,
    append_ack,
    decode_actions,
    decode_frame,
)

SETTINGS = AgentSettings(frame_size_cap=20_000, reassembled_size=50_000)
HELLO_CAP = 4096

agent = Agent("fuzzed")
score = agent.variable("sess.score", DataType.UINT32)
text = agent.variable("txn.text", str)
data = agent.variable("req.data", bytes)


@agent.message("check-client-ip", fallback=score.set(None))
def check_client_ip(src: IPAddress, /) -> Action:
    assert isinstance(src, IPv4Address | IPv6Address)
    return score.set(int(src) % 100)


@agent.message("arguments")
def arguments(
    context: Context,
    message: Message,
    *,
    number: Annotated[int, Fetch("int", name="int")] = 0,
    true: bool | None = None,
    ipv4: IPv4Address | None = None,
    ipv6: IPv6Address | None = None,
    words: Annotated[str, Fetch("str", name="str")] = "",
    raw: Annotated[bytes, Fetch("bin", name="bin")] = b"",
    null: bytes | None = None,
) -> tuple[Action, ...]:
    assert message.name == context.message == "arguments"
    assert type(number) is int
    assert true is None or type(true) is bool
    assert ipv4 is None or type(ipv4) is IPv4Address
    assert ipv6 is None or type(ipv6) is IPv6Address
    assert null is None or type(null) is bytes
    return text.set(words), data.set(raw), score.set(number & 0xFFFF)


@agent.message("first")
async def first(path: Annotated[str, Fetch("path")]) -> Action:
    await asyncio.sleep(0)
    return text.set(path)


@agent.message("second")
def second() -> None: ...


@agent.message("large")
def large(body: bytes, again: bytes = b"") -> Action:
    return data.set(body + again)


@agent.observe("mirror")
def mirror(
    arg_method: bytes, arg_path: bytes, arg_ver: bytes, arg_hdrs: Headers, arg_body: bytes = b""
) -> None:
    try:
        assert len(arg_hdrs) == len(list(arg_hdrs))
    except ValueError:
        assert arg_hdrs.raw is not None


class FormattingHandler(logging.Handler):
    """Lets a record that cannot be formatted be an error, and writes none."""

    def emit(self, record: logging.LogRecord) -> None:
        record.getMessage().encode("utf-8", "backslashreplace")


class EngineLink:
    """A connection that is driven as the server drives it; see `spoakit.agent.interfaces`."""

    accepts_frames = True

    def __init__(self, runtime: Runtime) -> None:
        self.connection = AgentConnection(SETTINGS)
        self.outgoing = self.connection.outgoing
        self.peer = "fuzzer"
        self.engine_id: str | None = None
        self.received = asyncio.get_running_loop().time()
        self.waiting: set[PendingFrame] = set()
        self.error: ProtocolError | None = None
        self.notifies: list[Notify] = []
        self.broken = 0
        self._dispatcher = runtime.dispatcher

    @property
    def max_frame_size(self) -> int:
        return self.connection.max_frame_size

    def wait(self, frame: PendingFrame) -> None:
        self.waiting.add(frame)

    def finish(self, frames: Sequence[PendingFrame]) -> None:
        for frame in frames:
            self.waiting.discard(frame)
            if not append_ack(self.outgoing, frame.ids, frame.actions, self.max_frame_size):
                self._dispatcher.oversized_ack(self)

    def close_with_error(self, frame: PendingFrame, error: ProtocolError) -> None:
        self.waiting.discard(frame)
        self.broken += 1

    async def run(self, reads: Iterable[bytes]) -> None:
        """Receive a stream, and wait for all that has to be answered."""
        self._dispatcher.start_clock(self.received, self.received)
        for read in reads:
            self.connection.receive_data(read)
            self._handle(self.connection.events_received())
            self._check_memory()
        self.connection.receive_eof()
        self._handle(self.connection.events_received())
        self._check_memory()
        while self.waiting:
            await asyncio.sleep(0)
        self._dispatcher.run_observers()

    def _handle(self, events: list[Event]) -> None:
        index = 0
        while index < len(events) and self.error is None:
            event = events[index]
            if not isinstance(event, Notify):
                if isinstance(event, Failed):
                    self.error = event.error
                index += 1
                continue
            start = index
            try:
                index = self._dispatcher.dispatch(list(events), index, self)
                assert index > start
            except ProtocolError as error:
                self.error = error
                self.broken += 1
                # Those before it have been acknowledged; which it was shows in their number.
                index = len(events)
            self.notifies += [each for each in events[start:index] if isinstance(each, Notify)]

    def _check_memory(self) -> None:
        connection = self.connection
        limit = HELLO_CAP if connection.state.value == "HELLO" else SETTINGS.frame_size_cap
        assert len(connection._incomplete) < 4 + limit
        assert len(connection._fragments or b"") <= SETTINGS.reassembled_size
        assert not (connection.is_closing and (connection._incomplete or connection._fragments))

    def outcome(self) -> tuple[Any, ...]:
        """Return what must not depend on how the stream was cut, after checking it."""
        acks = []
        position = 0
        while position < len(self.outgoing):
            end = position + 4 + int.from_bytes(self.outgoing[position : position + 4], "big")
            assert end <= len(self.outgoing), "an incomplete frame was sent"
            frame = decode_frame(bytes(self.outgoing[position + 4 : end]))
            assert frame.is_final
            if frame.type == FrameType.ACK:
                assert end - position - 4 <= self.max_frame_size
                acks.append((frame.ids, repr(decode_actions(frame.payload))))
            position = end
        if self.error is None:
            assert len(acks) + self.broken == len(self.notifies)
        return sorted(acks), self.broken, self.error and self.error.status_code


class Target:
    """An agent at work; see the module."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    @classmethod
    async def start(cls) -> "Target":
        """Start the agent on the running loop."""
        logger = logging.getLogger("spoakit")
        if not any(isinstance(each, FormattingHandler) for each in logger.handlers):
            logger.addHandler(FormattingHandler())
            logger.propagate = False
        runtime = Runtime([agent])
        await runtime.start()
        return cls(runtime)

    async def execute(self, reads: Sequence[bytes]) -> tuple[Any, ...]:
        """Feed a stream in two ways.

        Raises:
            AssertionError: something that must be true is not.
            Exception: whatever escapes that must not.
        """
        whole, pieces = EngineLink(self._runtime), EngineLink(self._runtime)
        await whole.run([b"".join(reads)])
        await pieces.run(reads)
        outcome = whole.outcome()
        assert outcome == pieces.outcome(), "cutting the stream made a difference"
        for handlers in self._runtime.dispatcher.routes.values():
            for bound in handlers:
                assert bound.errors.failures == 0, f"{bound.handler.name} failed"
        return outcome

    async def aclose(self) -> None:
        """Stop the agent."""
        await self._runtime.aclose()
