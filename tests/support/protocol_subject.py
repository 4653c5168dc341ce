"""An agent for tests of `SpopProtocol`, and messages for its handlers."""

import asyncio
from collections import defaultdict
from dataclasses import replace
from typing import Any, Protocol

from spoakit import Action, Agent, Argument, DataType, Message
from spoakit.server.protocol import SpopProtocol
from spoakit.server.settings import Limits, LoopName, ServerSettings
from spoakit.spop import FrameFlag, FrameType, encode_frame, encode_ids, encode_value
from spoakit.testing import AgentServer, EngineClient
from spoakit.testing.agent_server import DEFAULT_SETTINGS
from spoakit.testing.pytest_plugin import ConnectEngine
from tests.support.waiting import TIMEOUT, wait_until


class Subject:
    """An agent with a handler of each kind, and what has become of its calls."""

    def __init__(self) -> None:
        self.agent = Agent("subject")
        self.gates: defaultdict[int, asyncio.Event] = defaultdict(asyncio.Event)
        self.started: list[int] = []
        self.cancelled: list[int] = []
        self.observed: list[int] = []
        number = self.agent.variable("txn.number", int)
        text = self.agent.variable("txn.text", str)

        @self.agent.message("echo", fallback=number.set(-1))
        def echo(n: int) -> Action:
            return number.set(n)

        @self.agent.message("repeat")
        def repeat(word: str, times: int = 1) -> Action:
            return text.set(word * times)

        @self.agent.message("wait", timeout=TIMEOUT, fallback=number.set(-1))
        async def wait(n: int) -> Action:
            self.started.append(n)
            try:
                await self.gates[n].wait()
            except asyncio.CancelledError:
                self.cancelled.append(n)
                raise
            return number.set(n)

        @self.agent.message("repeat-later")
        async def repeat_later(word: str, times: int) -> Action:
            await asyncio.sleep(0)
            return text.set(word * times)

        @self.agent.observe("observe")
        def observe(n: int) -> None:
            self.observed.append(n)


def settings(loop: LoopName, **limits: Any) -> ServerSettings:
    return replace(DEFAULT_SETTINGS, limits=Limits(**limits), loop=loop)


class Serve(Protocol):
    """Serves an agent with these limits, until the test is over."""

    def __call__(self, agent: Agent, **limits: Any) -> AgentServer: ...


def echo(n: int) -> Message:
    return Message("echo", (Argument("n", DataType.INT64, n),))


def wait(n: int) -> Message:
    return Message("wait", (Argument("n", DataType.INT64, n),))


def connections(server: AgentServer) -> list[SpopProtocol]:
    state = server.server._state
    assert state is not None
    return server.call(list, state.connections)


def wait_until_connections(server: AgentServer, count: int) -> None:
    wait_until(lambda: server.call(lambda: server.server.connection_count) == count)


def open_gates(server: AgentServer, subject: Subject, *numbers: int) -> None:
    def open_all() -> None:
        for n in numbers:
            subject.gates[n].set()

    server.call(open_all)


def connected(server: AgentServer, connect: ConnectEngine, **hello: Any) -> EngineClient:
    engine = connect(port=server.port, timeout=TIMEOUT)
    engine.hello(**hello)
    return engine


class Recorder:
    """A transport whose writes are kept."""

    def __init__(self, transport: asyncio.Transport, writes: list[bytes]) -> None:
        self._transport = transport
        self._writes = writes

    def write(self, data: bytes) -> None:
        self._writes.append(data)
        self._transport.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


def notify_frame(
    payload: bytes, ids: bytes = encode_ids(77, 5), flags: FrameFlag = FrameFlag.FIN
) -> bytes:
    return encode_frame(FrameType.NOTIFY, payload, ids=ids, flags=flags)


def item(name: bytes, data_type: DataType, value: Any) -> bytes:
    return bytes((len(name),)) + name + encode_value(data_type, value)
