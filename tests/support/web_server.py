"""A web server for tests: one page, which is answered as it is told."""

import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal

from tests.support.certificates import Pem

LIST = b"192.0.2.1\n" * 100


@dataclass
class Page:
    """What the web server answers, and what it was asked."""

    body: bytes = LIST
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    size: int | None = None
    asked: list[dict[str, str]] = field(default_factory=list)
    methods: list[str] = field(default_factory=list)
    has_head: bool = False
    pause: float = 0.0
    framing: Literal["length", "chunked", "close"] = "length"
    trickles: bool = False
    url: str = ""


class _Handler(BaseHTTPRequestHandler):
    page: Page
    released: threading.Event

    def do_HEAD(self) -> None:
        page = self.page
        page.asked.append(dict(self.headers))
        page.methods.append("HEAD")
        self.send_response(page.status if page.has_head else 501)
        self.end_headers()

    def do_GET(self) -> None:
        page = self.page
        page.methods.append("GET")
        page.asked.append(dict(self.headers))
        etag = page.headers.get("ETag")
        status = 304 if etag and self.headers["If-None-Match"] == etag else page.status
        body = b"" if status == 304 else page.body
        self.send_response(status)
        for name, value in page.headers.items():
            self.send_header(name, value)
        if page.trickles:
            self.flush_headers()
            self._trickle()
        if page.framing == "length":
            self.send_header("Content-Length", str(len(body) if page.size is None else page.size))
        elif page.framing == "chunked":
            self.send_header("Transfer-Encoding", "chunked")
            body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
        self.end_headers()
        for start in range(0, len(body), 4096):
            time.sleep(page.pause)
            try:
                self.wfile.write(body[start : start + 4096])
            except OSError:
                return

    def _trickle(self) -> None:
        """Send header lines without an end, until the server stops or nobody reads them."""
        while not self.released.wait(0.02):
            try:
                self.wfile.write(b"X-Trickle: y\r\n")
            except OSError:
                return

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def web_server(certificate: Pem | None = None) -> Iterator[Page]:
    """Serve a page, which may be changed at any time; with a certificate, over HTTPS."""
    page = Page()
    released = threading.Event()
    handler = type("PageHandler", (_Handler,), {"page": page, "released": released})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        page.url = f"http://127.0.0.1:{server.server_port}/list"
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate.certificate, certificate.key)
            server.socket = context.wrap_socket(server.socket, server_side=True)
            page.url = page.url.replace("http:", "https:")
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield page
        finally:
            released.set()
            server.shutdown()
            thread.join()
