"""Mirror live requests through a real HAProxy, and show each original beside its copy.

Starts an origin, a target for the copies, spoa-mirror and HAProxy with the configuration of
this folder, sends some varied requests, prints what the origin and the target received, the
agent's log lines and a summary, and ends with status 1 if any copy differs.

KEEP=1 in the environment leaves everything running afterwards, until Ctrl-C.
"""

import os
import re
import signal
import socket
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from spoakit.testing import HAProxy, find_haproxy

HERE = Path(__file__).parent
TIMEOUT = 10.0
ARRIVAL = 10.0  # how long copies are waited for
WIDTH = 60

# What concerns one connection only, and so is made anew for each (RFC 9110, 7.6.1); the
# framing of a body is compared by comparing the bodies.
PER_CONNECTION = {"connection", "content-length", "keep-alive", "transfer-encoding"}


@dataclass(frozen=True)
class Request:
    """A request as a server received it."""

    line: str
    headers: tuple[tuple[str, str], ...]
    body: bytes

    @property
    def id(self) -> str:
        return dict(self.headers).get("x-demo", "")

    def essence(self) -> tuple[object, ...]:
        """Return what a faithful copy has too."""
        kept = tuple(each for each in self.headers if each[0] not in PER_CONNECTION)
        # A complete URL is for proxies; a server is sent its path (RFC 9112, 3.2.1).
        return re.sub(r" http://[^/ ]+", " ", self.line, count=1), kept, self.body

    def show(self) -> list[str]:
        lines = [self.line, *(f"{name}: {value}" for name, value in self.headers)]
        if self.body:
            shown = self.body[:40].decode("latin-1")
            lines.append(f"[{len(self.body)} bytes: {shown}{'...' if self.body[40:] else ''}]")
        return lines


