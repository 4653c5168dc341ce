"""Opening connections to a target: from where, over TLS or not, for which HTTP."""

import asyncio
import errno
import socket
import ssl
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import chain
from random import randrange
from typing import Any, Final

from spoakit.apps.mirror.config.settings import MAX_TARGETS, TargetSettings, TlsSettings
from spoakit.apps.mirror.http.outcome import Trouble
from spoakit.exceptions import ConfigurationError, SpoakitError

HTTP_1: Final = "http/1.1"
HTTP_2: Final = "h2"


def alpn_groups(settings: TargetSettings) -> tuple[tuple[str, ...], ...]:
    """Return which protocols may be spoken: for HTTP/1's requests, and for HTTP/2's if others."""
    if settings.http == "2":
        return ((HTTP_2,),)
    if settings.http == "auto" and settings.url.scheme == "https":
        return ((HTTP_1,), (HTTP_2, HTTP_1))
    return ((HTTP_1,),)


def check_tls(settings: TargetSettings) -> None:
    """Read a target's certificates.

    Raises:
        ConfigurationError: that does not go.
    """
    if settings.url.scheme == "https":
        for http in alpn_groups(settings):
            client_context(settings.tls, http)


class ConnectError(SpoakitError):
    """A connection that could not be opened; the text says why.

    Attributes:
        reason: as it is counted, see `metrics.CONNECT_FAILURES`.
    """

    def __init__(self, text: str, reason: str) -> None:
        super().__init__(text)
        self.reason = reason

    @property
    def trouble(self) -> Trouble:
        """What it says about the target."""
        return Trouble.UNINTELLIGIBLE if self.reason == "protocol" else Trouble.UNREACHABLE


_UNREACHABLE: Final = frozenset(
    {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.EHOSTDOWN}
)


def _reason_of(error: OSError | UnicodeError) -> str:
    """Return what a failure is counted as."""
    if isinstance(error, (socket.gaierror, UnicodeError)):
        return "name"
    if isinstance(error, ssl.SSLError):
        return "tls"
    if isinstance(error, ConnectionRefusedError):
        return "refused"
    if isinstance(error, TimeoutError):
        return "timeout"
    return "unreachable" if error.errno in _UNREACHABLE else "other"


class Connector:
    """Opens connections to a target.

    Args:
        settings: the target's.
        http: the protocols to offer by ALPN (RFC 7301), the favourite first. Without TLS the first
            is the one that the target must know (for HTTP/2, RFC 9113, 3.3).

    Raises:
        ConfigurationError: a certificate cannot be read.
    """

    def __init__(self, settings: TargetSettings, http: Sequence[str]) -> None:
        url = settings.url
        self._url = url
        self._timeout = settings.timeouts.connect
        self._interface = settings.pool.interface
        self._ports = settings.pool.local_ports
        self._http = tuple(http)
        self._server_name: str | None = None
        self._ssl: ssl.SSLContext | None = None
        if url.scheme == "https":
            self._ssl = client_context(settings.tls, self._http)
            # RFC 6066, 3: what a name is looked up with is no part of it.
            self._server_name = (settings.tls.server_name or url.host).removesuffix(".")

    async def connect(self, make: Callable[[str], asyncio.Protocol]) -> None:
        """Open a connection, with the protocol that `make` returns for the HTTP of its argument.

        Raises:
            ConnectError: it could not be opened within `Timeouts.connect`, or the target does not
                know any of the protocols.
        """
        try:
            async with asyncio.timeout(self._timeout):
                await self._connect(_Chooser(make, self._http))
        except TimeoutError:
            raise ConnectError(f"no connection within {self._timeout:g} s", "timeout") from None
        except (OSError, UnicodeError) as error:  # the latter for a name that cannot be one
            text = getattr(error, "strerror", None) or str(error)
            raise ConnectError(text, _reason_of(error)) from None

    async def _connect(self, chooser: "_Chooser") -> None:
        loop = asyncio.get_running_loop()
        tls: dict[str, Any] = {"ssl": self._ssl, "server_hostname": self._server_name}
        if self._interface is None and self._ports is None:
            await loop.create_connection(lambda: chooser, self._url.host, self._url.port, **tls)
        else:
            sock = await self._bound_socket(loop)
            try:
                await loop.create_connection(lambda: chooser, sock=sock, **tls)
            except BaseException:
                sock.close()
                raise
        if chooser.refused:
            raise ConnectError("the target does not speak HTTP/2 (ALPN)", "protocol")

    async def _bound_socket(self, loop: asyncio.AbstractEventLoop) -> socket.socket:
        """Connect from the interface, address and port that the settings say."""
        error: Exception = OSError("no address")
        found = await loop.getaddrinfo(self._url.host, self._url.port, type=socket.SOCK_STREAM)
        for family, kind, protocol, _, address in found:
            sock = socket.socket(family, kind, protocol)
            sock.setblocking(False)
            try:
                await self._bind(loop, sock, family)
                await loop.sock_connect(sock, address)
            except BaseException as failure:
                sock.close()
                if not isinstance(failure, OSError):
                    raise
                error = failure
            else:
                return sock
        raise error

    async def _bind(
        self, loop: asyncio.AbstractEventLoop, sock: socket.socket, family: int
    ) -> None:
        host = ""
        if self._interface is not None and not _bind_to_device(sock, self._interface):
            found = await loop.getaddrinfo(
                self._interface, None, family=family, type=socket.SOCK_STREAM
            )
            host = str(found[0][4][0])
        error: OSError | None = None
        for port in _shuffled(self._ports):
            try:
                sock.bind((host, port))
            except OSError as failure:
                error = failure
            else:
                return
        assert error is not None
        if self._ports is not None and error.errno == errno.EADDRINUSE:
            first, last = self._ports
            raise OSError(f"none of the local ports {first}-{last} is free") from error
        raise error


