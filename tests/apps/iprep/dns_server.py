"""A name server for tests: one zone, over UDP, which answers as it is told."""

import asyncio
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

NXDOMAIN = 3
SERVFAIL = 2


class NameServer(asyncio.DatagramProtocol):
    """Answers questions for A records: `answers` has addresses by name, or an error code."""

    def __init__(self) -> None:
        self.answers: dict[str, list[str] | int] = {}
        self.ttl = 300
        self.asked: list[str] = []
        self.silent = False
        self._held: list[tuple[bytes, tuple[str, int]]] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.DatagramTransport, transport)

    @property
    def address(self) -> str:
        host, port = self.transport.get_extra_info("sockname")
        return f"{host}:{port}"

    def datagram_received(self, data: bytes, sender: tuple[str, int]) -> None:
        name, end = self._name(data)
        self.asked.append(name)
        answer = self.answers.get(name, NXDOMAIN)
        code, addresses = (answer, []) if isinstance(answer, int) else (0, answer)
        head = data[:2] + struct.pack(">5H", 0x8180 | code, 1, len(addresses), 0, 0)
        records = b"".join(
            b"\xc0\x0c" + struct.pack(">HHIH", 1, 1, self.ttl, 4) + bytes(map(int, each.split(".")))
            for each in addresses
        )
        packet = head + data[12 : end + 4] + records
        if self.silent:
            self._held.append((packet, sender))
        else:
            self.transport.sendto(packet, sender)

    def speak(self) -> None:
        """Answer what was asked in silence, and all that comes."""
        self.silent = False
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
    loop = asyncio.get_running_loop()
    transport, server = await loop.create_datagram_endpoint(NameServer, local_addr=("127.0.0.1", 0))
    try:
        yield server
    finally:
        transport.close()
