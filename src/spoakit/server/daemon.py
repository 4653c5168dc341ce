"""Going to the background, and telling whoever waits that the service is up."""

import os
import socket
import sys
from contextlib import suppress
from typing import Final

_OK: Final = b"\0"


class StartupNotifier:
    """The process that started this one and waits to hear how it went.

    Without a `pipe` to it there is none, and nothing is told.
    """

    __slots__ = ("_pipe",)

    def __init__(self, pipe: int = -1) -> None:
        self._pipe = pipe

    def ready(self) -> None:
        """Let the starter exit with 0."""
        self._send(_OK)

    def failed(self, reason: str) -> None:
        """Let the starter print the reason and exit with 1."""
        self._send(reason.encode(errors="surrogateescape"))

    def close(self) -> None:
        """Close the way to the starter, in a worker."""
        if self._pipe >= 0:
            os.close(self._pipe)
            self._pipe = -1

    def _send(self, message: bytes) -> None:
        if self._pipe >= 0:
            # If the starter was killed, the service does not depend on it.
            with suppress(BrokenPipeError):
                os.write(self._pipe, message)
            self.close()


def daemonize() -> StartupNotifier:
    """Continue in a process of its own session, with its standard streams on /dev/null.

    Returns in that process only. The one that was called from stays until it is told how the start
    went, so that its exit code is true. The working directory stays, for relative paths.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    reader, writer = os.pipe()
    if os.fork():
        os.close(writer)
        _await_start(reader)
    os.close(reader)
    os.setsid()
    if os.fork():
        os._exit(0)  # not a session leader any more, so it never gets a controlling terminal
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    if null > 2:
        os.close(null)
    return StartupNotifier(writer)


def _await_start(reader: int) -> None:
    with os.fdopen(reader, "rb") as pipe:
        message = pipe.read()
    if message != _OK:
        reason = message.decode(errors="replace") or "it ended while starting"
        sys.stderr.write(f"ERROR: {reason}\n")
        sys.stderr.flush()
    os._exit(0 if message == _OK else 1)


def notify_service_manager(state: str) -> None:
    """Send a state ("READY=1", "STOPPING=1") to systemd or what stands in for it; see sd_notify(3).

    Does nothing where none asked for it in NOTIFY_SOCKET.
    """
    path = os.environ.get("NOTIFY_SOCKET")
    if not path:
        return
    if path.startswith("@"):
        path = "\0" + path[1:]
    # A manager that has gone away is no reason to fail.
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager, suppress(OSError):
        manager.sendto(state.encode(), path)
