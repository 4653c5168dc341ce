"""Check of targets, for `spoa-mirror --check`: one connection to each, and no request."""

import asyncio
from dataclasses import dataclass
from time import perf_counter
from typing import Final, cast

from spoakit.apps.mirror._request_cy import OutgoingRequest
from spoakit.apps.mirror.config.schema import MirrorSettings, TargetSettings
from spoakit.apps.mirror.http.connector import HTTP_2, ConnectError, Connector, alpn_groups
from spoakit.apps.mirror.http.http2 import Http2Connection
from spoakit.apps.mirror.http.http2_response import Http2Response
from spoakit.apps.mirror.http.names import Names
from spoakit.apps.mirror.http.outcome import Outcome
from spoakit.apps.mirror.http.proxies import proxy_for

# Seconds in which an HTTP/1.1 target must stay silent: the alert for a refused client certificate
# comes after the handshake (RFC 8446, 4.4.2.4), and servers of other protocols send a greeting.
_QUIET: Final = 0.25
_CLOSING: Final = 0.5

_HTTP: Final = "http"  # a reason that `ConnectError` does not have
_CLOSED: Final = "the target closed the connection"
# Advice by the reason of a `ConnectError` and by words in its text; the first match counts.
_ADVICE: Final = (
    ("tls", "certificate verify failed: hostname", "tls.server-name is the name to verify"),
    ("tls", "certificate verify failed: ip address", "tls.server-name is the name to verify"),
    (
        "tls",
        "certificate verify failed",
        "trust its authority with tls.ca-file, or any certificate with tls.verify (--insecure)",
    ),
    (
        "tls",
        "alert",
        "it may want a client certificate (tls.certificate), or other TLS versions",
    ),
    ("tls", "closed", "it may require a client certificate (tls.certificate)"),
    ("tls", "", "does this port speak TLS?"),
    ("protocol", "", 'http = "auto" or "1.1" (--http) allows HTTP/1.1'),
    (_HTTP, "", "is this the port of an HTTP server?"),
    ("name", "", "check the name and the name servers"),
    ("refused", "", "is it running, and is this its port?"),
    ("timeout", "", "is there a firewall in between? timeouts.connect is the limit"),
    ("unreachable", "", "check the routes, and interface"),
    ("proxy", "", "check the permissions of the proxy, and no_proxy"),
    ("other", "", "check interface and local-ports"),
)


@dataclass(frozen=True, slots=True)
class CheckResult:
    """Result of the check of one target.

    Attributes:
        target: the target's settings.
        details: the address, the versions of TLS and HTTP, and the time that it took; "" after an
            error.
        error: the text of the error; "" for none.
    """

    target: TargetSettings
    details: str = ""
    error: str = ""

    def __str__(self) -> str:
        name, url = self.target.name, self.target.url
        where = f"{url.origin}{url.base_path}"
        shown = where if name == str(url) else f"{name}: {where}"
        result = f"failed: {self.error}" if self.error else f"ok: {self.details}"
        return f"target {shown} {result}"


async def check_targets(settings: MirrorSettings) -> list[CheckResult]:
    """Open a connection to each target, all at the same time, and close them."""
    names = Names()
    try:
        return await asyncio.gather(*(check_target(target, names) for target in settings.targets))
    finally:
        await names.close()


async def check_target(settings: TargetSettings, names: Names) -> CheckResult:
    """Open a connection to a target as its copies would, and close it.

    If HTTP/1 and HTTP/2 requests have separate connections, the one for HTTP/2 is checked. Over
    HTTP/2 the preface is sent and SETTINGS are awaited; over HTTP/1.1 nothing is sent.
    """
    start = perf_counter()
    probe = _Probe(settings.timeouts.connect)
    try:
        await Connector(settings, alpn_groups(settings)[-1], names).connect(probe.make)
        details = await probe.finish(start)
    except ConnectError as error:
        return CheckResult(settings, error=f"{error}{_advice(error)}")
    finally:
        await probe.close()
    proxy = proxy_for(settings.url)
    return CheckResult(settings, f"{details}, through the proxy {proxy}" if proxy else details)


