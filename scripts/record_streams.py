"""Record what HAProxys and an agent say to each other, for the tests to replay.

    scripts/record_streams.py HOST:PORT [--version 2.6 ...] [--scenario NAME ...] [--to FOLDER]

The agent at HOST:PORT must be running, recorded_agent.py or any other that acknowledges whatever it
is sent. Each version of HAProxy plays each scenario against it through a tee, which writes
tests/data/streams/<version>/<scenario>.json:

    {"haproxy": "3.0.11", "about": ..., "connections": [["engine:00000...", "agent:0000...", ...]]}

A connection is a list of frames in the order they passed, each with its sender and, in hex, its
bytes from the length on. A sender without bytes has closed: the first to do so ends the list.
Frames of "tee" are no agent's: the tee sends them to HAProxy to have it complain. Connections
that carried no NOTIFY are left out, except for health checks.
There are no times and no ports; apart from engine-ids and the order of frames that cross, a new
recording differs from the last only where HAProxy or the agent do.
"""

import argparse
import json
import os
import re
import socket
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import ParamSpec

from spoakit.exceptions import SpoakitError
from spoakit.testing.haproxy import HAProxy, find_haproxy, haproxy_version

REPOSITORY = Path(__file__).resolve().parent.parent
CACHE = Path(os.environ.get("SPOAKIT_CACHE", REPOSITORY / ".cache"))
VERSIONS = ("2.6", "3.0", "3.2")
TIMEOUT = 10.0  # seconds, for whatever is waited for
NOTIFY, AGENT_ACK = 3, 103
P = ParamSpec("P")

CONFIG = """\
global
    nbthread 1
    tune.bufsize {bufsize}
    tune.maxrewrite 256
defaults
    mode http
    timeout connect 1s
    timeout client 5s
    timeout server 5s
frontend recorded
    bind "${{FRONTEND}}"
    option http-buffer-request
    filter spoe engine recorded config spoe.cfg
    {rule}
    default_backend origin
backend origin
    server origin unix@origin.sock
listen answers
    bind unix@origin.sock
    http-request return status 204
backend agents
.if version_atleast(3.1)
    mode spop
.else
    mode tcp
.endif
    option spop-check
    server agent "${{AGENT}}" {server}
"""
SPOE = """\
[recorded]
spoe-agent recorded
    messages {messages}
    {groups}
    option var-prefix recorded
    option continue-on-error
    option set-on-error error
    timeout hello 2s
    timeout idle {idle}
    timeout processing 2s
    use-backend agents
{sections}
"""
MIRROR = """\
spoe-message mirror
    args arg_method=method arg_path=url arg_ver=req.ver arg_hdrs={headers} arg_body=req.body
    event on-frontend-http-request
"""
CHECK_CLIENT_IP = """\
spoe-message check-client-ip
    args src
    event on-client-session
"""
ARGUMENTS = """\
spoe-message arguments
    args true=bool(true) false=bool(false) int(0) int=int(42) negative=int(-42)
    args largest=int(9223372036854775807) ipv4=ipv4(192.0.2.1) ipv6=ipv6(2001:db8::1)
    args str=str(hello) empty=str("") bin=bin(00ff80) null=var(txn.never_set)
    args utf8=req.hdr(x-utf8) latin1=req.hdr(x-latin1) method=method twice=int(1) twice=int(2)
    event on-frontend-http-request
"""
SEVERAL = """\
spoe-message session
    args src
    event on-client-session
spoe-message first
    args path=path
    event on-frontend-http-request
spoe-message second
    event on-frontend-http-request
spoe-message by-rule
    args method
spoe-group group
    messages by-rule
spoe-message response
    args status=status
    event on-http-response
"""
LARGE = """\
spoe-message large
    args body=req.body again=req.body and-again=req.body
    event on-frontend-http-request
"""


def request(method: str, target: str, *headers: str, body: bytes = b"") -> bytes:
    """Return an HTTP request after whose answer HAProxy closes."""
    lines = [f"{method} {target} HTTP/1.1", "Host: www.example.org", *headers]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "Connection: close", "", ""]).encode("latin-1") + body


GET = request("GET", "/")
VARIED = (
    request("GET", "/path?query=1&query=2", "Accept: */*", "X-Twice: one", "x-twice: two"),
    request("POST", "/form", "Content-Type: text/plain", body=b"name=value"),
    request("PUT", "http://www.example.org/file", "X-Empty:", body=bytes(range(256))),
    request("OPTIONS", "*"),
)


