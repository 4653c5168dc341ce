"""An HTTP server that keeps the requests it receives as they stood on the wire."""

import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import BinaryIO, Self

from tests.support.waiting import wait_until

# What concerns one connection only and is made anew for each (RFC 9110, 7.6.1), and a body's
# framing, which is compared by comparing bodies.
PER_CONNECTION = frozenset({b"connection", b"content-length", b"keep-alive", b"transfer-encoding"})


@dataclass(frozen=True)
class Received:
    """A request, its fields in their order."""

    method: bytes
    target: bytes
    fields: tuple[tuple[bytes, bytes], ...]
    body: bytes

    def field(self, name: bytes) -> bytes:
        return dict(self.fields)[name]

    def has(self, name: bytes) -> bool:
        return name in dict(self.fields)

    def essence(self) -> tuple[object, ...]:
        """Return what a faithful copy has too."""
        fields = tuple(field for field in self.fields if field[0] not in PER_CONNECTION)
        return self.method, self.target, fields, self.body


def answer_ok(request: Received) -> bytes:
    """Answer with 200 and two bytes."""
    content = b"" if request.method == b"HEAD" else b"ok"
    return b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n" + content


class Capture:
    """Answers every request, if not told otherwise with 200; running while its block does.

    Args:
        port: where to listen; 0 is a free port.
        answer: makes the whole answer; the connection ends after one with "Connection: close".
        host: an address of this machine.
    """

    def __init__(
        self,
        port: int = 0,
        answer: Callable[[Received], bytes] = answer_ok,
        host: str = "127.0.0.1",
    ) -> None:
        self.requests: list[Received] = []
        self._answer = answer
        self._listener = socket.create_server((host, port))
        self._sockets = [self._listener]
        self._threads = [threading.Thread(target=self._accept)]

    @property
    def address(self) -> str:
        host, port = self._listener.getsockname()
        return f"{host}:{port}"

    def wait_for(self, count: int) -> None:
        """Wait until so many requests have come in all."""
        wait_until(lambda: len(self.requests) >= count, f"{count} requests")

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for each in self._sockets:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for each in self._sockets:
            each.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self._sockets.append(connection)
                thread = threading.Thread(target=self._serve, args=(connection,))
                self._threads.append(thread)
                thread.start()

    def _serve(self, connection: socket.socket) -> None:
        with suppress(OSError), connection.makefile("rb") as stream:
            while line := stream.readline():
                method, target, _ = line.split()
                fields = tuple(iter(lambda: _read_field(stream), (b"", b"")))
                body = _read_body(stream, dict(fields))
                request = Received(method, target, fields, body)
                self.requests.append(request)
                answer = self._answer(request)
                connection.sendall(answer)
                if b"\r\nConnection: close\r\n" in answer:
                    connection.shutdown(socket.SHUT_RDWR)


def _read_field(stream: BinaryIO) -> tuple[bytes, bytes]:
    name, _, value = stream.readline().partition(b":")
    return name.strip().lower(), value.strip(b" \t\r\n")


def _read_body(stream: BinaryIO, fields: dict[bytes, bytes]) -> bytes:
    if fields.get(b"transfer-encoding") != b"chunked":
        return stream.read(int(fields.get(b"content-length", b"0")))
    body = b""
    while size := int(stream.readline(), 16):
        body += stream.read(size)
        stream.readline()
    stream.readline()
    return body
