"""spoakit.apps.mirror.check: what one connection shows of a target."""

import asyncio
import re
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest
from h2.settings import SettingCodes

from spoakit.apps.mirror.check import CheckResult, check_targets
from spoakit.apps.mirror.config.schema import (
    MirrorSettings,
    TargetSettings,
    Timeouts,
    TlsSettings,
)
from spoakit.apps.mirror.url import TargetURL
from tests.support.certificates import Pem, make_authority, make_certificate
from tests.support.copier import Run
from tests.support.http2_peer import Peer, Target, listening
from tests.support.origin import Origin, origin
from tests.support.waiting import until


@pytest.fixture
def dead_port() -> Iterator[int]:
    with socket.socket() as bound:  # bound, and not listening: it refuses
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


@pytest.fixture
def authority(tmp_path: Path) -> Pem:
    return make_authority(tmp_path)


@pytest.fixture
def server_context(tmp_path: Path, authority: Pem) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(make_certificate(tmp_path, "server", authority).both)
    return context


@asynccontextmanager
async def serving(
    make: Callable[[], asyncio.Protocol], context: ssl.SSLContext | None = None
) -> AsyncIterator[int]:
    """Listen, and give the port."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(make, "127.0.0.1", 0, ssl=context)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await server.wait_closed()


def settings_for(url: str, **more: Any) -> TargetSettings:
    return TargetSettings(TargetURL.parse(url), **more)


async def check(url: str, **more: Any) -> CheckResult:
    (result,) = await check_targets(MirrorSettings((settings_for(url, **more),)))
    return result


class Talker(asyncio.Protocol):
    """Keep what comes, after a greeting."""

    greeting = b""
    received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if self.greeting:
            cast(asyncio.Transport, transport).write(self.greeting)

    def data_received(self, data: bytes) -> None:
        type(self).received += data


def talker(greeting: bytes = b"") -> type[Talker]:
    return type("_Talker", (Talker,), {"greeting": greeting})


# Targets that are well.


def test_a_target_of_http_1_is_shown_and_sent_nothing(run: Run) -> None:
    async def scenario() -> None:
        kind = talker()
        async with serving(kind) as port:
            result = await check(f"http://me:secret@127.0.0.1:{port}/base/", name="api")
            assert re.fullmatch(
                rf"target api: http://127\.0\.0\.1:{port}/base ok: "
                r"127\.0\.0\.1, http/1\.1, \d+ ms",
                str(result),
            )
            assert not result.error
            assert kind.received == b""

    run(scenario())


def test_an_unnamed_target_is_its_url(run: Run) -> None:
    async def scenario() -> None:
        async with origin() as server:
            shown = str(await check(f"http://localhost:{server.port}"))
            assert shown.startswith(f"target http://localhost:{server.port} ok: 127.0.0.1, http")
            await until(lambda: server.open == 0)
            assert (server.connections, server.requests) == (1, [])

    run(scenario())


def test_a_target_of_http_2_is_asked_for_its_settings_alone(run: Run) -> None:
    async def scenario() -> None:
        async with listening() as target:
            result = await check(f"http://127.0.0.1:{target.port}", http="2")
            assert re.search(r"ok: 127\.0\.0\.1, h2, \d+ ms$", str(result))
            await until(lambda: target.peer.is_lost)
            assert target.peer.seen == {}

    run(scenario())


@pytest.mark.parametrize(
    ("http", "alpn", "found"),
    [
        ("auto", ["h2", "http/1.1"], "h2"),
        ("auto", ["http/1.1"], "http/1.1"),
        ("auto", [], "http/1.1"),
        ("1.1", ["h2", "http/1.1"], "http/1.1"),
        ("2", ["h2"], "h2"),
    ],
)
def test_over_tls_the_version_of_http_is_negotiated(
    run: Run,
    server_context: ssl.SSLContext,
    authority: Pem,
    http: Any,
    alpn: list[str],
    found: str,
) -> None:
    tls = TlsSettings(ca_file=str(authority.certificate))

    async def scenario() -> None:
        if alpn:
            server_context.set_alpn_protocols(alpn)
        target = Target()
        make: Any = (lambda: Peer(target)) if found == "h2" else talker()
        async with serving(make, server_context) as port:
            result = await check(f"https://localhost:{port}", http=http, tls=tls)
            assert f" ok: 127.0.0.1, TLSv1.3, {found}, " in str(result)

    run(scenario())


# Targets that are not.


def test_a_port_that_refuses_is_said(run: Run, dead_port: int) -> None:
    async def scenario() -> None:
        shown = str(await check(f"http://127.0.0.1:{dead_port}", name="dead"))
        assert shown.startswith(f"target dead: http://127.0.0.1:{dead_port} failed: ")
        assert shown.endswith(" (is it running, and is this its port?)")

    run(scenario())


def test_a_name_that_does_not_exist_is_said(run: Run) -> None:
    async def scenario() -> None:
        shown = str(await check("http://name.invalid"))
        assert shown.endswith(" (check the name and the name servers)")

    run(scenario())


@pytest.mark.parametrize(
    ("host", "tls", "error", "advice"),
    [
        ("localhost", TlsSettings(), "certificate verify failed", "tls.ca-file"),
        ("127.0.0.2", None, "IP address mismatch", "tls.server-name"),
    ],
)
def test_a_certificate_that_is_not_trusted_is_said(
    run: Run,
    server_context: ssl.SSLContext,
    authority: Pem,
    host: str,
    tls: TlsSettings | None,
    error: str,
    advice: str,
) -> None:
    trusted = TlsSettings(ca_file=str(authority.certificate))

    async def scenario() -> None:
        server = Origin()
        await server.start(ssl=server_context)
        bridge = await asyncio.get_running_loop().create_server(
            asyncio.Protocol, "127.0.0.2", 0, ssl=server_context
        )
        port = bridge.sockets[0].getsockname()[1] if host == "127.0.0.2" else server.port
        try:
            result = await check(f"https://{host}:{port}", tls=tls or trusted)
        finally:
            bridge.close()
            await bridge.wait_closed()
            await server.stop()
        assert error in result.error
        assert advice in result.error

    run(scenario())


def test_another_name_in_a_certificate_is_said(
    run: Run, server_context: ssl.SSLContext, authority: Pem
) -> None:
    tls = TlsSettings(ca_file=str(authority.certificate), server_name="other.example")

    async def scenario() -> None:
        async with serving(talker(), server_context) as port:
            result = await check(f"https://localhost:{port}", tls=tls)
            assert "ostname mismatch" in result.error
            assert result.error.endswith("(tls.server-name is the name to verify)")

    run(scenario())


def test_a_certificate_of_ours_that_is_missing_is_said_although_tls_1_3_says_it_late(
    run: Run, server_context: ssl.SSLContext, authority: Pem
) -> None:
    server_context.verify_mode = ssl.CERT_REQUIRED
    server_context.load_verify_locations(authority.certificate)
    tls = TlsSettings(ca_file=str(authority.certificate))

    def refuse(listener: socket.socket) -> None:
        # Unlike asyncio's, this sends the alert.
        accepted, _ = listener.accept()
        with accepted, pytest.raises(ssl.SSLError):
            server_context.wrap_socket(accepted, server_side=True)

    async def scenario() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
            refused = asyncio.create_task(asyncio.to_thread(refuse, listener))
            result = await check(f"https://localhost:{port}", tls=tls)
            await refused
        assert "a client certificate (tls.certificate)" in result.error

    run(scenario())


def test_a_port_without_tls_is_said(run: Run) -> None:
    async def scenario() -> None:
        async with serving(talker(b"220 mail.example ESMTP\r\n")) as port:
            result = await check(f"https://127.0.0.1:{port}")
            assert result.error.endswith("(does this port speak TLS?)")

    run(scenario())


def test_a_server_of_another_protocol_is_said(run: Run) -> None:
    async def scenario() -> None:
        async with serving(talker(b"SSH-2.0-OpenSSH_9.2\r\n")) as port:
            result = await check(f"http://127.0.0.1:{port}")
            assert result.error == (
                "the target does not speak HTTP: it begins with b'SSH-2.0-OpenSSH_9.2\\r' "
                "(is this the port of an HTTP server?)"
            )

    run(scenario())


def test_a_server_that_closes_at_once_is_said(run: Run) -> None:
    class Closer(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            transport.close()

    async def scenario() -> None:
        async with serving(Closer) as port:
            result = await check(f"http://127.0.0.1:{port}", http="1.1")
            assert result.error.startswith("the target closed the connection")
            result = await check(f"http://127.0.0.1:{port}", http="2")
            assert "before it sent SETTINGS" in result.error

    run(scenario())


@pytest.mark.parametrize("greeting", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b""])
def test_http_1_where_http_2_is_presumed_is_said(run: Run, greeting: bytes) -> None:
    async def scenario() -> None:
        async with serving(talker(greeting)) as port:
            start = time.perf_counter()
            result = await check(
                f"http://127.0.0.1:{port}", http="2", timeouts=Timeouts(connect=0.3)
            )
            assert "the target does not speak HTTP/2" in result.error
            assert result.error.endswith('(http = "auto" or "1.1" (--http) allows HTTP/1.1)')
            assert time.perf_counter() - start < 5

    run(scenario())


def test_a_target_that_agrees_to_no_http_2_is_said(
    run: Run, server_context: ssl.SSLContext, authority: Pem
) -> None:
    tls = TlsSettings(ca_file=str(authority.certificate))

    async def scenario() -> None:
        async with serving(talker(), server_context) as port:
            result = await check(f"https://localhost:{port}", http="2", tls=tls)
            assert "does not speak HTTP/2 (ALPN)" in result.error
            assert 'http = "auto"' in result.error

    run(scenario())


def test_a_target_that_allows_no_request_is_said(run: Run) -> None:
    async def scenario() -> None:
        settings = {SettingCodes.MAX_CONCURRENT_STREAMS: 0}
        async with listening(settings=settings) as target:
            result = await check(
                f"http://127.0.0.1:{target.port}", http="2", timeouts=Timeouts(connect=0.3)
            )
            assert "allowed no request within 0.3 s" in result.error

    run(scenario())


def test_all_are_tried_at_the_same_time_and_shown_in_their_order(
    run: Run, dead_port: int, server_context: ssl.SSLContext
) -> None:
    async def scenario() -> None:
        with socket.socket() as silent:  # it accepts, and shakes no hand
            silent.bind(("127.0.0.1", 0))
            silent.listen()
            late = f"https://127.0.0.1:{silent.getsockname()[1]}"
            async with origin() as server:
                targets = [
                    settings_for(late, name=f"late{number}", timeouts=Timeouts(connect=0.5))
                    for number in range(10)
                ]
                targets.insert(3, settings_for(f"http://127.0.0.1:{server.port}", name="well"))
                targets.append(settings_for(f"http://127.0.0.1:{dead_port}", name="dead"))
                tasks = asyncio.all_tasks()
                start = time.perf_counter()
                results = await check_targets(MirrorSettings(tuple(targets)))
                assert time.perf_counter() - start < 4
        assert [result.target for result in results] == targets
        assert [result.target.name for result in results if not result.error] == ["well"]
        assert results[0].error.startswith("no connection within 0.5 s (is there a firewall")
        assert asyncio.all_tasks() <= tasks

    run(scenario())