class Handler(socketserver.StreamRequestHandler):
    """Reads requests off a connection as they stand on the wire, and answers each with 200."""

    server: "Server"

    def handle(self) -> None:
        with suppress(ConnectionError):
            self._answer_all()

    def _answer_all(self) -> None:
        while line := self.rfile.readline().decode("latin-1").strip():
            headers = []
            while header := self.rfile.readline().decode("latin-1").rstrip("\r\n"):
                name, _, value = header.partition(":")
                headers.append((name.lower(), value.strip()))
            request = Request(line, tuple(headers), self._read_body(dict(headers)))
            self.server.receive(request)
            text = b"" if line.startswith("HEAD ") else self.server.name.encode() + b"\n"
            head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(self.server.name) + 1}\r\n\r\n"
            self.wfile.write(head.encode() + text)

    def _read_body(self, headers: dict[str, str]) -> bytes:
        if headers.get("transfer-encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body
        return self.rfile.read(int(headers.get("content-length", "0")))


class Server(socketserver.ThreadingTCPServer):
    """An HTTP server that keeps the requests it received, by their x-demo header."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, name: str) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.name = name
        self.port: int = self.server_address[1]
        self.requests: dict[str, Request] = {}
        self.echo = False
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def receive(self, request: Request) -> None:
        self.requests[request.id] = request
        if self.echo:
            print(f"--- {self.name} received", *request.show(), sep="\n    ", flush=True)

    def stop(self) -> None:
        self.shutdown()
        self.server_close()


@dataclass
class Mirror:
    """A running spoa-mirror and the lines it logs."""

    process: subprocess.Popen[str]
    port: int
    lines: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.reader = threading.Thread(target=self.read, daemon=True)

    @classmethod
    def start(cls, target_port: int) -> "Mirror":
        program = Path(sys.executable).parent / "spoa-mirror"
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        url = f"http://127.0.0.1:{target_port}/"
        process = subprocess.Popen(
            [program, "-r0", "-n1", "-a127.0.0.1", f"-p{port}", f"-u{url}"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        mirror = cls(process, port)
        mirror.reader.start()
        wait_for(lambda: mirror.listens or process.poll() is not None, "spoa-mirror's start")
        return mirror

    def read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as output:
            for line in output:
                self.lines.append(line.rstrip())

    @property
    def listens(self) -> bool:
        return any("listening on" in line for line in self.lines)

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(TIMEOUT)
        self.reader.join(TIMEOUT)


def comes_true(condition: Callable[[], bool], timeout: float = TIMEOUT) -> bool:
    """Wait for a condition; return whether it came true in time."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def wait_for(condition: Callable[[], bool], what: str) -> None:
    """Wait for a condition, and end the demo if it does not come true in time."""
    if not comes_true(condition):
        raise SystemExit(f"demo: waited {TIMEOUT:g} s in vain for {what}")


def varied_requests() -> dict[str, bytes]:
    """Return requests as bytes, each with an x-demo header to tell it by."""

    def request(line: str, *headers: str, body: bytes = b"") -> bytes:
        head = [f"{line} HTTP/1.1", "Host: shop.example", *headers]
        return "\r\n".join([*head, "", ""]).encode("latin-1") + body

    form = b"name=J%C3%BCrgen&colour=blue"
    json = b'{"price": 12.50}'
    return {
        "query": request("GET /search?q=a%20b&q=c%2Fd", "Accept: */*"),
        "head": request("HEAD /index.html"),
        "twice": request("GET /", "Cookie: a=1", "X-Tag: one", "Cookie: b=2", "X-Tag: two"),
        "bytes": request("GET /caf%C3%A9", "X-Name: J\xfcrgen", "X-Empty:"),
        "post": request("POST /form", f"Content-Length: {len(form)}", body=form),
        "put": request("PUT /item/7", f"Content-Length: {len(json)}", body=json),
        "patch": request("PATCH /item/7", f"Content-Length: {len(json)}", body=json),
        "delete": request("DELETE /item/8", f"Content-Length: {len(json)}", body=json),
        "chunked": request(
            "POST /upload",
            "Transfer-Encoding: chunked",
            body=b"5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n",
        ),
        "extension": request("PROPFIND /folder", "Depth: 1"),
        "absolute": request("GET http://shop.example/absolute?x=1"),
        "kilobytes": request("POST /large", "Content-Length: 8192", body=b"0123456789abcdef" * 512),
    }


def send(port: int, name: str, request: bytes) -> str:
    """Send one request through HAProxy, and return the answer's status line."""
    head, _, body = request.partition(b"\r\n")
    with socket.create_connection(("127.0.0.1", port), TIMEOUT) as connection:
        connection.sendall(head + b"\r\nX-Demo: " + name.encode() + b"\r\n" + body)
        return connection.makefile("rb").readline().decode().strip()


def show(name: str, original: Request | None, copy: Request | None) -> bool:
    """Print an original beside its copy; return whether they are the same."""
    if original is None or copy is None:
        verdict = "MISSING"
    else:
        verdict = "same" if copy.essence() == original.essence() else "DIFFERENT"
    print(f"\n== {name}: {verdict}")
    left, right = (each.show() if each else ["(nothing)"] for each in (original, copy))
    for index in range(max(len(left), len(right))):
        one, other = (side[index] if index < len(side) else "" for side in (left, right))
        print(f"  {one[:WIDTH]:<{WIDTH}} | {other[:WIDTH]}")
    return verdict == "same"


def main() -> int:
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = "*"  # all is on this machine
    haproxy = find_haproxy()
    if haproxy is None:
        raise SystemExit("demo: there is no HAProxy; `make demo` fetches one")
    origin, target = Server("origin"), Server("target")
    mirror = Mirror.start(target.port)
    if not mirror.listens:
        raise SystemExit("demo: spoa-mirror did not start:\n" + "\n".join(mirror.lines))
    try:
        with HAProxy(
            (HERE / "haproxy.cfg").read_text(),
            files={"spoe.cfg": (HERE / "spoe.cfg").read_text()},
            variables={
                "ORIGIN": f"127.0.0.1:{origin.port}",
                "AGENT": f"127.0.0.1:{mirror.port}",
            },
            binary=haproxy,
        ) as running:
            return demonstrate(running, origin, target, mirror)
    finally:
        for each in (mirror, origin, target):
            each.stop()


def demonstrate(haproxy: HAProxy, origin: Server, target: Server, mirror: Mirror) -> int:
    wait_for(
        lambda: haproxy.server_status("mirroragents", "mirror-agent").startswith("UP"),
        "HAProxy to find the agent well",
    )
    port = haproxy.ports["FRONTEND"]
    requests = varied_requests()
    started = time.perf_counter()
    for name, request in requests.items():
        status = send(port, name, request)
        if "200" not in status:
            print(f"{name}: HAProxy answered {status!r}")
    sent_in = time.perf_counter() - started
    comes_true(lambda: len(target.requests) >= len(requests), ARRIVAL)  # or it is shown

    print(f"{'ORIGINAL, as the origin received it':<{WIDTH + 2}} | COPY, as the target received it")
    same = sum(
        show(name, origin.requests.get(name), target.requests.get(name)) for name in requests
    )
    wait_for(lambda: sum(" ok" in line for line in mirror.lines) >= same, "the agent's log")
    print("\n== what spoa-mirror logged")
    for line in mirror.lines:
        print(f"  {line}")
    print(
        f"\n{len(requests)} requests through HAProxy {haproxy.version} in {sent_in * 1000:.0f} ms: "
        f"{same} copies the same, {len(requests) - same} different or missing"
    )
    if os.environ.get("KEEP"):
        keep(port, target)
    return 0 if same == len(requests) else 1


def keep(port: int, target: Server) -> None:
    target.echo = True
    print(f"\nLeft running: point a browser or curl at http://127.0.0.1:{port}/")
    print("What the target receives is shown here. Ctrl-C ends it.", flush=True)
    try:
        signal.pause()
    except KeyboardInterrupt:
        print()


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.exit(main())
