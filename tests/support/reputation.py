"""What the tests of spoa-iprep share: its commands, and clients that a HAProxy lets in or not."""

import http.client
import subprocess
import sys
from contextlib import closing
from pathlib import Path

from spoakit.testing.haproxy import HAProxy
from tests.support.waiting import TIMEOUT

CLI = "spoakit.cli.iprep"
LISTEN = ("-a", "127.0.0.1", "-p", "0")


def command(folder: Path, *arguments: str) -> str:
    """Run a command on the spoa-iprep whose control socket is in a folder."""
    control = ("--control", str(folder / "control.sock"))
    done = subprocess.run(
        [sys.executable, "-m", CLI, *arguments, *control],
        capture_output=True,
        text=True,
        check=False,
        timeout=TIMEOUT,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def is_let_in(haproxy: HAProxy, address: str) -> bool:
    """Return whether a request from an address of this machine is answered."""
    port = haproxy.ports["FRONTEND"]
    client = http.client.HTTPConnection(
        "127.0.0.1", port, timeout=TIMEOUT, source_address=(address, 0)
    )
    with closing(client):
        try:
            client.request("GET", "/")
            return client.getresponse().status == 200
        except (http.client.HTTPException, ConnectionError):
            return False
