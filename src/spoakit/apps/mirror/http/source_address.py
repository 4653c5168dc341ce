"""Source of connections to a target: interface, address, port, and TCP keep-alive."""

import errno
import socket
import sys
from collections.abc import Iterator
from itertools import chain
from random import randrange
from typing import Final

from spoakit.apps.mirror.config.schema import TargetSettings
from spoakit.apps.mirror.http.names import AddressInfo, HostAddresses, LookupFailedError, Names

# Seconds without traffic before a probe, and between probes, as in the C program.
_KEEP_ALIVE: Final = 10
_KEEP_ALIVE_OPTIONS: Final = ("TCP_KEEPIDLE", "TCP_KEEPALIVE", "TCP_KEEPINTVL")


class SourceAddress:
    """Factory of sockets bound to the interface and ports of the target's settings.

    Args:
        settings: the target's settings.
        names: the worker's cache of addresses.
    """

    def __init__(self, settings: TargetSettings, names: Names) -> None:
        self._interface = settings.interface
        self._ports = settings.local_ports
        self._host: HostAddresses | None = None
        # Addresses by family; empty if the interface is a device or not set.
        self._addresses: dict[int, str] = {}
        if self._interface is not None:
            self._host = names.host(self._interface, 0, settings.nameservers)

    def __str__(self) -> str:
        return f"the interface {self._interface!r}"

    async def look_up(self) -> None:
        """Look up the addresses of an interface that is given as a host name or an address.

        Raises:
            OSError: the interface is neither a network interface nor a name or an address.
        """
        self._addresses = {}
        if self._host is None or self._is_device:
            return
        try:
            for family, _, _, _, address in reversed(await self._host.get()):
                self._addresses[family] = address[0]
        except LookupFailedError as error:
            text = f"{self} is neither a network interface nor an address: {error}"
            raise OSError(errno.EADDRNOTAVAIL, text) from None

    def can_reach(self, family: int) -> bool:
        """Return whether the source has an address of a family."""
        return not self._addresses or family in self._addresses

    def make_socket(self, target: AddressInfo) -> socket.socket:
        """Return a socket for a connection to an address of the target.

        Raises:
            OSError: the socket cannot be bound; the text names the interface or the ports.
        """
        family, kind, protocol, _, _ = target
        sock = socket.socket(family, kind, protocol)
        try:
            sock.setblocking(False)
            _keep_alive(sock)
            if self._interface is not None and not self._addresses:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, self._interface.encode())
            if self._addresses or self._ports is not None:
                self._bind(sock, self._addresses.get(family, ""))
        except OSError as error:
            sock.close()
            if self._interface is None:
                raise
            raise OSError(error.errno, f"{self}: {error.strerror}") from error
        return sock

    @property
    def _is_device(self) -> bool:
        return sys.platform == "linux" and any(
            name == self._interface for _, name in socket.if_nameindex()
        )

    def _bind(self, sock: socket.socket, host: str) -> None:
        for port in _shuffled(self._ports):
            try:
                sock.bind((host, port))
            except OSError as error:
                if self._ports is None or error.errno != errno.EADDRINUSE:
                    raise
            else:
                return
        assert self._ports is not None
        first, last = self._ports
        raise OSError(errno.EADDRINUSE, f"none of the local ports {first}-{last} is free")


def _keep_alive(sock: socket.socket) -> None:
    """Enable TCP keep-alive, by which the system detects a lost peer on an idle connection."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name in _KEEP_ALIVE_OPTIONS:
        option = getattr(socket, name, None)
        if option is not None:
            sock.setsockopt(socket.IPPROTO_TCP, option, _KEEP_ALIVE)


def _shuffled(ports: tuple[int, int] | None) -> Iterator[int]:
    """Yield every port once, beginning at a random one; only 0 if any port will do."""
    if ports is None:
        return iter((0,))
    first, last = ports
    start = randrange(first, last + 1)
    return chain(range(start, last + 1), range(first, start))
