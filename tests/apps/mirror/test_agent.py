import asyncio
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest
from tests.apps.mirror.conftest import Run, origin, until

from spoakit.apps.mirror.agent import create_agent
from spoakit.apps.mirror.settings import MirrorSettings, TargetSettings
from spoakit.apps.mirror.url import TargetURL
from spoakit.metrics.counters import Counters
from spoakit.server import ServerSettings
from spoakit.server.server import Server
from spoakit.spop import (
    Acknowledged,
    Argument,
    DataType,
    EngineConnection,
    EngineHello,
    Event,
    Message,
    Opened,
)

HEADERS = b"\4host\5x.org\3x-a\1b\0\0"
COPY = b" HTTP/1.1\r\nhost: x.org\r\nx-a: b\r\n"


class EngineSocket:
    """An engine's end of a connection."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._loop = asyncio.get_running_loop()
        self._engine = EngineConnection(EngineHello(16380))

    async def open(self) -> None:
        self._engine.send_hello()
        assert isinstance(await self._event(), Opened)

    async def notify(self, *arguments: Argument) -> Event:
        """Send the message; return what comes back."""
        self._engine.send_notify([Message("mirror", arguments)], stream_id=1)
        return await self._event()

    async def _event(self) -> Event:
        await self._loop.sock_sendall(self._sock, self._engine.data_to_send())
        while not (events := self._engine.events_received()):
            self._engine.receive_data(await self._loop.sock_recv(self._sock, 65536))
        [event] = events
        return event


@asynccontextmanager
async def mirror(*ports: int, drain: float = 10) -> AsyncIterator[EngineSocket]:
    """Serve the mirror of these targets to one engine."""
    targets = tuple(TargetSettings(TargetURL.parse(f"http://127.0.0.1:{port}")) for port in ports)
    agent = create_agent(MirrorSettings(targets, drain))
    server = Server([agent], ServerSettings(), Counters(1).row(0))
    server.on_closed = lambda: None
    await server.start()
    theirs, ours = socket.socketpair()
    with theirs:
        ours.setblocking(False)
        server.adopt(ours)
        engine = EngineSocket(theirs)
        await engine.open()
        yield engine
    await server.drain(5)
    await server.aclose()


def arguments(
    method: str = "GET",
    *,
    headers: tuple[DataType, bytes | str] = (DataType.BINARY, HEADERS),
    body: tuple[DataType, bytes | str | None] = (DataType.BINARY, b""),
) -> Sequence[Argument]:
    return (
        Argument("arg_method", DataType.STRING, method),
        Argument("arg_path", DataType.STRING, "/a?b"),
        Argument("arg_ver", DataType.STRING, "1.1"),
        Argument("arg_hdrs", *headers),
        Argument("arg_body", *body),
    )


@pytest.mark.parametrize(
    ("given", "copy"),
    [
        (arguments(), b"GET /a?b" + COPY + b"\r\n"),
        (arguments()[:4], b"GET /a?b" + COPY + b"\r\n"),
        (arguments(body=(DataType.NULL, None)), b"GET /a?b" + COPY + b"\r\n"),
        (
            arguments(headers=(DataType.STRING, "host: x.org\r\nx-a: b\r\n\r\n")),
            b"GET /a?b" + COPY + b"\r\n",
        ),
        (
            arguments("PROPFIND", body=(DataType.BINARY, b"\0body\xff")),
            b"PROPFIND /a?b" + COPY + b"content-length: 6\r\n\r\n\0body\xff",
        ),
        (
            arguments("POST", body=(DataType.STRING, "text")),
            b"POST /a?b" + COPY + b"content-length: 4\r\n\r\ntext",
        ),
    ],
)
def test_a_message_is_acknowledged_and_its_request_copied(
    run: Run, capfd: pytest.CaptureFixture[str], given: Sequence[Argument], copy: bytes
) -> None:
    async def scenario() -> None:
        async with origin() as server:
            async with mirror(server.port) as engine:
                reply = await engine.notify(*given)
                assert isinstance(reply, Acknowledged)
                assert reply.actions == ()
                await until(lambda: bool(server.requests))
            assert server.requests == [copy]

    run(scenario())
    assert '/a?b HTTP/1.1" 200 ' in capfd.readouterr().out


def test_each_target_gets_a_copy(run: Run) -> None:
    async def scenario() -> None:
        async with origin() as one, origin() as two:
            async with mirror(one.port, two.port) as engine:
                await engine.notify(*arguments())
            assert one.requests == two.requests == [b"GET /a?b" + COPY + b"\r\n"]

    run(scenario())


def test_without_a_target_requests_are_acknowledged(run: Run) -> None:
    async def scenario() -> None:
        async with mirror() as engine:
            assert isinstance(await engine.notify(*arguments()), Acknowledged)

    run(scenario())


def test_an_acknowledgement_waits_for_no_target(run: Run) -> None:
    async def scenario() -> None:
        async with origin(lambda request: []) as server, mirror(server.port, drain=0) as engine:
            for _ in range(200):
                assert isinstance(await engine.notify(*arguments()), Acknowledged)
            await server.stop()
            assert isinstance(await engine.notify(*arguments()), Acknowledged)
            await server.start(server.port)

    run(scenario())
