"""Processes that run stand_in.py, and their clients."""

import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Self, TypeAlias

import spoakit
from tests.support.waiting import TIMEOUT, wait_until


class Client:
    """A connection to a stand-in service."""

    def __init__(self, sock: socket.socket) -> None:
        sock.settimeout(TIMEOUT)
        self.sock = sock
        self._file = sock.makefile("rw")

    def send(self, command: str) -> None:
        self._file.write(command + "\n")
        self._file.flush()

    def read(self) -> str:
        """Return a line; nothing at the end."""
        try:
            return self._file.readline().rstrip("\n")
        except ConnectionError:
            return ""

    def ask(self, command: str) -> str:
        self.send(command)
        return self.read()

    def close(self) -> None:
        self._file.close()
        self.sock.close()


class Service:
    """A stand-in service as a process of its own, in a process group of its own."""

    def __init__(
        self,
        directory: Path,
        env: dict[str, str],
        settings: dict[str, Any],
        stdout: int | None = None,
        stderr: int | None = None,
        descriptors: int | None = None,
    ) -> None:
        self.directory = directory
        self._log = directory / f"log-{time.monotonic_ns()}"
        self._clients: list[Client] = []
        source = Path(spoakit.__file__).parent.parent
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    str(Path(__file__).with_name("stand_in.py")),
                    json.dumps(settings),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log if stdout is None else stdout,
                stderr=log if stderr is None else stderr,
                env={**os.environ, "PYTHONPATH": str(source), **env},
                cwd=directory,
                start_new_session=True,
                preexec_fn=None if descriptors is None else partial(_limit, descriptors),
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        for client in self._clients:
            client.close()
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    @property
    def log(self) -> str:
        return self._log.read_text()

    def wait_for(self, text: str, times: int = 1) -> None:
        """Wait until the log has a text, as often as is said."""
        wait_until(lambda: self.log.count(text) >= times, text)

    def ready(self) -> Self:
        wait_until(lambda: "listening on" in self.log or self.process.poll() is not None, "a start")
        assert self.process.poll() is None, self.log
        return self

    @property
    def address(self) -> str:
        """Return what the log tells it listens on."""
        found = re.search(r"listening on (\S+)", self.log)
        assert found is not None
        return found[1]

    def connect(self) -> Client:
        host, _, port = self.address.rpartition(":")
        client = Client(socket.create_connection((host.strip("[]"), int(port)), TIMEOUT))
        self._clients.append(client)
        return client

    def signal(self, signum: int) -> None:
        self.process.send_signal(signum)

    def signal_group(self, signum: int) -> None:
        os.killpg(self.process.pid, signum)

    def wait(self) -> int:
        return self.process.wait(TIMEOUT)


# The type of the fixture `start`.
Start: TypeAlias = Callable[..., Service]


def _limit(descriptors: int) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, descriptors))
