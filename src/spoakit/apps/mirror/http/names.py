"""Cache of hosts' addresses, shared by all connections of a worker, by DNS times to live.

Names are looked up in /etc/hosts and then by DNS, by c-ares (through aiodns), not by other sources
of the system's name service switch (mDNS, LDAP, NIS and so on). An event loop would use a few
threads, all of which one unresponsive name server can block, also at the stop.
"""

import asyncio
import ipaddress
import logging
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final
from weakref import WeakValueDictionary

import aiodns
from aiohappyeyeballs import AddrInfoType

from spoakit.logs import Throttle

logger = logging.getLogger("spoakit.mirror")

AddressInfo = AddrInfoType
"""Address of a host, as `socket.getaddrinfo` returns it."""

# Limits of the time to live in seconds; a name in /etc/hosts has 0.
_MIN_TTL: Final = 5.0
_MAX_TTL: Final = 3600.0
# Seconds for one try; there are two for each name server, and the second may take twice as long.
_TIMEOUT: Final = 2.0
_TRIES: Final = 2
# Seconds to wait for a lookup if old addresses are known.
_PATIENCE: Final = 0.5
# Seconds for which an address that failed is tried after all others.
_AVOIDANCE: Final = 60.0


# c-ares reads this file, too, but loses addresses if two lines share one.
_HOSTS: Final = Path("/etc/hosts")


class LookupFailedError(OSError):
    """Host without an address; the text names the host and says why."""


class HostAddresses:
    """Addresses of one host, ordered by whether they worked.

    Args:
        host: a name or an IP address, IPv6 without brackets.
        port: the port to connect to.
        resolver: the resolver for the name.
    """

    def __init__(self, host: str, port: int, resolver: "Resolver") -> None:
        self._host = host
        self._port = port
        self._resolver = resolver
        self._throttle = Throttle(logger)
        self._addresses: list[AddressInfo] = []
        self._expires_at = 0.0
        self._lookup: asyncio.Task[str | None] | None = None
        self._avoided: dict[tuple[Any, ...], float] = {}
        self._preferred: int | None = None
        self._turn = 0
        with suppress(ValueError):
            self._addresses = [_address_info(str(ipaddress.ip_address(host)), port)]
            self._expires_at = float("inf")

    def __str__(self) -> str:
        return repr(self._host)

    async def get(self) -> list[AddressInfo]:
        """Return the addresses in the order in which they should be tried.

        Addresses that worked come first, rotated with each call; failed ones come last for a
        minute. If a lookup fails or takes long, the addresses of the last one are used.

        Raises:
            LookupFailedError: there is no address.
        """
        if time.monotonic() >= self._expires_at:
            await self._refresh()
        return self._ordered()

    def record(self, tried: Sequence[AddressInfo], connected: AddressInfo | None) -> None:
        """Record the result of an attempt to connect.

        Args:
            tried: the addresses that were tried.
            connected: the one that worked, before the others or instead of them; None if none did.
        """
        if connected is None:
            self._preferred = None
            return
        now = time.monotonic()
        for address in tried:
            self._avoided[address[4]] = now + _AVOIDANCE
        self._avoided.pop(connected[4], None)
        self._preferred = connected[0]

    async def _refresh(self) -> None:
        if self._lookup is None:
            self._lookup = asyncio.create_task(self._look_up())
        lookup = self._lookup
        # The lookup continues if a caller is cancelled, since others may wait for it.
        await asyncio.wait((lookup,), timeout=_PATIENCE if self._addresses else None)
        if not self._addresses:
            raise LookupFailedError(lookup.result())

    async def _look_up(self) -> str | None:
        """Look the name up; return the error, or ""."""
        try:
            addresses, ttl = await self._resolver.look_up(self._host, self._port)
        except LookupFailedError as error:
            await self._resolver.forget_failures()
            self._expires_at = time.monotonic() + (_MIN_TTL if self._addresses else 0.0)
            if self._addresses:
                self._throttle.warning(
                    "lookup", "%s; the last addresses are used until there are new ones", error
                )
            return str(error)
        finally:
            self._lookup = None
        self._addresses = addresses
        self._expires_at = time.monotonic() + min(max(ttl, _MIN_TTL), _MAX_TTL)
        known = {address[4] for address in addresses}
        self._avoided = {key: end for key, end in self._avoided.items() if key in known}
        return None

    def _ordered(self) -> list[AddressInfo]:
        now = time.monotonic()
        good: list[AddressInfo] = []
        bad: list[AddressInfo] = []
        for address in self._addresses:
            (bad if self._avoided.get(address[4], 0.0) > now else good).append(address)
        if not good:
            return bad
        family = good[0][0] if self._preferred is None else self._preferred
        first = [address for address in good if address[0] == family]
        others = [address for address in good if address[0] != family]
        self._turn += 1
        start = self._turn % len(first) if first else 0
        return [*first[start:], *first[:start], *others, *bad]


