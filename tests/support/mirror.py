"""What the tests of spoa-mirror share: it runs behind a HAProxy, and requests are sent to that."""

import socket
from pathlib import Path

from h2.connection import H2Connection
from h2.events import ResponseReceived, StreamEnded, StreamReset

from spoakit.testing.haproxy import HAProxy
from spoakit.testing.pytest_plugin import StartHAProxy
from tests.support.haproxy_configuration import haproxy_cfg, show, spoe_cfg
from tests.support.ports import free_port
from tests.support.programs import Program, Start
from tests.support.waiting import TIMEOUT

Field = tuple[bytes, bytes]

ARGUMENTS = {
    "arg_method": "method",
    "arg_path": "url",
    "arg_ver": "req.ver",
    "arg_hdrs": "req.hdrs_bin",
    "arg_body": "req.body",
}
SIZE = {"arg_size": "req.body_size"}
MIRROR = "spoe-message mirror\n    args {}\n    event on-frontend-http-request\n"


class Mirror:
    """Start spoa-mirrors, and HAProxys that have their requests copied by them.

    Args:
        folder: where spoa-mirror runs, and finds its configuration file.
    """

    def __init__(self, start: Start, haproxy: StartHAProxy, folder: Path) -> None:
        self._start = start
        self._haproxy = haproxy
        self._folder = folder

    def serve(self, address: str, *arguments: str) -> Program:
        """Run one that copies to an address."""
        return self.run("-u", f"http://{address}/", *arguments)

    def configure(self, text: str) -> None:
        """Put another configuration file in the place of the one there is."""
        new = self._folder / "new.toml"
        new.write_text(text)
        new.rename(self._folder / "mirror.toml")

    def serve_configured(self, text: str, *arguments: str) -> Program:
        """Run one with a configuration file."""
        self.configure(text)
        return self.run("--config", "mirror.toml", *arguments)

    def run(self, *arguments: str) -> Program:
        """Run one with these options, and one worker if they do not say otherwise."""
        listening = ("-r0", "-n1", "-a", "127.0.0.1", "-p", str(free_port()))
        return self._start("spoakit.cli.mirror", *listening, *arguments)

    def balance(
        self,
        program: Program,
        *lines: str,
        origin: str = "unix@origin.sock",
        server: str = "",
        **arguments: str,
    ) -> HAProxy:
        """Run a HAProxy.

        Args:
            program: the agent.
            lines: further lines of the frontend.
            origin: the address of another origin, with the parameters that it takes.
            server: parameters of the agent's server.
            arguments: further arguments of the message and their sample expressions, or others in
                place of the usual ones; "" for none.
        """
        args = " ".join(
            f"{name}={expression}"
            for name, expression in (ARGUMENTS | arguments).items()
            if expression
        )
        shown = show(x_value="var(txn.mirror.value)", x_error="var(txn.mirror.error)")
        frontend = ("option http-buffer-request", *shown, *lines)
        config = haproxy_cfg(*frontend, agents=("mirror",), server=server)
        spoe = spoe_cfg(MIRROR.format(args), messages="mirror", agent="mirror", names="value error")
        return self._haproxy(
            config.replace("server origin unix@origin.sock", f"server origin {origin}"),
            files={"spoe.cfg": spoe},
            variables={"AGENT": program.address},
        )

    def __call__(self, address: str, **arguments: str) -> tuple[Program, HAProxy]:
        """Run both, with requests copied to an address."""
        program = self.serve(address)
        return program, self.balance(program, **arguments)


def request(line: str, *fields: str, body: bytes = b"", version: str = "1.1") -> bytes:
    """Return a request with its Content-Length, if it has a body and no other framing."""
    lines = [f"{line} HTTP/{version}", "Host: www.example.org", *fields]
    if body and not any(field.startswith("Transfer-Encoding") for field in fields):
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def send(haproxy: HAProxy, message: bytes) -> bytes:
    """Send a request, and return the answer's status line."""
    with (
        socket.create_connection(("127.0.0.1", haproxy.ports["FRONTEND"]), TIMEOUT) as client,
        client.makefile("rb") as stream,
    ):
        client.sendall(message)
        return stream.readline()


def send_over_http2(haproxy: HAProxy, *fields: Field, body: bytes = b"") -> bytes:
    """Send a request, pseudo-header fields first among its fields; return the answer's status."""
    h2 = H2Connection()
    h2.initiate_connection()
    h2.send_headers(1, fields, end_stream=not body)
    rest = _send_window(h2, body)
    status = b""
    with socket.create_connection(("127.0.0.1", haproxy.ports["FRONTEND"]), TIMEOUT) as client:
        client.sendall(h2.data_to_send())
        while data := client.recv(65536):
            events = h2.receive_data(data)
            for event in events:
                if isinstance(event, ResponseReceived):
                    status = dict(event.headers)[b":status"]
            # HAProxy may answer before it has read all of the body, and does not read on then.
            if any(isinstance(event, StreamEnded | StreamReset) for event in events):
                break
            rest = _send_window(h2, rest)
            client.sendall(h2.data_to_send())
    return status


def _send_window(h2: H2Connection, body: bytes) -> bytes:
    """Send as much of the stream's body as flow control allows; return the rest."""
    while body and (room := min(h2.local_flow_control_window(1), h2.max_outbound_frame_size)) > 0:
        h2.send_data(1, body[:room], end_stream=room >= len(body))
        body = body[room:]
    return body
