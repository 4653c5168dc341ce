"""Reject clients by a list and by bans, through a real HAProxy.

Starts an origin, spoa-iprep with the list and the settings of this folder, and HAProxy with its
configuration. Clients with different addresses of this machine send requests: one is on the list,
one is banned for some seconds and let in again when they are over. Ends with status 1 if any of
them is treated otherwise.

KEEP=1 in the environment leaves everything running afterwards, until Ctrl-C.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from http.client import HTTPConnection, HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory

from spoakit.testing import HAProxy, find_haproxy

HERE = Path(__file__).parent
PROGRAM = Path(sys.executable).parent / "spoa-iprep"
TIMEOUT = 10.0
BAN = 3.0


class Origin(BaseHTTPRequestHandler):
    """Greets everybody."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "6")
        self.end_headers()
        self.wfile.write(b"hello\n")

    def log_message(self, format: str, *args: object) -> None:
        pass


class Demo:
    """Sends requests, runs commands, and counts what is not as it should be."""

    def __init__(self, port: int, folder: Path) -> None:
        self.surprises = 0
        self._port = port
        self._folder = folder

    def command(self, *arguments: str) -> None:
        """Show a command of spoa-iprep's and what it prints."""
        print(f"\n$ spoa-iprep {' '.join(arguments)}", flush=True)
        control = ("--control", str(self._folder / "control.sock"))
        done = subprocess.run([PROGRAM, *arguments, *control], check=False, timeout=TIMEOUT)
        self.surprises += done.returncode != 0

    def expect(self, address: str, welcome: bool) -> None:
        """Send a request from an address, and tell what became of it."""
        is_let_in = self.is_let_in(address)
        what = "is let in" if is_let_in else "is rejected"
        surprise = "" if is_let_in == welcome else "   <- UNEXPECTED"
        self.surprises += is_let_in != welcome
        print(f"\n  a client with the address {address} {what}{surprise}", flush=True)

    def is_let_in(self, address: str) -> bool:
        """Send a request from an address of this machine; return whether it is answered."""
        client = HTTPConnection(
            "127.0.0.1", self._port, timeout=TIMEOUT, source_address=(address, 0)
        )
        try:
            client.request("GET", "/")
            return client.getresponse().read() == b"hello\n"
        except (HTTPException, ConnectionError):
            return False
        finally:
            client.close()


def wait_for(condition: Callable[[], bool], what: str) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit(f"demo: waited {TIMEOUT:g} s in vain for {what}")
        time.sleep(0.05)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
        return port


def main() -> int:
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = "*"  # all is on this machine
    haproxy = find_haproxy()
    if haproxy is None:
        raise SystemExit("demo: there is no HAProxy; `make demo-iprep` fetches one")
    origin = ThreadingHTTPServer(("127.0.0.1", 0), Origin)
    threading.Thread(target=origin.serve_forever, daemon=True).start()
    with TemporaryDirectory() as name:
        folder = Path(name)
        for file in ("iprep.toml", "blocked.txt"):
            shutil.copy(HERE / file, folder)
        port = free_port()
        config = str(folder / "iprep.toml")
        options = ("--config", config, "-n2", "-a127.0.0.1", f"-p{port}")
        print(f"$ spoa-iprep {' '.join(options)}", flush=True)
        agent = subprocess.Popen([PROGRAM, *options])
        try:
            with HAProxy(
                (HERE / "haproxy.cfg").read_text(),
                files={"spoe.cfg": (HERE / "spoe.cfg").read_text()},
                variables={
                    "ORIGIN": f"127.0.0.1:{origin.server_port}",
                    "AGENT": f"127.0.0.1:{port}",
                },
                binary=haproxy,
            ) as running:
                return demonstrate(running, folder)
        finally:
            agent.send_signal(signal.SIGTERM)
            agent.wait(TIMEOUT)


def demonstrate(haproxy: HAProxy, folder: Path) -> int:
    wait_for(
        lambda: haproxy.server_status("iprep-backend", "iprep-srv").startswith("UP"),
        "HAProxy to find the agent well",
    )
    port = haproxy.ports["FRONTEND"]
    demo = Demo(port, folder)
    print(f"\nHAProxy {haproxy.version} rejects clients with a score below 20.")
    demo.command("sources")
    demo.expect("127.0.0.1", welcome=True)
    demo.expect("127.0.0.2", welcome=False)
    demo.command("lookup", "127.0.0.2")

    demo.expect("127.0.0.3", welcome=True)
    begun = time.monotonic()
    demo.command("ban", "127.0.0.3", "--for", f"{BAN:g}s", "--reason", "too many logins")
    demo.command("bans")
    demo.expect("127.0.0.3", welcome=False)
    wait_for(lambda: demo.is_let_in("127.0.0.3"), "the end of the ban")
    print(f"\n  ... {time.monotonic() - begun:.1f} s after the ban of {BAN:g} s began:")
    demo.expect("127.0.0.3", welcome=True)

    print(f"\n{'All clients were' if not demo.surprises else 'Not all were'} treated as expected.")
    if os.environ.get("KEEP"):
        print(f"\nLeft running: curl --interface 127.0.0.4 http://127.0.0.1:{port}/")
        print(f"$ {PROGRAM} ban 127.0.0.4 --control {folder / 'control.sock'}")
        print("Ctrl-C ends it.", flush=True)
        try:
            signal.pause()
        except KeyboardInterrupt:
            print()
    return 1 if demo.surprises else 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.exit(main())
