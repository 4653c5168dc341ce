"""Name server for tests: answers over UDP, at once, late or never."""

import asyncio
import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from ipaddress import ip_address
from queue import Queue
from threading import Thread
from typing import cast

NXDOMAIN = 3
SERVFAIL = 2
_TYPES = {1: 4, 28: 6}  # A and AAAA, and the version of IP


class NameServer(asyncio.DatagramProtocol):
    """Answers questions for addresses.

    Attributes:
        answers: addresses by name, or an error code; other names do not exist.
        ttl: the time to live of records, in seconds.
        delay: seconds from a question to its answer.
        asked: the names that were asked for.
        silent: whether nothing is answered.
        silent_names: names for which nothing is answered.
    """

    def __init__(self) -> None:
        self.answers: dict[str, list[str] | int] = {}
        self.ttl = 300
        self.delay = 0.0
        self.asked: list[str] = []
        self.silent = False
        self.silent_names: set[str] = set()
        self._held: list[tuple[bytes, tuple[str, int]]] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.DatagramTransport, transport)

    @property
    def address(self) -> str:
        host, port = self.transport.get_extra_info("sockname")
        return f"{host}:{port}"

    def datagram_received(self, data: bytes, sender: tuple[str, int]) -> None:
        name, end = self._name(data)
        (kind,) = struct.unpack_from(">H", data, end)
        self.asked.append(name)
        answer = self.answers.get(name, NXDOMAIN)
        code, addresses = (answer, []) if isinstance(answer, int) else (0, answer)
        records = [
            b"\xc0\x0c" + struct.pack(">HHIH", kind, 1, self.ttl, len(packed)) + packed
            for packed in (
                ip_address(each).packed
                for each in addresses
                if ip_address(each).version == _TYPES.get(kind)
            )
        ]
        head = data[:2] + struct.pack(">5H", 0x8180 | code, 1, len(records), 0, 0)
        packet = head + data[12 : end + 4] + b"".join(records)
        if self.silent or name in self.silent_names:
            self._held.append((packet, sender))
        elif self.delay:
            asyncio.get_running_loop().call_later(self.delay, self._send, packet, sender)
        else:
            self._send(packet, sender)

    def _send(self, packet: bytes, sender: tuple[str, int]) -> None:
        if not self.transport.is_closing():
            self.transport.sendto(packet, sender)

    def speak(self) -> None:
        """Answer what was asked in silence, and all that comes."""
        self.silent = False
        self.silent_names.clear()
        for packet, sender in self._held:
            self.transport.sendto(packet, sender)
        self._held.clear()

    @staticmethod
    def _name(data: bytes) -> tuple[str, int]:
        labels = []
        place = 12
        while length := data[place]:
            labels.append(data[place + 1 : place + 1 + length].decode())
            place += 1 + length
        return ".".join(labels), place + 1


@asynccontextmanager
async def name_server() -> AsyncIterator[NameServer]:
    """Run a `NameServer`."""
    loop = asyncio.get_running_loop()
    transport, server = await loop.create_datagram_endpoint(NameServer, local_addr=("127.0.0.1", 0))
    try:
        yield server
    finally:
        transport.close()


@contextmanager
def name_server_in_thread() -> Iterator[NameServer]:
    """Run a `NameServer` beside a test that has no event loop; set its attributes only."""
    started: Queue[tuple[asyncio.AbstractEventLoop, asyncio.Event, NameServer]] = Queue()

    async def main() -> None:
        async with name_server() as server:
            stop = asyncio.Event()
            started.put((asyncio.get_running_loop(), stop, server))
            await stop.wait()

    thread = Thread(target=asyncio.run, args=(main(),))
    thread.start()
    loop, stop, server = started.get(timeout=10)
    try:
        yield server
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
