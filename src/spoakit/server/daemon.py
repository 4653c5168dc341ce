"""Daemon mode, and notification of the starting process and the service manager."""

import os
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Final, NoReturn

from spoakit.exceptions import StartupError
from spoakit.server.forking import flush_standard_streams
from spoakit.server.signals import stop_receiving

_OK: Final = b"\0"


class StartupNotifier:
    """Notifier of the process that started this one and waits for the result of the start.

    Args:
        pipe: descriptor of the pipe to that process; -1 without one.
    """

    __slots__ = ("_pipe",)

    def __init__(self, pipe: int = -1) -> None:
        self._pipe = pipe

    def ready(self) -> None:
        """Let the starting process exit with 0."""
        self._send(_OK)

    def failed(self, reason: str) -> None:
        """Let the starting process print the reason and exit with 1."""
        self._send(reason.encode(errors="surrogateescape"))

    def close(self) -> None:
        """Close the pipe, in a worker."""
        if self._pipe >= 0:
            os.close(self._pipe)
            self._pipe = -1

    def _send(self, message: bytes) -> None:
        if self._pipe >= 0:
            # The service keeps running if the starting process was killed.
            with suppress(OSError):
                os.write(self._pipe, message)
            self.close()


def daemonize(show: Callable[[str], None]) -> StartupNotifier:
    """Continue in a process of its own session, with its standard streams on /dev/null.

    It returns in that process only. The caller's process waits for the notification, so that its
    exit code is the result of the start. The working directory does not change, so relative paths
    stay valid.

    Args:
        show: prints a text for the user, in the waiting process.

    Raises:
        StartupError: the system has no process or descriptor left.
    """
    flush_standard_streams()
    try:
        reader, writer = os.pipe()
        if os.fork():
            os.close(writer)
            _await_start(reader, show)
    except OSError as error:
        raise StartupError(f"cannot go to the background: {error.strerror}") from error
    os.close(reader)
    try:
        os.setsid()
        # A process that is not a session leader never gets a controlling terminal.
        if os.fork():
            os._exit(0)
    except OSError as error:
        StartupNotifier(writer).failed(f"cannot go to the background: {error.strerror}")
        os._exit(1)
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    if null > 2:
        os.close(null)
    return StartupNotifier(writer)


def _await_start(reader: int, show: Callable[[str], None]) -> NoReturn:
    """Wait for the notification, and exit with its code."""
    code = 1
    try:
        stop_receiving()
        with os.fdopen(reader, "rb") as pipe:
            message = pipe.read()
        if message == _OK:
            code = 0
        else:
            reason = message.decode(errors="replace") or "it ended while starting"
            show(f"ERROR: {reason}\n")
            flush_standard_streams()
    finally:
        os._exit(code)


def notify_service_manager(state: str) -> None:
    """Send a state ("READY=1", "STOPPING=1") to systemd or a compatible manager; see sd_notify(3).

    Does nothing if NOTIFY_SOCKET is not set.
    """
    path = os.environ.get("NOTIFY_SOCKET")
    if not path:
        return
    if path.startswith("@"):
        path = "\0" + path[1:]
    # The service keeps running if the manager is gone, or no descriptor is left.
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.sendto(state.encode(), path)
