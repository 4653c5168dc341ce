import asyncio
import logging
import socket
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from spoakit import Agent, Argument, DataType, Message
from spoakit.exceptions import ConfigurationError, StartupError
from spoakit.logs import forget_throttled
from spoakit.server import Drain, Listen, Logfile, ServerSettings, serve
from spoakit.server.event_loops import loop_factory
from spoakit.spop import (
    EngineConnection,
    EngineHello,
    FrameType,
    Opened,
    encode_frame,
    encode_ids,
    encode_messages,
)
from tests.support.waiting import until


def make_agent() -> Agent:
    agent = Agent("one")

    @agent.message("nothing")
    def nothing() -> None:
        pass

    return agent


async def handshake(path: Path) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_unix_connection(path)
    engine = EngineConnection(EngineHello(16380))
    engine.send_hello()
    writer.write(engine.data_to_send())
    while not (events := engine.events_received()):
        engine.receive_data(await reader.read(65536))
    assert isinstance(events[0], Opened)
    return reader, writer


def test_it_serves_in_a_running_loop_and_drains_when_cancelled(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="spoakit.server")
    path = tmp_path / "agent.sock"
    stopped: list[str] = []
    agent = make_agent()

    @agent.resource
    async def thing() -> AsyncIterator[Path]:
        yield path
        stopped.append("thing")

    async def main() -> None:
        serving = asyncio.create_task(
            serve([agent], ServerSettings(listen=Listen.at(unix=str(path)), drain=Drain(timeout=5)))
        )
        await until(lambda: path.exists() or serving.done())
        reader, writer = await asyncio.wait_for(handshake(path), 10)
        serving.cancel()
        while await reader.read(65536):
            pass
        writer.close()
        with pytest.raises(asyncio.CancelledError):
            await serving

    asyncio.run(main())
    assert stopped == ["thing"]
    assert caplog.messages == [f"listening on {path}"]
    assert not path.exists()


DRAIN = Drain(timeout=60)


class Serving:
    """`serve` in a task, with a resource and a handler that waits, and what became of them."""

    def __init__(self, path: Path, drain: Drain = DRAIN) -> None:
        self.path = path
        self.settings = ServerSettings(listen=Listen.at(unix=str(path)), drain=drain)
        self.events: list[str] = []
        self.may_start = asyncio.Event()
        self.may_start.set()
        self.may_stop = asyncio.Event()
        self.may_stop.set()
        self.started = asyncio.Event()
        self.stopping = asyncio.Event()
        self.agent = make_agent()

        @self.agent.resource
        async def thing() -> AsyncIterator[Path]:
            self.events.append("starting")
            try:
                await self.may_start.wait()
                yield path
            finally:
                self.stopping.set()
                try:
                    await self.may_stop.wait()
                finally:
                    self.events.append("stopped")

        @self.agent.message("wait", timeout=60)
        async def wait() -> None:
            self.started.set()
            try:
                await asyncio.Event().wait()
            finally:
                self.events.append("cancelled")

        @self.agent.message("fail")
        def fail(n: int) -> None:
            raise ValueError(n)

        self.task = asyncio.create_task(serve([self.agent], self.settings))

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        await until(self.path.exists)
        reader, writer = await asyncio.wait_for(handshake(self.path), 10)
        try:
            yield reader, writer
        finally:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()

    async def cancel(self, times: int = 1) -> None:
        """Cancel it again and again, each time when it has come to wait for something."""
        for _ in range(times):
            self.task.cancel()
            for _ in range(20):
                await asyncio.sleep(0)

    async def ended(self) -> None:
        """Wait for the end, and check that nothing is left."""
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(self.task, 10)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert not self.path.exists()


@pytest.fixture(params=["uvloop", "asyncio"])
def run_in(request: pytest.FixtureRequest) -> Callable[[Coroutine[Any, Any, None]], None]:
    def run(main: Coroutine[Any, Any, None]) -> None:
        with asyncio.Runner(loop_factory=loop_factory(request.param)) as runner:
            runner.run(main)

    return run


Run = Callable[[Coroutine[Any, Any, None]], None]
WAIT = encode_frame(FrameType.NOTIFY, encode_messages([Message("wait")]), ids=encode_ids(1, 1))


@pytest.mark.parametrize("times", [2, 3, 7])
def test_cancelled_again_it_ends_the_drain_and_leaves_nothing_behind(
    run_in: Run, tmp_path: Path, times: int
) -> None:
    async def main() -> None:
        serving = Serving(tmp_path / "agent.sock")
        async with serving.connect() as (reader, writer):
            writer.write(WAIT)
            await asyncio.wait_for(serving.started.wait(), 10)
            await serving.cancel(1)
            assert not serving.task.done()
            await serving.cancel(times - 1)
            await serving.ended()
            with suppress(ConnectionResetError):
                assert await asyncio.wait_for(reader.read(), 10) == b""
        assert serving.events == ["starting", "cancelled", "stopped"]

    run_in(main())


