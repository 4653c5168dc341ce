"""Going to the background, and notifying the starter and the service manager of the start."""

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
    """Notifies the process that started this one, and waits for that, how the start went.

    Args:
        pipe: descriptor of the pipe to it; -1 without one.
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
            with suppress(OSError):
                os.write(self._pipe, message)
            self.close()


def daemonize(show: Callable[[str], None]) -> StartupNotifier:
    """Continue in a process of its own session, with its standard streams on /dev/null.

    Returns in that process only. The caller's own process stays until it is notified how the start
    went, so that its exit code is true. The working directory stays, for relative paths.

    Args:
        show: writes a text where the caller sees it, in the process that stays.

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
        # Not a session leader any more, this process never gets a controlling terminal.
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
    """Wait for the notification, and exit with the code that it calls for."""
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
    """Send a state ("READY=1", "STOPPING=1") to systemd or what stands in for it; see sd_notify(3).

    Does nothing where none asked for it in NOTIFY_SOCKET.
    """
    path = os.environ.get("NOTIFY_SOCKET")
    if not path:
        return
    if path.startswith("@"):
        path = "\0" + path[1:]
    # The service goes on without a manager, and without a descriptor for the message to it.
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.sendto(state.encode(), path)
