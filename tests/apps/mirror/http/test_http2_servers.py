"""Copies to real servers of HTTP/2: nghttpd, nginx and gRPC."""

import asyncio
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.copier import Run
from tests.support.http2_peer import connected, get
from tests.support.ports import free_port
from tests.support.waiting import until

# The real thing.


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A key and a certificate for localhost: key.pem and cert.pem."""
    path = tmp_path_factory.mktemp("certificate")
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"),
            *("-keyout", path / "key.pem", "-out", path / "cert.pem"),
        ],
        check=True,
        capture_output=True,
    )
    return path


def tls(certificate: Path) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(certificate / "cert.pem"))
    context.set_alpn_protocols(["h2"])
    return context


@asynccontextmanager
async def running(port: int, *command: str | Path) -> AsyncIterator[None]:
    """Run a server until the end, having waited for its port."""
    process = await asyncio.create_subprocess_exec(
        *map(str, command),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        async with asyncio.timeout(10):
            while True:
                assert process.returncode is None, f"{command[0]} ended"
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                except OSError:
                    await asyncio.sleep(0.01)
                else:
                    writer.close()
                    break
        yield
    finally:
        process.terminate()
        await process.wait()


def program(name: str, package: str) -> str:
    path = shutil.which(name, path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin:/opt/bin")
    path = path or shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not installed (Debian: {package})")
    return path


@pytest.mark.parametrize("is_tls", [False, True], ids=["prior-knowledge", "tls"])
def test_nghttpd_is_copied_to(run: Run, tmp_path: Path, certificate: Path, is_tls: bool) -> None:
    nghttpd = program("nghttpd", "nghttp2-server")

    async def scenario() -> None:
        (tmp_path / "page").write_bytes(b"x" * 100_000)
        port = free_port()
        keys = [certificate / "key.pem", certificate / "cert.pem"] if is_tls else ["--no-tls"]
        options: dict[str, Any] = {}
        if is_tls:
            options = {"ssl": tls(certificate), "server_hostname": "localhost"}
        requests = [get(b"/page"), get(b"/none"), get(b"/page", b"POST", b"y" * 300_000)] * 100
        async with (
            running(port, nghttpd, "-a", "127.0.0.1", "-d", tmp_path, str(port), *keys),
            connected(port, *requests, **options) as listener,
        ):
            await listener.ended(300)
            assert listener.failures == []
            assert sorted(listener.statuses()) == [200] * 200 + [404] * 100
            assert {each.received for each, _ in listener.responses if each.status == 200} == {
                100_000
            }
            if is_tls:
                assert listener.connection._scheme == b"https"

    run(scenario())


def test_nginx_is_copied_to_until_it_goes_away(run: Run, tmp_path: Path, certificate: Path) -> None:
    nginx = program("nginx", "nginx-light")

    async def scenario() -> None:
        port = free_port()
        configuration = tmp_path / "nginx.conf"
        configuration.write_text(f"""
            daemon off; master_process off; pid {tmp_path}/pid; error_log /dev/null;
            events {{}}
            http {{
                access_log off; client_body_temp_path {tmp_path}/body;
                proxy_temp_path {tmp_path}/p; fastcgi_temp_path {tmp_path}/f;
                uwsgi_temp_path {tmp_path}/u; scgi_temp_path {tmp_path}/s;
                keepalive_requests 50;
                server {{
                    listen 127.0.0.1:{port} ssl http2;
                    ssl_certificate {certificate}/cert.pem;
                    ssl_certificate_key {certificate}/key.pem;
                    location / {{ return 200 "hello\\n"; }}
                }}
            }}""")
        requests = [get(b"/%d" % number) for number in range(120)]
        command = (nginx, "-p", tmp_path, "-c", configuration, "-e", "/dev/null")
        async with running(port, *command):
            answered: list[int] = []
            connections = 0
            while requests:
                async with connected(
                    port, *requests, ssl=tls(certificate), server_hostname="localhost"
                ) as listener:
                    await listener.ended(len(requests) - len(listener.waiting))
                    await until(lambda: listener.connection.in_flight == 0)
                    answered += [response.received for response, _ in listener.responses]
                    assert all(retry for _, _, retry in listener.failures), listener.failures
                    requests = [request for request, _, _ in listener.failures] + listener.waiting
                    connections += 1
            assert answered == [6] * 120
            assert connections > 1

    run(scenario())


@pytest.fixture
def grpc_server() -> Iterator[tuple[int, list[Any]]]:
    """A gRPC server that turns messages around; its port, and what it was called with."""
    grpc: Any = pytest.importorskip("grpc", reason="grpcio is not installed")
    calls: list[Any] = []

    def reverse(message: bytes, context: Any) -> bytes:
        calls.append((message, dict(context.invocation_metadata())))
        if message == b"wrong":
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "as asked for")
        return message[::-1]

    handlers = {"Reverse": grpc.unary_unary_rpc_method_handler(reverse)}
    server = grpc.server(ThreadPoolExecutor(1))
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("test.Test", handlers)])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield port, calls
    server.stop(None).wait()


def test_a_unary_grpc_call_arrives_and_its_trailers_are_read(
    run: Run, grpc_server: tuple[int, list[Any]]
) -> None:
    port, calls = grpc_server

    def call(message: bytes, method: bytes = b"Reverse") -> Any:
        body = b"\0" + len(message).to_bytes(4) + message
        fields = b"content-type: application/grpc\r\nx-key: value\r\n"
        return get(b"/test.Test/" + method, b"POST", body, fields)

    async def scenario() -> None:
        messages = [b"message", b"wrong", b"z" * 100_000]
        requests = [*map(call, messages), call(b"", b"Unknown")]
        async with connected(port, *requests) as listener:
            await listener.ended(4)
            assert listener.statuses() == [200] * 2
            assert sorted(each.received for each, _ in listener.responses) == [12, 100_005]
            assert {each.grpc_status for each, _ in listener.responses} == {b"0"}
            assert {id(request): (text, retry) for request, text, retry in listener.failures} == {
                id(requests[1]): ("grpc-status 3: as asked for", False),
                id(requests[3]): ("grpc-status 12: Method not found!", False),
            }

    run(scenario())
    assert sorted(message for message, _ in calls) == sorted([b"message", b"wrong", b"z" * 100_000])
    assert all(metadata["x-key"] == "value" for _, metadata in calls)
