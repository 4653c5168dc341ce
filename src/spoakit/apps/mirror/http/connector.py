"""Opening connections to a target: from where, through which proxy, over TLS or not."""

import asyncio
import errno
import os
import socket
import ssl
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Final

from aiohappyeyeballs import start_connection

from spoakit.apps.mirror._request_cy import OutgoingRequest
from spoakit.apps.mirror.config.schema import MAX_TARGETS, TargetSettings, TlsSettings
from spoakit.apps.mirror.http.names import AddressInfo, LookupFailedError, Names
from spoakit.apps.mirror.http.outcome import Trouble
from spoakit.apps.mirror.http.proxies import ProxyError, proxy_for
from spoakit.apps.mirror.http.source_address import SourceAddress
from spoakit.exceptions import ConfigurationError, SpoakitError

HTTP_1: Final = "http/1.1"
HTTP_2: Final = "h2"
# What HTTP/1's requests are offered a target with that does not choose HTTP/1.1 alone.
FALLBACK: Final = (HTTP_1, HTTP_2)


def alpn_groups(settings: TargetSettings) -> tuple[tuple[str, ...], ...]:
    """Return which protocols may be spoken: for HTTP/1's requests, and for HTTP/2's if others."""
    if settings.http == "2":
        return ((HTTP_2,),)
    if settings.http == "auto" and settings.url.scheme == "https":
        return ((HTTP_1,), (HTTP_2, HTTP_1))
    return ((HTTP_1,),)


def check_connections(settings: TargetSettings) -> None:
    """Check what connections to a target need: its certificates, and the proxy if there is one.

    Raises:
        ConfigurationError: a file cannot be read, or the proxy cannot be used.
    """
    proxy_for(settings.url)
    if settings.url.scheme == "https":
        for http in (*alpn_groups(settings), FALLBACK):
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
_REASONS: Final[dict[type[Exception], str]] = {
    LookupFailedError: "name",
    ProxyError: "proxy",
    ssl.SSLError: "tls",
    ConnectionRefusedError: "refused",
    TimeoutError: "timeout",
}
# What event loops say of an attempt to connect, and aiohappyeyeballs of several, but no reason.
_UNTOLD: Final = ("Connect call failed", "Multiple exceptions")
# RFC 8305, 5: seconds before the next address is tried beside one that does not respond.
_NEXT_ADDRESS_DELAY: Final = 0.25


def _reason_of(error: OSError | RuntimeError) -> str:
    """Return the reason that a failure is counted by."""
    for kind, reason in _REASONS.items():
        if isinstance(error, kind):
            return reason
    return "unreachable" if getattr(error, "errno", None) in _UNREACHABLE else "other"


def _text_of(error: OSError | RuntimeError) -> str:
    """Return what went wrong, without a class and a number."""
    text = getattr(error, "strerror", None) or str(error)
    if isinstance(error, OSError) and error.errno and text.startswith(_UNTOLD):
        return os.strerror(error.errno)
    return text


