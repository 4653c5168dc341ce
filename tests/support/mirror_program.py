"""The command spoa-mirror as a process, its requests and its target."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread

import spoakit
from spoakit.testing import EngineClient
from tests.support.ports import free_port
from tests.support.waiting import wait_until


@contextmanager
def start(*arguments: str) -> "Iterator[subprocess.Popen[str]]":
    """Run it; whatever happens to the test, it ends."""
    with subprocess.Popen(
        [sys.executable, "-m", "spoakit.cli.mirror", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(spoakit.__file__).parent.parent)},
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def stop(process: "subprocess.Popen[str]") -> str:
    """End it, and return what it has written to standard error."""
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 0, err
    return err


def send(port: int, path: str) -> None:
    """Send a request of this path to the mirror."""
    with EngineClient(port=port) as engine:
        engine.hello()
        engine.call(
            "mirror",
            arg_method="GET",
            arg_path=path,
            arg_ver="1.1",
            arg_hdrs=b"\4host\1h\0\0",
            arg_body=b"",
        )


def send_until(port: int, ended: Event) -> None:
    while not ended.is_set():
        send(port, "/")


class Recorder:
    """A target that keeps the paths it is asked for."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/"
        self.paths: list[str] = []
        self._thread = Thread(target=self._accept, daemon=True)
        self._thread.start()

    def _accept(self) -> None:
        try:
            while True:
                connection, _ = self._listener.accept()
                Thread(target=self._serve, args=(connection,), daemon=True).start()
        except OSError:
            pass

    def _serve(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as stream:
            while line := stream.readline():
                self.paths.append(line.split()[1].decode())
                while stream.readline() != b"\r\n":
                    pass
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(10)


@contextmanager
def serve(folder: Path, text: str, *options: str) -> "Iterator[Service]":
    """Run one with this configuration file and its log in a folder."""
    (folder / "mirror.toml").write_text(text)
    port = free_port()
    listening = ("-r0", "-a127.0.0.1", f"-p{port}", f"--config={folder / 'mirror.toml'}")
    with start(*listening, f"-l{folder / 'mirror.log'}", *options) as process:
        service = Service(process, port, folder / "mirror.log")
        service.wait_for_log("listening on")
        yield service
        stop(process)


@dataclass
class Service:
    process: "subprocess.Popen[str]"
    port: int
    file: Path

    @property
    def log(self) -> str:
        return self.file.read_text() if self.file.exists() else ""

    def wait_for_log(self, text: str, count: int = 1) -> None:
        wait_until(lambda: self.log.count(text) >= count)
