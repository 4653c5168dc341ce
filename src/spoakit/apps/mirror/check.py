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

# Seconds in which a target of HTTP/1.1 must not say anything: that it refuses our certificate comes
# behind the handshake (RFC 8446, 4.4.2.4), and servers of other protocols greet.
_QUIET: Final = 0.25
_CLOSING: Final = 0.5

_HTTP: Final = "http"  # a reason beside those of a `ConnectError`
_CLOSED: Final = "the target closed the connection"
# Advice by the reason of a `ConnectError` and by words in its text; the first that fits counts.
_ADVICE: Final = (
    ("tls", "certificate verify failed: hostname", "tls.server-name is the name to verify"),
    ("tls", "certificate verify failed: ip address", "tls.server-name is the name to verify"),
    (
        "tls",
        "certificate verify failed",
        "trust its authority with tls.ca-file, or any certificate with tls.verify (--insecure)",
    ),
    ("tls", "alert", "it may want a tls.certificate of ours, or another version of TLS"),
    ("tls", "closed", "it may want a tls.certificate of ours"),
    ("tls", "", "does this port speak TLS?"),
    ("protocol", "", 'http = "auto" or "1.1" (--http) takes what it speaks'),
    (_HTTP, "", "is this the port of an HTTP server?"),
    ("name", "", "check the name and the name servers"),
    ("refused", "", "is it running, and is this its port?"),
    ("timeout", "", "is a firewall in between? timeouts.connect is the time that it has"),
    ("unreachable", "", "check the routes, and interface"),
    ("proxy", "", "check what the proxy permits, and no_proxy"),
    ("other", "", "check interface and local-ports"),
)


@dataclass(frozen=True, slots=True)
class CheckResult:
    """Result of the check of one target.

    Attributes:
        target: its settings.
        details: the address, the version of TLS, that of HTTP and the time that it took; "" if
            something is wrong.
        error: what is wrong; "" if nothing is.
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
    """Open a connection to each target, all at the same time, and close it again."""
    names = Names()
    try:
        return await asyncio.gather(*(check_target(target, names) for target in settings.targets))
    finally:
        await names.close()


async def check_target(settings: TargetSettings, names: Names) -> CheckResult:
    """Open a connection to a target as its copies would, and close it again.

    Where HTTP/1 and HTTP/2 have connections of their own, it is that of HTTP/2. Over HTTP/2 the
    preface is sent and SETTINGS are awaited; over HTTP/1.1 nothing is sent.
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
    """One connection, and what the target shows on it. Listener of an HTTP/2 connection."""

    def __init__(self, timeout: float) -> None:
        loop = asyncio.get_running_loop()
        self._timeout = timeout
        self._http = ""
        self._http2: _Http2 | None = None
        self._transport: asyncio.Transport | None = None
        self._address = ""
        self._opened_at = 0.0
        # The reason why it is not what it should be; None for nothing.
        self._error: asyncio.Future[str | None] = loop.create_future()
        self._lost: asyncio.Future[None] = loop.create_future()

    def make(self, http: str) -> asyncio.Protocol:
        """Return the protocol for a connection of that HTTP."""
        self._http = http
        if http != HTTP_2:
            return _Http1(self)
        self._http2 = _Http2(self)
        return self._http2

    async def finish(self, start: float) -> str:
        """Wait until it is known whether the target speaks HTTP; return what was found.

        Raises:
            ConnectError: it does not.
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
        """See the connection open."""
        self._transport = cast(asyncio.Transport, transport)
        self._address = str(transport.get_extra_info("peername")[0])
        self._opened_at = perf_counter()

    def on_lost(self, error: Exception | None) -> None:
        """See the connection end."""
        self._settle(f"{_CLOSED}: {error}" if error else _CLOSED)
        if not self._lost.done():
            self._lost.set_result(None)

    def on_greeting(self, data: bytes) -> None:
        """See bytes come that nothing was asked for."""
        if not data.startswith(b"HTTP/"):
            self._settle(f"the target does not speak HTTP: it begins with {data[:20]!r}")

    def on_open(self) -> None:
        """See the SETTINGS come, which allow a request."""
        self._opened_at = perf_counter()
        self._settle(None)

    def on_closed(self, outcome: Outcome | None) -> None:
        """See the HTTP/2 connection end."""
        self._settle(outcome.text if outcome else _CLOSED)

    def on_response(self, response: Http2Response, now: float) -> None:
        """Do nothing: nothing is asked."""

    def on_odd(self, text: str) -> None:
        """Do nothing: nothing is asked."""

    def on_room(self) -> None:
        """Do nothing: nothing is asked."""

    def on_failure(
        self, response: Http2Response, request: OutgoingRequest, outcome: Outcome
    ) -> None:
        """Do nothing: nothing is asked."""

    def _settle(self, error: str | None) -> None:
        if not self._error.done():
            self._error.set_result(error)


class _Http1(asyncio.Protocol):
    """Connection of HTTP/1.1, on which nothing is sent."""

    def __init__(self, probe: _Probe) -> None:
        self._probe = probe

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._probe.on_made(transport)

    def data_received(self, data: bytes) -> None:
        self._probe.on_greeting(data)

    def connection_lost(self, error: Exception | None) -> None:
        self._probe.on_lost(error)


class _Http2(Http2Connection):
    """Connection of HTTP/2, on which no request is sent."""

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
    """Return what to do about an error, in parentheses."""
    text = str(error).lower()
    for reason, part, advice in _ADVICE:
        if reason == error.reason and part in text:
            return f" ({advice})"
    return ""
