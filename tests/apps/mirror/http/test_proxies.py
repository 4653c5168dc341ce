"""Proxies of the environment, by what libcurl's variables mean."""

import shutil
import socket
import ssl
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from spoakit.agent.headers import Headers
from spoakit.apps.mirror._request_builder_cy import RequestBuilder
from spoakit.apps.mirror._request_cy import IncomingRequest
from spoakit.apps.mirror.config.schema import TargetSettings, TlsSettings
from spoakit.apps.mirror.http import proxies
from spoakit.apps.mirror.http.proxies import Proxy, proxy_for
from spoakit.apps.mirror.url import TargetURL
from spoakit.exceptions import ConfigurationError
from tests.support.copier import Run
from tests.support.http2_peer import listening
from tests.support.origin import OK, origin
from tests.support.ports import free_port
from tests.support.waiting import until, wait_until

Copying = Callable[..., Any]

# An attempt to connect that is cancelled at the end would close its socket behind the event loop.
ALONE: dict[str, Any] = {"connections": 1}

needs_tinyproxy = pytest.mark.skipif(
    shutil.which("tinyproxy") is None, reason="tinyproxy is not installed (Debian: tinyproxy-bin)"
)


def listens(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def tinyproxy(folder: Path, *lines: str) -> Iterator[tuple[int, Path]]:
    """Run a real proxy; give its port and its log."""
    port = free_port()
    log = folder / "proxy.log"
    configuration = folder / "tinyproxy.conf"
    options = (f"Port {port}", "Listen 127.0.0.1", f'LogFile "{log}"', "LogLevel Connect", *lines)
    configuration.write_text("\n".join(options) + "\n")
    with subprocess.Popen(["tinyproxy", "-d", "-c", configuration]) as process:
        try:
            wait_until(lambda: listens(port))
            yield port, log
        finally:
            process.terminate()


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*proxies.VARIABLES, "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)


@needs_tinyproxy
@pytest.mark.parametrize("user", ["", "me:p%2Dss@"])
def test_requests_to_http_targets_are_forwarded(
    run: Run, copying: Copying, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, user: str
) -> None:
    async def scenario(port: int) -> None:
        monkeypatch.setenv("http_proxy", f"http://{user}127.0.0.1:{port}")
        # tinyproxy serves one request a connection, and says so to the target alone.
        async with origin(lambda _: [OK, None]) as server:
            async with copying(server.port, base="/b", **ALONE) as mirror:
                mirror.copy(b"POST", b"/post", b"host: a.example\r\nA: 1\r\n\r\n", b"hello")
                await mirror.answered(1)
                mirror.get(b"/path?query")
                await mirror.answered(2)
            requests = sorted(server.requests)
            assert requests[0].startswith(b"GET /b/path?query HTTP/1.")
            assert b"\r\nA: 1\r\n" in requests[1]
            assert requests[1].endswith(b"hello")
            assert b"Proxy-Authorization" not in b"".join(requests)
            assert all(line.endswith(" ok") for line in mirror.lines())

    lines = ["BasicAuth me p-ss"] if user else []
    with tinyproxy(tmp_path, *lines) as (port, log):
        run(scenario(port))
        assert "Established connection to host" in log.read_text()


@needs_tinyproxy
def test_connections_to_https_targets_are_tunnels(
    run: Run,
    copying: Copying,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    certificate: Path,
) -> None:
    async def scenario(port: int) -> None:
        monkeypatch.setenv("https_proxy", f"127.0.0.1:{port}")
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(certificate)
        async with origin() as server:
            await server.stop()
            await server.start(ssl=context)
            tls = TlsSettings(ca_file=str(certificate))
            async with copying(
                server.port, scheme="https", server="localhost", tls=tls, **ALONE
            ) as mirror:
                for _ in range(3):
                    mirror.get(b"/path")
                await mirror.answered(3)
            await until(lambda: server.open == 0)  # through the proxy, TLS ends later
            assert server.requests[0].startswith(b"GET /path HTTP/1.1\r\n")

    with tinyproxy(tmp_path) as (port, log):
        run(scenario(port))
        assert "CONNECT localhost:" in log.read_text()


@needs_tinyproxy
def test_http2_without_tls_goes_through_a_tunnel(
    run: Run, copying: Copying, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(port: int) -> None:
        monkeypatch.setenv("ALL_PROXY", f"http://127.0.0.1:{port}")
        async with listening() as server, copying(server.port, http="2", **ALONE) as mirror:
            for _ in range(20):
                mirror.get()
            await mirror.answered(20)
            assert len(server.requests()) == 20

    with tinyproxy(tmp_path) as (port, log):
        run(scenario(port))
        assert "CONNECT 127.0.0.1:" in log.read_text()


@needs_tinyproxy
def test_a_proxy_that_refuses_is_named(
    run: Run,
    copying: Copying,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def scenario(port: int) -> None:
        monkeypatch.setenv("https_proxy", f"http://u:secret@127.0.0.1:{port}")
        async with copying(1, scheme="https", drain=0, **ALONE) as mirror:
            mirror.get()
            await until(lambda: "cannot be reached" in caplog.text)
            assert f"the proxy 127.0.0.1:{port} (https_proxy) refused CONNECT" in caplog.text
            assert "401" in caplog.text or "403" in caplog.text or "407" in caplog.text
            assert mirror.target.counters.failed_attempts == {"proxy": 1}

    with tinyproxy(tmp_path, "BasicAuth me other") as (port, _):
        run(scenario(port))
    assert "secret" not in caplog.text


@pytest.mark.parametrize(
    "said",
    [
        [b"HTTP/1.1 200 OK\r\n", None],
        [None],
        [b"SSH-2.0-x\r\n\r\n"],
        [bytes(20_000)],
        [b"HTTP/1.1 200 OK\r\n\r\nearly"],
    ],
)
def test_a_proxy_that_misbehaves_is_named(
    run: Run,
    copying: Copying,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    said: list[bytes | None],
) -> None:
    async def scenario() -> None:
        async with origin(lambda _: said) as proxy:
            monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{proxy.port}")
            async with copying(1, scheme="https", drain=0, **ALONE) as mirror:
                mirror.get()
                await until(lambda: "cannot be reached: the proxy 127.0.0.1" in caplog.text)
                assert mirror.target.counters.failed_attempts["proxy"] >= 1

    run(scenario())


HTTP = TargetURL.parse("http://api.example.com")
HTTPS = TargetURL.parse("https://api.example.com:8443")


@pytest.mark.parametrize(
    ("url", "environment", "proxy"),
    [
        (HTTP, {}, None),
        (HTTP, {"http_proxy": "http://p:3128"}, Proxy("p", 3128, "http_proxy")),
        (HTTP, {"http_proxy": "p"}, Proxy("p", 1080, "http_proxy")),
        (HTTP, {"http_proxy": "http://[::1]:3128/"}, Proxy("::1", 3128, "http_proxy")),
        (HTTP, {"HTTP_PROXY": "http://p:3128"}, None),  # a CGI's header field, not a setting
        (HTTP, {"https_proxy": "http://p:3128"}, None),
        (HTTP, {"all_proxy": "http://p:1"}, Proxy("p", 1, "all_proxy")),
        (HTTP, {"all_proxy": "http://p:1", "http_proxy": ""}, None),
        (HTTPS, {"HTTPS_PROXY": "http://p:1"}, Proxy("p", 1, "HTTPS_PROXY")),
        (
            HTTPS,
            {"HTTPS_PROXY": "http://p:1", "https_proxy": "http://q:1"},
            Proxy("q", 1, "https_proxy"),
        ),
        (HTTPS, {"ALL_PROXY": "http://u:p%40@p:1"}, Proxy("p", 1, "ALL_PROXY", b"Basic dTpwQA==")),
    ],
)
def test_variables_name_proxies_as_for_libcurl(
    url: TargetURL, environment: dict[str, str], proxy: Proxy | None
) -> None:
    assert proxy_for(url, environment) == proxy


@pytest.mark.parametrize(
    ("host", "exempt", "is_exempt"),
    [
        ("api.example.com", "*", True),
        ("api.example.com", "example.com", True),
        ("api.example.com", ".example.com", True),
        ("api.example.com", "other, API.Example.com", True),
        ("api.example.com", "other api.example.com.", True),
        ("api.example.com", "ample.com", False),
        ("api.example.com", "", False),
        ("api.example.com", ",,", False),
        ("127.0.0.1", "127.0.0.1", True),
        ("127.0.0.1", "127.0.0.0/8", True),
        ("127.0.0.1", "0.0.1", False),
        ("[::1]", "::1", True),
        ("[::1]", "[::1]", True),
        ("[::1]", "::/64", True),
        ("10.0.0.1", "127.0.0.0/8", False),
    ],
)
@pytest.mark.parametrize("variable", ["no_proxy", "NO_PROXY"])
def test_hosts_are_exempt_as_for_libcurl(
    host: str, exempt: str, is_exempt: bool, variable: str
) -> None:
    url = TargetURL.parse(f"http://{host}:80")
    environment = {"http_proxy": "http://p:1", variable: exempt}
    assert (proxy_for(url, environment) is None) is is_exempt


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("socks5://u:secret@p:1", "https_proxy: proxies of socks5:// are not supported"),
        ("https://p", "https_proxy: proxies of https:// are not supported"),
        ("http://", "https_proxy: its value is not a proxy"),
        ("http://p:99999", "https_proxy: its value is not a proxy"),
    ],
)
def test_a_proxy_that_cannot_be_used_is_refused(text: str, error: str) -> None:
    with pytest.raises(ConfigurationError, match=error) as raised:
        proxy_for(HTTPS, {"https_proxy": text})
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    ("target", "line"),
    [
        (b"/a?b", b"GET http://h:81/a?b HTTP/1.1"),
        (b"*", b"GET http://h:81 HTTP/1.1"),
        (b"http://other/x", b"GET http://h:81/x HTTP/1.1"),
    ],
)
def test_the_absolute_form_of_a_request(target: bytes, line: bytes) -> None:
    builder = RequestBuilder(TargetSettings(TargetURL.parse("http://h:81")))
    headers = Headers(b"host: x\r\nb: 2\r\n\r\n", False)
    request = builder.build(IncomingRequest(b"GET", target, b"1.1", headers, b"body"))
    proxy = Proxy("p", 1, "http_proxy", b"Basic eA==")
    head, _, body = proxy.forward(request, b"http://h:81").partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    assert lines[0] == line
    assert lines[1] == b"Proxy-Authorization: Basic eA=="
    assert lines[2:] == request.wire.partition(b"\r\n\r\n")[0].split(b"\r\n")[1:]
    assert body == b"body"


def test_a_password_is_not_shown() -> None:
    proxy = proxy_for(HTTPS, {"https_proxy": "http://user:secret@p:1"})
    assert proxy is not None
    assert "Basic" not in repr(proxy)
    assert "secret" not in f"{proxy!r}{proxy}"
