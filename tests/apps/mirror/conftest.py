import asyncio
import subprocess
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias

import pytest
import uvloop

from spoakit.agent.headers import Headers
from spoakit.apps.line_writer import LogWriter
from spoakit.apps.mirror._request_cy import IncomingRequest
from spoakit.apps.mirror.access_log._lines_cy import AccessLog
from spoakit.apps.mirror.config.settings import TargetSettings
from spoakit.apps.mirror.target import Target
from spoakit.apps.mirror.url import TargetURL
from spoakit.metrics.memory import SharedMetrics
from tests.conftest import Form

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

Run: TypeAlias = Callable[[Coroutine[Any, Any, None]], None]


@pytest.fixture(scope="session")
def building(form: Form) -> ModuleType:
    """`spoakit.apps.mirror._request_cy`, in each form."""
    return form("spoakit.apps.mirror._request_cy")


@pytest.fixture(scope="session")
def answering(form: Form) -> ModuleType:
    """`spoakit.apps.mirror.http._response_cy`, in each form."""
    return form("spoakit.apps.mirror.http._response_cy")


@pytest.fixture(params=["uvloop", "asyncio"])
def run(request: pytest.FixtureRequest) -> Run:
    """Run a coroutine in an event loop of each kind."""
    factory = uvloop.new_event_loop if request.param == "uvloop" else asyncio.new_event_loop

    def run(coroutine: Coroutine[Any, Any, None]) -> None:
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(asyncio.wait_for(coroutine, 30))

    return run


async def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition, for ten seconds at most."""
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.002)


@dataclass
class Origin:
    """A server that keeps each byte it receives and responds as it is told.

    Attributes:
        response: gives the response to a request, in pieces; without pieces there is none. A None
            among them closes the connection.
        requests: what was received, each with its body.
        connections: how many there were.
        open: how many there are.
        peers: where they came from.
    """

    response: Callable[[bytes], Sequence[bytes | None]] = lambda request: [OK]
    requests: list[bytes] = field(default_factory=list)
    connections: int = 0
    open: int = 0
    peers: list[tuple[str, int]] = field(default_factory=list)
    port: int = 0
    _server: asyncio.Server | None = None
    _tasks: set[asyncio.Task[Any]] = field(default_factory=set)

    async def start(self, port: int = 0, host: str = "127.0.0.1", **options: Any) -> None:
        """Listen."""
        self._server = await asyncio.start_server(self._serve, host, port, **options)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Close all connections and the socket."""
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    async def pause(self) -> None:
        """Wait before a response."""

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        self.open += 1
        self.peers.append(writer.get_extra_info("peername"))
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                _, _, rest = head.lower().partition(b"content-length: ")
                body = await reader.readexactly(int(rest.partition(b"\r\n")[0] or b"0"))
                self.requests.append(head + body)
                await self.pause()
                for piece in self.response(head + body):
                    if piece is None:
                        return
                    writer.write(piece)
                    await writer.drain()
                    await asyncio.sleep(0)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            self.open -= 1
            writer.close()


@asynccontextmanager
async def origin(
    response: Callable[[bytes], Sequence[bytes | None]] = lambda request: [OK],
) -> AsyncIterator[Origin]:
    """Run an `Origin`."""
    server = Origin(response)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


@dataclass
class Copier:
    """A target and its log."""

    target: Target
    log: Path

    def get(self, path: bytes = b"/", method: bytes = b"GET", version: bytes = b"1.1") -> None:
        """Copy a request without a body."""
        self.copy(method, path, b"host: h\r\n\r\n", version=version)

    def copy(
        self,
        method: bytes,
        path: bytes,
        lines: bytes,
        body: bytes = b"",
        version: bytes = b"1.1",
        **more: Any,
    ) -> None:
        """Copy a request."""
        headers = Headers(lines, False)
        self.target.copy(IncomingRequest(method, path, version, headers, body, **more))

    async def answered(self, count: int) -> None:
        """Wait for that many responses."""
        await until(lambda: self.target.counters.answered >= count)

    def lines(self) -> list[str]:
        """Return the access log, without what each line begins with."""
        return [line.partition("] ")[2] for line in self.log.read_text("latin-1").splitlines()]


@pytest.fixture
def copying(tmp_path: Path) -> Callable[..., Any]:
    """Give `copying(port, **settings)`, an asynchronous context of a `Copier`."""
    log = tmp_path / "access.log"

    @asynccontextmanager
    async def copying(
        port: int,
        *,
        scheme: str = "http",
        host: str = "127.0.0.1",
        base: str = "",
        drain: float = 5.0,
        **settings: Any,
    ) -> AsyncIterator[Copier]:
        url = TargetURL.parse(f"{scheme}://{host}:{port}{base}")
        with log.open("wb") as file:
            access_log = AccessLog(LogWriter(file.fileno()))
            target = Target(TargetSettings(url, **settings), access_log, SharedMetrics(1).worker(0))
            try:
                yield Copier(target, log)
            finally:
                await target.aclose(drain)
                access_log.close()

    return copying


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A certificate for localhost, and its key."""
    path = tmp_path / "localhost.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"),
            *("-keyout", path, "-out", tmp_path / "cert.pem"),
        ],
        check=True,
        capture_output=True,
    )
    with path.open("a") as file:
        file.write((tmp_path / "cert.pem").read_text())
    return path