class _Probe:
    """Probe of one connection, and listener of it if it is HTTP/2."""

    def __init__(self, timeout: float) -> None:
        loop = asyncio.get_running_loop()
        self._timeout = timeout
        self._http = ""
        self._http2: _Http2 | None = None
        self._transport: asyncio.Transport | None = None
        self._address = ""
        self._opened_at = 0.0
        # Set to the error found, or to None once the target is known to speak HTTP.
        self._error: asyncio.Future[str | None] = loop.create_future()
        self._lost: asyncio.Future[None] = loop.create_future()

    def make(self, http: str) -> asyncio.Protocol:
        """Return the protocol for a connection over `http`."""
        self._http = http
        if http != HTTP_2:
            return _Http1(self)
        self._http2 = _Http2(self)
        return self._http2

    async def finish(self, start: float) -> str:
        """Wait until it is known whether the target speaks HTTP; return the details.

        Raises:
            ConnectError: the target does not speak HTTP.
        """
        if self._http2 is None:
            await asyncio.wait((self._error,), timeout=_QUIET)
        else:
            await asyncio.wait((self._error,), timeout=self._timeout)
            self._http2.give_up_opening(self._timeout)
        assert self._transport is not None
        tls = self._transport.get_extra_info("ssl_object")
        if self._error.done() and (error := self._error.result()) is not None:
            has_refused = tls is not None and ("closed" in error or "ALERT" in error)
            reason = "protocol" if self._http2 is not None else _HTTP
            raise ConnectError(error, "tls" if has_refused else reason)
        shown = (self._address, tls.version() if tls else "", self._http)
        return f"{', '.join(filter(None, shown))}, {(self._opened_at - start) * 1000:.0f} ms"

    async def close(self) -> None:
        """Close the connection."""
        if self._transport is None:
            return
        if self._http2 is not None:
            self._http2.close()
        self._transport.close()
        await asyncio.wait((self._lost,), timeout=_CLOSING)
        self._transport.abort()

    # Called by the connection.

    def on_made(self, transport: asyncio.BaseTransport) -> None:
        """Note the open connection."""
        self._transport = cast(asyncio.Transport, transport)
        self._address = str(transport.get_extra_info("peername")[0])
        self._opened_at = perf_counter()

    def on_lost(self, error: Exception | None) -> None:
        """Settle with an error: the connection has ended."""
        self._settle(f"{_CLOSED}: {error}" if error else _CLOSED)
        if not self._lost.done():
            self._lost.set_result(None)

    def on_greeting(self, data: bytes) -> None:
        """Settle with an error: bytes came before a request."""
        if not data.startswith(b"HTTP/"):
            self._settle(f"the target does not speak HTTP: it begins with {data[:20]!r}")

    def on_open(self) -> None:
        """Settle: the target's SETTINGS allow a request."""
        self._opened_at = perf_counter()
        self._settle(None)

    def on_closed(self, outcome: Outcome | None) -> None:
        """Settle with the error that ended the HTTP/2 connection."""
        self._settle(outcome.text if outcome else _CLOSED)

    def on_response(self, response: Http2Response, now: float) -> None:
        """Do nothing: no request is sent."""

    def on_odd(self, text: str) -> None:
        """Do nothing: no request is sent."""

    def on_room(self) -> None:
        """Do nothing: no request is sent."""

    def on_failure(
        self, response: Http2Response, request: OutgoingRequest, outcome: Outcome
    ) -> None:
        """Do nothing: no request is sent."""

    def _settle(self, error: str | None) -> None:
        if not self._error.done():
            self._error.set_result(error)


class _Http1(asyncio.Protocol):
    """HTTP/1.1 connection on which nothing is sent."""

    def __init__(self, probe: _Probe) -> None:
        self._probe = probe

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._probe.on_made(transport)

    def data_received(self, data: bytes) -> None:
        self._probe.on_greeting(data)

    def connection_lost(self, error: Exception | None) -> None:
        self._probe.on_lost(error)


class _Http2(Http2Connection):
    """HTTP/2 connection on which no request is sent."""

    def __init__(self, probe: _Probe) -> None:
        super().__init__(probe)
        self._probe = probe

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._probe.on_made(transport)
        super().connection_made(transport)

    def connection_lost(self, error: Exception | None) -> None:
        super().connection_lost(error)
        self._probe.on_lost(error)


def _advice(error: ConnectError) -> str:
    """Return advice on an error, in parentheses."""
    text = str(error).lower()
    for reason, part, advice in _ADVICE:
        if reason == error.reason and part in text:
            return f" ({advice})"
    return ""