class Connector:
    """Opens connections to a target, directly or through a proxy.

    Args:
        settings: the target's.
        http: the protocols to offer by ALPN (RFC 7301), the favourite first. Without TLS the first
            is the one that the target must know (for HTTP/2, RFC 9113, 3.3).
        names: the worker's addresses of hosts.
        must_choose: whether a target has failed that chooses none of them; else it is taken for
            one that does not know ALPN and speaks HTTP/1.1.

    Raises:
        ConfigurationError: a certificate cannot be read, or the proxy that the environment names
            cannot be used.

    Attributes:
        forward: what makes a request's absolute form, for a proxy that gets it in the target's
            place; None where connections lead to the target.
    """

    def __init__(
        self,
        settings: TargetSettings,
        http: Sequence[str],
        names: Names,
        must_choose: bool = False,
    ) -> None:
        url = settings.url
        self._url = url
        self._timeout = settings.timeouts.connect
        self._http = tuple(http)
        self._unchosen = "" if must_choose else HTTP_1
        self._ssl: ssl.SSLContext | None = None
        self._server_name: str | None = None
        if url.scheme == "https":
            self._ssl = client_context(settings.tls, self._http)
            # RFC 6066, 3: what a name is looked up with is not a part of it.
            self._server_name = (settings.tls.server_name or url.host).removesuffix(".")
        self._proxy = proxy_for(url)
        is_plain = self._ssl is None and self._http[0] == HTTP_1
        self.forward: Callable[[OutgoingRequest], bytes] | None = None
        if self._proxy is not None and is_plain:
            self.forward = partial(self._proxy.forward, origin=url.origin.encode())
        host, port = url.host, url.port
        if self._proxy is not None:
            host, port = self._proxy.host, self._proxy.port
        self._host = names.host(host, port, settings.nameservers)
        self._source = SourceAddress(settings, names)

    async def connect(self, make: Callable[[str], asyncio.Protocol]) -> None:
        """Open a connection, with the protocol that `make` returns for the HTTP of its argument.

        Raises:
            ConnectError: it could not be opened within `Timeouts.connect`, or the target does not
                know any of the protocols.
        """
        chooser = _Chooser(make, self._http, self._unchosen)
        addresses: list[AddressInfo] = []
        timeout = asyncio.timeout(self._timeout)
        try:
            async with timeout:
                addresses = await self._addresses()
                await self._connect(addresses, chooser)
        except (OSError, RuntimeError) as error:  # uvloop raises the latter, too
            if not timeout.expired():
                raise ConnectError(_text_of(error), _reason_of(error)) from None
            if addresses:
                raise ConnectError(f"no connection within {self._timeout:g} s", "timeout") from None
            text = f"no address for {self._host} within {self._timeout:g} s: DNS does not respond"
            raise ConnectError(text, "name") from None
        if chooser.refused:
            what = "HTTP/2" if HTTP_2 in self._http else "HTTP/1.1"
            raise ConnectError(f"the target does not speak {what} (ALPN)", "protocol")

    async def _addresses(self) -> list[AddressInfo]:
        await self._source.look_up()
        addresses = await self._host.get()
        usable = [address for address in addresses if self._source.can_reach(address[0])]
        if not usable:
            raise OSError(errno.EAFNOSUPPORT, f"{self._source} is not of the target's IP version")
        return usable

    async def _connect(self, addresses: list[AddressInfo], chooser: "_Chooser") -> None:
        loop = asyncio.get_running_loop()
        sock = await self._connected_socket(addresses)
        try:
            if self._proxy is not None and self.forward is None:
                host, port = self._url.host, self._url.port
                chooser.early = await self._proxy.open_tunnel(loop, sock, host, port)
                if chooser.early and self._ssl is not None:
                    raise ProxyError(f"the proxy {self._proxy} sent data before the target")
            await loop.create_connection(
                lambda: chooser, sock=sock, ssl=self._ssl, server_hostname=self._server_name
            )
        except BaseException:
            sock.close()
            raise

    async def _connected_socket(self, addresses: list[AddressInfo]) -> socket.socket:
        """Connect to the first address that works (RFC 8305), and remember which that was."""
        tried: list[AddressInfo] = []
        sockets: dict[socket.socket, AddressInfo] = {}

        def make_socket(address: AddressInfo) -> socket.socket:
            tried.append(address)
            sock = self._source.make_socket(address)
            sockets[sock] = address
            return sock

        try:
            sock = await start_connection(
                addresses, happy_eyeballs_delay=_NEXT_ADDRESS_DELAY, socket_factory=make_socket
            )
        except (OSError, RuntimeError):
            self._host.record(tried, None)
            raise
        self._host.record(tried, sockets[sock])
        return sock


class _Chooser(asyncio.Protocol):
    """Becomes the protocol that was negotiated, as soon as that is known."""

    def __init__(
        self, make: Callable[[str], asyncio.Protocol], offered: tuple[str, ...], unchosen: str
    ) -> None:
        self._unchosen = unchosen
        self._make = make
        self._offered = offered
        self.refused = False
        self.early = b""  # received behind a proxy's response

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Choose, now that the connection is open, its TLS handshake included."""
        tls = transport.get_extra_info("ssl_object")
        http = self._offered[0] if tls is None else tls.selected_alpn_protocol() or self._unchosen
        if http not in self._offered:
            self.refused = True
            transport.close()
            return
        protocol = self._make(http)
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
        if self.early:
            protocol.data_received(self.early)


@lru_cache(3 * MAX_TARGETS)
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