@dataclass(frozen=True, slots=True)
class Scenario:
    """What HAProxy is made to do; `requests` are sent one after the other unless ACKs are held."""

    about: str
    sections: str = CHECK_CLIENT_IP
    requests: tuple[bytes, ...] = (GET,)
    listener: str = "127.0.0.1"
    bufsize: int = 16384
    idle: str = "10s"
    server: str = ""
    held: int = 0  # NOTIFYs that must have been sent before any ACK passes but the first
    injected: bytes = b""  # sent to HAProxy before the first ACK
    grouped: bool = False  # the message by-rule is sent by a rule
    until_closed: bool = False  # wait until a connection ends by itself
    before: tuple[int, int] = (99, 0)  # only for versions older than this


SCENARIOS = {
    "health-check": Scenario(
        "the HELLO of option spop-check", requests=(), server="check inter 100ms", until_closed=True
    ),
    "client-ip-ipv4": Scenario("src over IPv4, on-client-session", requests=(GET, GET)),
    "client-ip-ipv6": Scenario("src over IPv6, on-client-session", listener="::1"),
    "mirror-binary-headers": Scenario(
        "GET, POST, PUT and OPTIONS with req.hdrs_bin",
        MIRROR.format(headers="req.hdrs_bin"),
        VARIED,
    ),
    "mirror-text-headers": Scenario(
        "GET, POST, PUT and OPTIONS with req.hdrs", MIRROR.format(headers="req.hdrs"), VARIED
    ),
    "arguments": Scenario(
        "every type of argument; bytes that are not ASCII; an argument twice; none",
        ARGUMENTS,
        (request("GET", "/", "X-Utf8: \xc3\xa9", "X-Latin1: \xe9"),),
    ),
    "several-messages": Scenario(
        "two messages in a NOTIFY, one of them empty; one by a rule; several NOTIFYs of a stream",
        SEVERAL,
        (GET, request("GET", "/again")),
        grouped=True,
    ),
    "pipelined": Scenario(
        "a NOTIFY answered alone, then eight before the next ACK", requests=(GET,) * 9, held=9
    ),
    "fragmented": Scenario(
        "NOTIFYs larger than a frame, in fragments (a choice of HAProxy's up to 3.0)",
        LARGE,
        (
            request("POST", "/", body=b"a" * 1000),
            request("POST", "/", body=b"b" * 1500),
        ),
        bufsize=2048,
        before=(3, 1),
    ),
    "idle-disconnect": Scenario(
        "a connection that HAProxy closes when it is idle",
        idle="100ms",
        until_closed=True,
        before=(3, 1),
    ),
    "error-disconnect": Scenario(
        "an ACK in fragments, which makes HAProxy disconnect",
        injected=bytes.fromhex("0000000767000000000101"),
        until_closed=True,
    ),
}


@dataclass(eq=False)
class Connection:
    """The frames of a connection between HAProxy and the agent."""

    frames: list[str] = field(default_factory=list)
    closed: bool = False


