import asyncio
import logging
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from spoakit import Agent
from spoakit.exceptions import ConfigurationError, StartupError
from spoakit.server import Drain, Listen, Logfile, ServerSettings, serve
from spoakit.spop import EngineConnection, EngineHello, Opened


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
            serve([agent], ServerSettings(listen=Listen(unix=str(path)), drain=Drain(timeout=5)))
        )
        while not path.exists() and not serving.done():
            await asyncio.sleep(0.001)
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
    with pytest.raises(ConfigurationError, match="it needs a process"):
        asyncio.run(serve([make_agent()], settings))


def test_a_port_in_use_is_an_exception() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        listen = Listen(address="127.0.0.1", port=other.getsockname()[1])
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
        asyncio.run(serve([agent], ServerSettings(listen=Listen(unix=str(path)))))
    assert not path.exists()