def test_cancelled_again_it_stops_resources_within_their_bound(
    run_in: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        serving = Serving(tmp_path / "agent.sock", Drain(timeout=60, resources=0.05))
        serving.may_stop.clear()
        async with serving.connect() as (_, writer):
            writer.write(WAIT)
            await asyncio.wait_for(serving.started.wait(), 10)
            begin = time.monotonic()
            await serving.cancel(3)
            await serving.ended()
            assert time.monotonic() - begin < 5
        assert serving.events == ["starting", "cancelled", "stopped"]

    run_in(main())
    assert caplog.text.count("stopping anyway") == 1


def test_cancelled_again_it_waits_no_longer_for_resources_than_they_may_take(
    run_in: Run, tmp_path: Path
) -> None:
    async def main() -> None:
        serving = Serving(tmp_path / "agent.sock", Drain(timeout=60, resources=0.05))
        serving.may_stop.clear()
        async with serving.connect():
            pass
        await serving.cancel()
        # The drain is over as soon as nobody is connected.
        await until(serving.stopping.is_set)
        begin = time.monotonic()
        await serving.cancel()
        await serving.ended()
        assert time.monotonic() - begin < 5
        assert serving.events == ["starting", "stopped"]

    run_in(main())


@pytest.mark.parametrize("times", [1, 2, 5])
def test_cancelled_while_it_starts_it_leaves_nothing_behind(
    run_in: Run, tmp_path: Path, times: int
) -> None:
    async def main() -> None:
        serving = Serving(tmp_path / "agent.sock")
        serving.may_start.clear()
        await until(lambda: serving.events)
        serving.may_stop.clear()
        await serving.cancel(times)
        serving.may_stop.set()
        await serving.ended()
        assert serving.events == ["starting", "stopped"]

    run_in(main())


@pytest.mark.parametrize("after", [0, 1, 2])
def test_a_keyboard_interrupt_leaves_nothing_behind(
    run_in: Run, tmp_path: Path, after: int
) -> None:
    path = tmp_path / "agent.sock"
    events: list[str] = []

    def interrupt() -> None:
        raise KeyboardInterrupt

    async def main() -> None:
        serving = Serving(path)
        serving.events = events
        async with serving.connect() as (_, writer):
            writer.write(WAIT)
            await asyncio.wait_for(serving.started.wait(), 10)
            await serving.cancel(after)
            asyncio.get_running_loop().call_soon(interrupt)
            await serving.task

    with pytest.raises(KeyboardInterrupt):
        run_in(main())
    assert sorted(events) == ["cancelled", "starting", "stopped"]
    assert not path.exists()


@pytest.mark.parametrize("times", [1, 2])
def test_lines_that_were_held_back_are_logged_at_its_end(
    run_in: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture, times: int
) -> None:
    payload = encode_messages([Message("fail", (Argument("n", DataType.INT64, 1),))])
    frames = [encode_frame(FrameType.NOTIFY, payload, ids=encode_ids(n, 1)) for n in range(1, 51)]

    async def main() -> None:
        serving = Serving(tmp_path / "agent.sock")
        async with serving.connect() as (reader, writer):
            writer.write(b"".join(frames))
            empty_ack = encode_frame(FrameType.ACK, b"", ids=encode_ids(1, 1))
            await asyncio.wait_for(reader.readexactly(50 * len(empty_ack)), 10)
            await serving.cancel(times)
        await serving.ended()

    forget_throttled()
    run_in(main())
    assert "48 more like it" in caplog.text


@pytest.mark.parametrize(
    "settings",
    [
        ServerSettings(workers=2),
        ServerSettings(daemonize=True),
        ServerSettings(pidfile="a.pid"),
        ServerSettings(runtime=1.0),
        ServerSettings(logfile=Logfile("a.log")),
        ServerSettings(monitor=1.0),
        ServerSettings(watch="a.toml"),
    ],
)
def test_it_refuses_what_needs_a_process(settings: ServerSettings) -> None:
    with pytest.raises(ConfigurationError, match="is not supported by serve"):
        asyncio.run(serve([make_agent()], settings))


def test_a_port_in_use_is_an_exception() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        listen = Listen.at("127.0.0.1", other.getsockname()[1])
        with pytest.raises(StartupError, match="Address already in use"):
            asyncio.run(serve([make_agent()], ServerSettings(listen=listen)))


def test_a_resource_that_fails_is_an_exception_and_nothing_listens(tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"
    agent = make_agent()

    @agent.resource
    async def thing() -> AsyncIterator[Path]:
        raise RuntimeError("no database")
        yield path

    with pytest.raises(StartupError, match="no database"):
        asyncio.run(serve([agent], ServerSettings(listen=Listen.at(unix=str(path)))))
    assert not path.exists()
