"""What the end-to-end tests run beside HAProxy: agents as processes, and clients."""

import http.client
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Protocol

import spoakit
from spoakit.testing.haproxy import HAProxy
from tests.support.processes import children_of
from tests.support.waiting import TIMEOUT, wait_until


class Start(Protocol):
    """The type of the fixture `start`."""

    def __call__(self, module: str, *arguments: str) -> "Program":
        """Run a module of spoakit's; it is ready when this returns, and ended after the test."""


class Serve(Protocol):
    """The type of the fixture `serve`."""

    def __call__(
        self, source: str, *arguments: str, agents: tuple[str, ...] = ("tested",)
    ) -> "Program":
        """Have `spoakit run` serve agents of a source, by default on a free port of 127.0.0.1."""


class Program:
    """One of spoakit's commands as a process; the fixture `start` ends it.

    Its output goes to a file, so that it never waits for its reader.
    """

    def __init__(self, folder: Path, module: str, *arguments: str) -> None:
        self._log = folder / f"{module}-{time.monotonic_ns()}.log"
        source = str(Path(spoakit.__file__).parent.parent)
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=folder,
                env={**os.environ, "PYTHONPATH": source, "PYTHONDONTWRITEBYTECODE": "1"},
                start_new_session=True,
            )

    @property
    def log(self) -> str:
        """What it has written so far, to standard output and error."""
        return self._log.read_text(errors="replace")

    @property
    def address(self) -> str:
        """What it listens on, as it says itself: "127.0.0.1:12345", or a path."""
        return self.wait_for(r"listening on (\S+) ")[1]

    @property
    def children(self) -> list[int]:
        """The process ids of its workers."""
        return children_of(self.process.pid)

    def wait_for(self, pattern: str) -> re.Match[str]:
        """Wait until a line of its output matches, and return the match."""
        expression = re.compile(pattern)
        wait_until(
            lambda: expression.search(self.log) is not None or self.process.poll() is not None,
            f"a line like {pattern!r}",
        )
        found = expression.search(self.log)
        if found is None:
            raise ChildProcessError(f"it ended with {self.process.returncode}:\n{self.log}")
        return found

    def stop(self) -> int:
        """Let it drain and end; return its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(TIMEOUT)

    def kill(self) -> None:
        """End it and its workers at once; harmless when it has ended."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def get(
    haproxy: HAProxy, path: str = "/", headers: Mapping[str, str] | None = None
) -> Mapping[str, str]:
    """Send HAProxy a GET over a connection of its own, and return the answer's headers."""
    with closing(connect(haproxy)) as client:
        return ask(client, path, headers)


def connect(haproxy: HAProxy, host: str = "127.0.0.1") -> http.client.HTTPConnection:
    return http.client.HTTPConnection(host, haproxy.ports["FRONTEND"], timeout=TIMEOUT)


def ask(
    client: http.client.HTTPConnection, path: str = "/", headers: Mapping[str, str] | None = None
) -> Mapping[str, str]:
    """Send a GET, and return the answer's headers, whose names are in lower case."""
    client.request("GET", path, headers=headers or {})
    with client.getresponse() as answer:
        answer.read()
        return {name.lower(): value for name, value in answer.getheaders()}