class Resolver:
    """Resolver of names, by /etc/hosts and name servers.

    Args:
        nameservers: addresses with or without a port; empty to use /etc/resolv.conf, and follow its
            changes.
    """

    def __init__(self, nameservers: tuple[str, ...] = ()) -> None:
        self._nameservers = nameservers
        self._channel: aiodns.DNSResolver | None = None
        self._pending = 0

    async def look_up(self, host: str, port: int) -> tuple[list[AddressInfo], float]:
        """Return a host's addresses, the best first (RFC 6724), and their time to live in seconds.

        Raises:
            LookupFailedError: the host has no address, or no name server responds.
        """
        if known := await asyncio.to_thread(_read_hosts, host):
            return [_address_info(address, port) for address in known], 0.0
        if self._channel is None:
            self._channel = aiodns.DNSResolver(
                list(self._nameservers) or None, timeout=_TIMEOUT, tries=_TRIES
            )
        self._pending += 1
        try:
            # A port would be looked up as a service, in files and perhaps by NSS.
            found = await self._channel.getaddrinfo(host, type=socket.SOCK_STREAM)
        except (aiodns.error.DNSError, UnicodeError) as error:
            reason = error.args[-1] if error.args else error
            raise LookupFailedError(f"no address for {host!r}: {reason}") from None
        finally:
            self._pending -= 1
        addresses = [
            _address_info(node.addr[0].decode(), port, node.addr[3:]) for node in found.nodes
        ]
        if not addresses:
            raise LookupFailedError(f"no address for {host!r}")
        return addresses, min(node.ttl for node in found.nodes)

    async def forget_failures(self) -> None:
        """Clear c-ares' cache, which keeps an empty response for up to an hour."""
        if not self._pending:
            await self.close()

    async def close(self) -> None:
        """End lookups and free what they need."""
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close()


class Names:
    """Cache of addresses of a worker, for all its targets; create it in a running event loop."""

    def __init__(self) -> None:
        # Weak references, since a reload may change the hosts.
        self._resolvers: WeakValueDictionary[tuple[str, ...], Resolver] = WeakValueDictionary()
        self._hosts: WeakValueDictionary[tuple[str, int, tuple[str, ...]], HostAddresses]
        self._hosts = WeakValueDictionary()

    def host(self, host: str, port: int, nameservers: tuple[str, ...] = ()) -> HostAddresses:
        """Return a host's addresses, shared by all its users.

        Args:
            host: a name or an IP address, IPv6 without brackets.
            port: the port to connect to.
            nameservers: as for `Resolver`.
        """
        key = (host, port, nameservers)
        known = self._hosts.get(key)
        if known is None:
            resolver = self._resolvers.setdefault(nameservers, Resolver(nameservers))
            known = self._hosts[key] = HostAddresses(host, port, resolver)
        return known

    async def close(self) -> None:
        """Cancel lookups; connections that wait for one fail."""
        for resolver in list(self._resolvers.values()):
            await resolver.close()


def _read_hosts(host: str) -> list[str]:
    """Return the addresses that /etc/hosts has for a name, ignoring case."""
    name = host.lower().removesuffix(".")
    found: list[str] = []
    with suppress(OSError), _HOSTS.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            address, *names = line.partition("#")[0].lower().split() or [""]
            if name in names and address not in found:
                with suppress(ValueError):
                    found.append(str(ipaddress.ip_address(address)))
    return found


def _address_info(address: str, port: int, scope: Sequence[int] = ()) -> AddressInfo:
    is_ipv6 = ":" in address
    family = socket.AF_INET6 if is_ipv6 else socket.AF_INET
    place = (address, port, 0, scope[0] if scope else 0) if is_ipv6 else (address, port)
    return family, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", place