class _Chooser(asyncio.Protocol):
    """Becomes the protocol that was negotiated, as soon as that is known."""

    def __init__(self, make: Callable[[str], asyncio.Protocol], offered: tuple[str, ...]) -> None:
        self._make = make
        self._offered = offered
        self.refused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See the connection open, its TLS handshake included."""
        tls = transport.get_extra_info("ssl_object")
        # Whoever does not know ALPN speaks HTTP/1.1.
        http = self._offered[0] if tls is None else tls.selected_alpn_protocol() or HTTP_1
        if http not in self._offered:
            self.refused = True
            transport.close()
            return
        protocol = self._make(http)
        transport.set_protocol(protocol)
        protocol.connection_made(transport)


@lru_cache(2 * MAX_TARGETS)
def client_context(tls: TlsSettings, http: tuple[str, ...]) -> ssl.SSLContext:
    """Return what TLS connections to a target are opened with.

    It is made once for all targets that are trusted in the same way, in a process and its forks:
    reading the system's certificates takes tens of milliseconds.

    Args:
        tls: how the target is trusted.
        http: the protocols to offer by ALPN.

    Raises:
        ConfigurationError: a file cannot be read, or is none of its kind.
    """
    try:
        context = ssl.create_default_context(cafile=tls.ca_file)
    except OSError as error:  # ssl.SSLError is one
        raise ConfigurationError(f"tls ca-file: {tls.ca_file!r}: {error}") from None
    if not tls.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if tls.certificate is not None:
        try:
            # Nobody is there to be asked for the password of an encrypted key.
            context.load_cert_chain(tls.certificate, tls.key, password="")
        except OSError as error:
            files = repr(tls.certificate) + (f" with key {tls.key!r}" if tls.key else "")
            raise ConfigurationError(f"tls certificate: {files}: {error}") from None
    context.set_alpn_protocols(http)
    return context


def _bind_to_device(sock: socket.socket, name: str) -> bool:
    """Bind to a network interface; return whether that is the name of one."""
    if sys.platform != "linux" or name not in (known for _, known in socket.if_nameindex()):
        return False
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, name.encode())
    return True


def _shuffled(ports: tuple[int, int] | None) -> Iterator[int]:
    """Yield every port once, from a random one on; 0 where any will do."""
    if ports is None:
        return iter((0,))
    first, last = ports
    start = randrange(first, last + 1)
    return chain(range(start, last + 1), range(first, start))
