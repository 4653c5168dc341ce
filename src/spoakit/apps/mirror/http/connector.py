"""Opening of connections to a target: source address, proxy, TLS and ALPN."""

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
# The protocols offered for HTTP/1 requests to a target that refuses HTTP/1.1 alone.
FALLBACK: Final = (HTTP_1, HTTP_2)


def alpn_groups(settings: TargetSettings) -> tuple[tuple[str, ...], ...]:
    """Return the protocols for HTTP/1 requests, and those for HTTP/2 requests if they differ."""
    if settings.http == "2":
        return ((HTTP_2,),)
    if settings.http == "auto" and settings.url.scheme == "https":
        return ((HTTP_1,), (HTTP_2, HTTP_1))
    return ((HTTP_1,),)


def check_connections(settings: TargetSettings) -> None:
    """Check the certificates and the proxy that connections to a target need.

    Raises:
        ConfigurationError: a file cannot be read, or the proxy cannot be used.
    """
    proxy_for(settings.url)
    if settings.url.scheme == "https":
        for http in (*alpn_groups(settings), FALLBACK):
            client_context(settings.tls, http)


class ConnectError(SpoakitError):
    """Connection that could not be opened; the text says why.

    Attributes:
        reason: the reason in the metric, see `metrics.CONNECT_FAILURES`.
    """

    def __init__(self, text: str, reason: str) -> None:
        super().__init__(text)
        self.reason = reason

    @property
    def trouble(self) -> Trouble:
        """The state of the target that the failure shows."""
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
# Error texts of event loops and of aiohappyeyeballs that do not have the reason.
_NO_REASON: Final = ("Connect call failed", "Multiple exceptions")
# RFC 8305, 5: seconds before the next address is tried beside one that does not respond.
_NEXT_ADDRESS_DELAY: Final = 0.25


def _connect_reason(error: OSError | RuntimeError) -> str:
    """Return the reason of a failure in the metric."""
    for kind, reason in _REASONS.items():
        if isinstance(error, kind):
            return reason
    return "unreachable" if getattr(error, "errno", None) in _UNREACHABLE else "other"


def _error_text(error: OSError | RuntimeError) -> str:
    """Return an error's text, without class and number."""
    text = getattr(error, "strerror", None) or str(error)
    if isinstance(error, OSError) and error.errno and text.startswith(_NO_REASON):
        return os.strerror(error.errno)
    return text


class Connector:
    """Open connections to a target, directly or through a proxy.

    Args:
        settings: the target's settings.
        http: the protocols to offer by ALPN (RFC 7301), the preferred one first. Without TLS the
            target must know the first one (for HTTP/2, RFC 9113, 3.3).
        names: the worker's cache of addresses.
        must_choose: whether it is an error if the target chooses none of them. Otherwise the target
            does not know ALPN and speaks HTTP/1.1.

    Raises:
        ConfigurationError: a certificate cannot be read, or the proxy that the environment names
            cannot be used.

    Attributes:
        forward: function that returns a request in absolute form, for a proxy that forwards it;
            None if connections lead to the target.
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
            # RFC 6066, 3: the server name has no final dot.
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
        """Open a connection; `make` returns the protocol for "http/1.1" or "h2".

        Raises:
            ConnectError: the connection could not be opened within `Timeouts.connect`, or the
                target does not know any of the protocols.
        """
        chooser = _Chooser(make, self._http, self._unchosen)
        addresses: list[AddressInfo] = []
        timeout = asyncio.timeout(self._timeout)
        try:
            async with timeout:
                addresses = await self._addresses()
                await self._connect(addresses, chooser)
        except (OSError, RuntimeError) as error:  # uvloop raises RuntimeError, too
            if not timeout.expired():
                raise ConnectError(_error_text(error), _connect_reason(error)) from None
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
        """Connect to the first address that works (RFC 8305), and record it."""
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
    """Protocol of a new connection, which hands over to the negotiated one."""

    def __init__(
        self, make: Callable[[str], asyncio.Protocol], offered: tuple[str, ...], unchosen: str
    ) -> None:
        self._unchosen = unchosen
        self._make = make
        self._offered = offered
        self.refused = False
        self.early = b""  # bytes received after a proxy's response

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Choose the protocol; the TLS handshake is complete."""
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
    """Return the TLS context for connections to a target.

    Targets with equal settings share one, in a process and its forks, since reading the system's
    certificates takes tens of milliseconds.

    Args:
        tls: the target's TLS settings.
        http: the protocols to offer by ALPN.

    Raises:
        ConfigurationError: a file cannot be read, or has the wrong content.
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
            # Without a password OpenSSL would prompt for one on the terminal.
            context.load_cert_chain(tls.certificate, tls.key, password="")
        except OSError as error:
            files = repr(tls.certificate) + (f" with key {tls.key!r}" if tls.key else "")
            raise ConfigurationError(f"tls certificate: {files}: {error}") from None
    context.set_alpn_protocols(http)
    return context
