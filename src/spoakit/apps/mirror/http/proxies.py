"""Proxies of targets, from the environment variables that libcurl uses.

``http_proxy`` (in small letters only), ``https_proxy``, ``all_proxy`` and ``no_proxy`` (or
``HTTPS_PROXY`` and so on). A request of HTTP/1.1 to an http:// target is sent to the proxy in
absolute form (RFC 9112, 3.2.2); to all others the proxy opens a tunnel (CONNECT, RFC 9110, 9.3.6).
"""

import asyncio
import ipaddress
import os
import re
import socket
from base64 import b64encode
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import unquote_to_bytes, urlsplit

from spoakit.apps.mirror._request_cy import OutgoingRequest
from spoakit.apps.mirror.http.odd_heads import OddHeadError, parse_status
from spoakit.apps.mirror.url import TargetURL
from spoakit.exceptions import ConfigurationError

VARIABLES: Final = (
    *("http_proxy", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"),
    *("no_proxy", "NO_PROXY"),
)
"""Environment variables in the order of their precedence."""

_DEFAULT_PORT: Final = 1080  # libcurl's
_MAX_HEAD_SIZE: Final = 16 * 1024


class ProxyError(OSError):
    """Failure of a proxy to open a tunnel; the text names the proxy and the reason."""


@dataclass(frozen=True, slots=True)
class Proxy:
    """Proxy for one target.

    Attributes:
        host: its name or address, IPv6 without brackets.
        port: its port.
        variable: the environment variable that names it.
        authorization: the value of Proxy-Authorization; b"" for none.
    """

    host: str
    port: int
    variable: str
    authorization: bytes = field(default=b"", repr=False)

    def __str__(self) -> str:
        return f"{self.host}:{self.port} ({self.variable})"

    @property
    def _field(self) -> bytes:
        if not self.authorization:
            return b""
        return b"Proxy-Authorization: %b\r\n" % self.authorization

    def forward(self, request: OutgoingRequest, origin: bytes) -> bytes:
        """Return a request as it is sent to the proxy: in absolute form (RFC 9112, 3.2.2).

        Args:
            request: the request, in origin form.
            origin: the target's scheme and authority.
        """
        wire = request.wire
        start = request.method_size + 1
        end = wire.index(b"\r\n") + 2
        target = origin if wire.startswith(b"*", start) else origin + wire[start:end].split(b" ")[0]
        version = wire[start + request.target_size : end]
        return b"".join((wire[:start], target, version, self._field, wire[end:]))

    async def open_tunnel(
        self, loop: asyncio.AbstractEventLoop, sock: socket.socket, host: str, port: int
    ) -> bytes:
        """Open a tunnel on a connection to the proxy; return the bytes received after its response.

        Args:
            loop: the running event loop.
            sock: the connection.
            host: the target's host, IPv6 without brackets.
            port: the target's port.

        Raises:
            ProxyError: the proxy refused.
        """
        authority = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        name = authority.encode("idna" if not authority.isascii() else "ascii")
        await loop.sock_sendall(
            sock,
            b"CONNECT %b HTTP/1.1\r\nHost: %b\r\n%b\r\n" % (name, name, self._field),
        )
        received = b""
        while b"\r\n\r\n" not in received:
            data = await loop.sock_recv(sock, 4096)
            received += data
            if not data or len(received) > _MAX_HEAD_SIZE:
                raise ProxyError(f"the proxy {self} sent no response to CONNECT {authority}")
        head, _, rest = received.partition(b"\r\n\r\n")
        first = head.split(b"\r\n")[0]
        if not _is_success(first):
            text = first[:80].decode("latin-1")
            raise ProxyError(f"the proxy {self} refused CONNECT {authority}: {text!r}")
        return rest


def _is_success(line: bytes) -> bool:
    """Return whether the first line of a response has a status of 200 to 299."""
    try:
        _, status, _ = parse_status(line)
    except OddHeadError:
        return False
    return status.startswith(b"2")


def proxy_for(url: TargetURL, environment: Mapping[str, str] = os.environ) -> Proxy | None:
    """Return the proxy for a target; None for a direct connection.

    Raises:
        ConfigurationError: a variable names a proxy that cannot be used.
    """
    wanted = {f"{url.scheme}_proxy", f"{url.scheme}_proxy".upper(), "all_proxy", "ALL_PROXY"}
    for variable in VARIABLES:
        if variable in wanted and (text := environment.get(variable)) is not None:
            if not text or _is_exempt(url.host, environment):
                return None
            return _parse(variable, text)
    return None


def _parse(variable: str, text: str) -> Proxy:
    try:
        parts = urlsplit(text if "://" in text else f"http://{text}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if not host:
        # The text is not shown, since it may contain a password.
        raise ConfigurationError(f"{variable}: its value is not a proxy such as http://HOST:PORT")
    if parts.scheme != "http":
        raise ConfigurationError(
            f"{variable}: proxies of {parts.scheme}:// are not supported, only those of http://; "
            "unset it, or name the targets in no_proxy"
        )
    authorization = b""
    if "@" in parts.netloc:
        user, password = unquote_to_bytes(parts.username or ""), parts.password or ""
        pair = b"%b:%b" % (user, unquote_to_bytes(password))
        authorization = b"Basic " + b64encode(pair)
    return Proxy(host, port or _DEFAULT_PORT, variable, authorization)


def _is_exempt(host: str, environment: Mapping[str, str]) -> bool:
    """Return whether ``no_proxy`` lists a host: by its name, a parent domain, or a network."""
    text = environment.get("no_proxy", environment.get("NO_PROXY", ""))
    if text.strip() == "*":
        return True
    name = host.lower().removesuffix(".")
    return any(_matches(name, pattern) for pattern in _patterns(text))


def _patterns(text: str) -> Iterator[str]:
    for pattern in re.split(r"[\s,]+", text.lower()):
        if stripped := pattern.strip("[]").removeprefix(".").removesuffix("."):
            yield stripped


def _matches(name: str, pattern: str) -> bool:
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return name == pattern or name.endswith(f".{pattern}")
    try:
        return address in ipaddress.ip_network(pattern, strict=False)
    except ValueError:
        return False
