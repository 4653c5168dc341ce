"""Servers that a mirror copies requests to."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


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
