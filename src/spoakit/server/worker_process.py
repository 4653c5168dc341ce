"""A worker as its supervisor sees it."""

import os
import signal
import socket
from typing import Final

from spoakit.server.ipc import SupervisorCommand, WorkerEvent, send_descriptor

_FIRST_DELAY: Final = 0.1
_MAX_DELAY: Final = 30.0
_STABLE: Final = 10.0


class WorkerProcess:
    """One of the supervisor's workers: its process, the channel to it, its connections.

    It outlives the process: a successor is forked under the same handle, with the same index.

    Attributes:
        index: 0 up, also the worker's row of counters; logs count from 1.
        pid: 0 while there is no process.
        connections: handed over and not reported closed yet.
        is_ready: takes connections.
        restart_at: when to fork a successor; None when there is a process or none is to follow.
        turn: a number that grows with each connection handed to any worker.
        saw_change: it reported that the watched file has changed.
    """

    __slots__ = (
        "_delay",
        "_failure",
        "_ready_at",
        "_unsent",
        "channel",
        "connections",
        "index",
        "is_ready",
        "pid",
        "restart_at",
        "saw_change",
        "turn",
    )

    def __init__(self, index: int) -> None:
        self.index = index
        self.pid = 0
        self.channel: socket.socket | None = None
        self.connections = 0
        self.is_ready = False
        self.restart_at: float | None = None
        self.turn = 0
        self.saw_change = False
        self._delay = 0.0
        self._ready_at: float | None = None
        self._unsent = b""
        self._failure: bytes | None = None

    @property
    def failure(self) -> str | None:
        """The reason that the process gave for not being able to start."""
        return None if self._failure is None else self._failure.decode(errors="replace")

    def started(self, pid: int, channel: socket.socket) -> None:
        """A process was forked."""
        channel.setblocking(False)
        self.pid = pid
        self.channel = channel
        self.restart_at = None
        self._failure = None
        self._ready_at = None

    def send_command(self, command: SupervisorCommand) -> None:
        """Send a command, behind what was sent before; kept until the worker takes it."""
        if self.channel is not None:
            self._unsent += bytes((command,))
            self.flush()

    @property
    def has_unsent(self) -> bool:
        """Whether commands are kept back."""
        return bool(self._unsent)

    def flush(self) -> None:
        """Try to send the commands kept back."""
        if self._unsent and self.channel is not None:
            try:
                self._unsent = self._unsent[self.channel.send(self._unsent) :]
            except BlockingIOError:
                pass
            except OSError:
                self._unsent = b""
                self.is_ready = False  # it is dying; the kernel will report it

    def hand(self, connection: socket.socket) -> bool:
        """Hand a connection over, and close it here; False if the worker cannot take it now."""
        self.flush()
        if self.channel is None or self._unsent:
            return False
        try:
            send_descriptor(self.channel, connection.fileno())
        except OSError:
            # It is dying, its buffer is full, or too many descriptors are in transit.
            return False
        connection.close()
        self.connections += 1
        return True

    def read_events(self, now: float) -> bool | None:
        """Read what the worker reports.

        Returns:
            True if there was something, None if there is nothing now, False at the channel's end.
        """
        if self.channel is None:
            return False
        try:
            received = self.channel.recv(65536)
        except BlockingIOError:
            return None
        except ConnectionError:
            return False
        if self._failure is not None:
            self._failure += received
            return bool(received)
        reports, failed, reason = received.partition(bytes((WorkerEvent.FAILED,)))
        self.connections -= reports.count(WorkerEvent.CLOSED)
        self.saw_change = self.saw_change or WorkerEvent.CHANGED in reports
        if WorkerEvent.READY in reports:
            self.is_ready = True
            self._ready_at = now
        if failed:
            self._failure = reason
        return bool(received)

    def close_channel(self) -> None:
        """Let the worker read the end of the stream, if it lives, and hand it nothing more."""
        self.is_ready = False
        self._unsent = b""
        if self.channel is not None:
            self.channel.close()
            self.channel = None

    def ended(self, now: float) -> None:
        """The process is gone: note when a successor may follow.

        The delay doubles from 0.1 s to 30 s, and starts anew after a process that was up for 10 s.
        """
        was_stable = self._ready_at is not None and now - self._ready_at >= _STABLE
        self.close_channel()
        self.pid = 0
        self.connections = 0
        self.postpone(now, reset=was_stable)

    def postpone(self, now: float, *, reset: bool = False) -> None:
        """Set the time of the next attempt."""
        grown = 0.0 if reset else self._delay * 2
        self._delay = min(max(grown, _FIRST_DELAY), _MAX_DELAY)
        self.restart_at = now + self._delay

    def kill(self) -> None:
        """End the process at once."""
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)


def describe_exit(status: int) -> str:
    """Say how a process ended, from its wait status: "exit code 3", "signal 9 (SIGKILL)"."""
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return f"exit code {code}"
    return f"signal {-code} ({signal.strsignal(-code)})"