class Tee:
    """Passes bytes between HAProxy and the agent, and keeps the frames."""

    def __init__(self, agent: tuple[str, int], held: int, injected: bytes) -> None:
        self.connections: list[Connection] = []
        self.notified = self.acknowledged = 0
        self._agent = agent
        self._held = held
        self._injected = injected
        self._changed = threading.Condition()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sockets = [self._listener]
        self._threads: list[threading.Thread] = []
        self._run(self._accept)
        self.address = "{}:{}".format(*self._listener.getsockname())

    def wait_until_closed(self) -> None:
        """Wait until one of the connections has been closed."""
        with self._changed:
            if not self._changed.wait_for(
                lambda: any(connection.closed for connection in self.connections), TIMEOUT
            ):
                raise TimeoutError("no connection was closed")

    def close(self) -> None:
        """End all connections."""
        for open_socket in self._sockets:
            with suppress(OSError):
                open_socket.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(TIMEOUT)
        for open_socket in self._sockets:
            open_socket.close()

    def _run(self, work: Callable[P, None], *args: P.args, **kwargs: P.kwargs) -> None:
        thread = threading.Thread(target=work, args=args, kwargs=kwargs, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                engine, _ = self._listener.accept()
                agent = socket.create_connection(self._agent, TIMEOUT)
                agent.settimeout(None)
                self._sockets += engine, agent
                connection = Connection()
                self.connections.append(connection)
                self._run(self._pump, connection, "engine", engine, agent)
                self._run(self._pump, connection, "agent", agent, engine)

    def _pump(
        self, connection: Connection, sender: str, source: socket.socket, sink: socket.socket
    ) -> None:
        with suppress(OSError), source.makefile("rb") as stream:
            while length := stream.read(4):
                frame = length + stream.read(int.from_bytes(length, "big"))
                # Noted before it passes, so that an answer stands behind what it answers.
                if self._injected and frame[4] == AGENT_ACK:
                    self._note(connection, "tee", self._injected)
                    sink.sendall(self._injected)
                self._note(connection, sender, frame)
                sink.sendall(frame)
        self._note(connection, sender, b"")
        with suppress(OSError):
            sink.shutdown(socket.SHUT_WR)

    def _note(self, connection: Connection, sender: str, frame: bytes) -> None:
        kind = frame[4] if len(frame) > 4 else None
        with self._changed:
            if (sender, kind) == ("agent", AGENT_ACK):
                self._changed.wait_for(
                    lambda: self.notified == 1 or self.notified >= self._held, TIMEOUT
                )
                self.acknowledged += 1
            if not connection.closed:
                connection.frames.append(f"{sender}:{frame.hex()}")
                connection.closed = not frame
            self.notified += kind == NOTIFY
            self._changed.notify_all()


def send(address: tuple[str, int], message: bytes) -> None:
    """Send an HTTP request and read its answer to the end."""
    with socket.create_connection(address, TIMEOUT) as client:
        client.sendall(message)
        answer = b""
        while chunk := client.recv(65536):
            answer += chunk
    if not answer.startswith(b"HTTP/1.1 204"):
        raise ConnectionError(f"HAProxy answered {answer[:100]!r}")


def record(scenario: Scenario, binary: Path, agent: tuple[str, int]) -> list[list[str]]:
    """Play a scenario; return the frames of each connection."""
    messages = re.findall(r"^spoe-message (?!by-rule)(\S+)", scenario.sections, re.MULTILINE)
    spoe = SPOE.format(
        messages=" ".join(messages),
        groups="groups group" if scenario.grouped else "",
        idle=scenario.idle,
        sections=scenario.sections,
    )
    rule = "http-request send-spoe-group recorded group" if scenario.grouped else ""
    tee = Tee(agent, scenario.held, scenario.injected)
    haproxy = HAProxy(
        CONFIG.format(bufsize=scenario.bufsize, server=scenario.server, rule=rule),
        files={"spoe.cfg": spoe},
        variables={"AGENT": tee.address},
        listeners={"FRONTEND": scenario.listener},
        binary=binary,
    )
    try:
        with haproxy, ThreadPoolExecutor(max(scenario.held, 1)) as clients:
            address = (scenario.listener, haproxy.ports["FRONTEND"])
            # The first goes alone, so that a connection is there for the others to share.
            for message in scenario.requests[:1]:
                send(address, message)
            list(clients.map(lambda message: send(address, message), scenario.requests[1:]))
            if scenario.until_closed:
                tee.wait_until_closed()
    finally:
        tee.close()
    if not tee.acknowledged == tee.notified >= scenario.held:
        raise ConnectionError(f"{tee.notified} NOTIFYs got {tee.acknowledged} ACKs")
    played = [connection.frames for connection in tee.connections if connection.closed]
    if scenario.requests:
        notify = re.compile(f"engine:.{{8}}{NOTIFY:02x}")
        played = [frames for frames in played if any(map(notify.match, frames))]
    else:
        del played[1:]
    if not played:
        raise ConnectionError("HAProxy sent the agent nothing")
    return played


def main() -> int:
    parser = argparse.ArgumentParser(description="Record HAProxys talking to an agent.")
    parser.add_argument("agent", metavar="HOST:PORT", help="a running agent")
    parser.add_argument("--version", nargs="+", choices=VERSIONS, default=VERSIONS)
    parser.add_argument("--scenario", nargs="+", choices=SCENARIOS, default=SCENARIOS)
    parser.add_argument(
        "--to", type=Path, default=REPOSITORY / "tests/data/streams", metavar="FOLDER"
    )
    options = parser.parse_args()
    host, _, port = options.agent.rpartition(":")
    agent = (host, int(port))
    socket.create_connection(agent, TIMEOUT).close()
    complete = True
    for version in options.version:
        binary = find_haproxy(version, cache=CACHE)
        if binary is None:
            print(f"HAProxy {version} is not here: run scripts/fetch_haproxy.py", file=sys.stderr)
            complete = False
            continue
        folder = options.to / version
        folder.mkdir(parents=True, exist_ok=True)
        for name in options.scenario:
            scenario = SCENARIOS[name]
            if tuple(map(int, version.split("."))) >= scenario.before:
                continue
            try:
                connections = record(scenario, binary, agent)
            except (OSError, SpoakitError) as error:
                print(f"{version} {name}: {error}", file=sys.stderr)
                complete = False
                continue
            recording = {
                "haproxy": haproxy_version(binary),
                "about": scenario.about,
                "connections": connections,
            }
            path = folder / f"{name}.json"
            path.write_text(json.dumps(recording, indent=1) + "\n")
            frames = sum(map(len, connections))
            print(f"{version} {name}: {len(connections)} connections, {frames} frames")
    return 0 if complete else 1


if __name__ == "__main__":
    sys.exit(main())
