"""A worker as its supervisor sees it."""

import os
import signal
import socket
from contextlib import suppress
from typing import Final

from spoakit.server.ipc import (
    TRACEBACK_SIGNAL,
    SupervisorCommand,
    WorkerEvent,
    send_descriptor,
)

_FIRST_DELAY: Final = 0.1
_MAX_DELAY: Final = 30.0
_STABLE: Final = 10.0
# faulthandler shows 100 calls at most; a line has a path.
_MAX_TRACEBACK: Final = 64 * 1024


class WorkerProcess:
    """One of the supervisor's workers: its process, the channel to it, its connections.

    It outlives the process: a successor is forked under the same object, with the same index.

    Attributes:
        index: 0 up, also the worker's row of counters; logs count from 1.
        pid: the process id, 0 between two processes.
        channel: the supervisor's end; None between two processes, or when its other end is closed.
        connections: handed over and not reported closed yet.
        handed_over: those of them that came after the last answer to a ping, roughly.
        frames: how many it had handled in all at that answer.
        work: frames that it handled between the last two answers, and those in flight at the last.
        is_ready: its resources are up.
        missed_pings: how often a ping was due while one was not answered.
        pending_reloads: reloads that it has not finished.
        restart_at: when to fork a successor; None when there is a process or none is to follow.
        turn: a number that grows with each connection handed to any worker.
    """

    __slots__ = (
        "_delay",
        "_failure",
        "_is_pinged",
        "_ready_at",
        "_traceback",
        "_unsent",
        "channel",
        "connections",
        "frames",
        "handed_over",
        "index",
        "is_ready",
        "missed_pings",
        "pending_reloads",
        "pid",
        "restart_at",
        "turn",
        "work",
    )

    def __init__(self, index: int) -> None:
        self.index = index
        self.frames = 0
        self.turn = 0
        self._delay = 0.0
        self._forget_process()
        self.restart_at: float | None = None

    def _forget_process(self) -> None:
        self.pid = 0
        self.channel: socket.socket | None = None
        self.connections = 0
        self.handed_over = 0
        self.work = 0
        self.is_ready = False
        self.missed_pings = 0
        self.pending_reloads = 0
        self._is_pinged = False
        self._ready_at: float | None = None
        self._unsent = b""
        self._failure: bytes | None = None
        self._traceback: bytes | None = None

    def __str__(self) -> str:
        return f"worker {self.index + 1} (process {self.pid})"

    @property
    def failure(self) -> str | None:
        """The reason that the process gave for not being able to start."""
        return None if self._failure is None else self._failure.decode(errors="replace")

    @property
    def traceback(self) -> str:
        """The calls under way in its main thread, as far as they came after the request."""
        return (self._traceback or b"").decode(errors="replace")

    @property
    def is_available(self) -> bool:
        """True if it takes connections: it is ready, and has answered the last ping."""
        return self.is_ready and not self.missed_pings

    def started(self, pid: int, channel: socket.socket) -> None:
        """Note the process that was forked."""
        channel.setblocking(False)
        self._forget_process()
        self.pid = pid
        self.channel = channel
        self.restart_at = None

    # --- what goes to the worker -------------------------------------------------------

    def send_command(self, command: SupervisorCommand) -> None:
        """Send a command, behind what was sent before; kept until the worker takes it."""
        if self.channel is not None:
            # A worker that hangs already has no excuse in a reload.
            if command is SupervisorCommand.RELOAD and not self.missed_pings:
                self.pending_reloads += 1
            self._unsent += bytes((command,))
            self.flush()

    def ping(self) -> bool:
        """Ask for a sign of life; False while an earlier ping is not answered."""
        if self._is_pinged:
            return False
        self._is_pinged = True
        self.send_command(SupervisorCommand.PING)
        return True

    @property
    def has_unsent(self) -> bool:
        """True if commands wait to be sent."""
        return bool(self._unsent)

    def flush(self) -> None:
        """Try to send the commands that wait."""
        if self._unsent and self.channel is not None:
            try:
                self._unsent = self._unsent[self.channel.send(self._unsent) :]
            except ConnectionError:
                self._unsent = b""
                self.is_ready = False  # it is dying; the kernel will report it
            except OSError:
                pass  # it does not read now, or the system has no memory for this

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
        self.handed_over += 1
        return True

    def request_traceback(self) -> None:
        """Have the calls of its main thread written to the channel; a stopped process cannot."""
        self._traceback = b""
        self._signal(TRACEBACK_SIGNAL)

    # --- what comes from the worker ----------------------------------------------------

    def receive_events(self, now: float) -> bytes | None:
        """Read what the worker reports.

        Returns:
            The events, empty at the channel's end; None if there is nothing now.
        """
        if self.channel is None:
            return b""
        try:
            received = self.channel.recv(65536)
        except BlockingIOError:
            return None
        except ConnectionError:
            return b""
        if self._failure is not None:
            self._failure += received
        elif self._traceback is not None:
            self._traceback = (self._traceback + received)[:_MAX_TRACEBACK]
        else:
            events, failed, reason = received.partition(bytes((WorkerEvent.FAILED,)))
            self._note(events, now)
            if failed:
                self._failure = reason
        return received

    def _note(self, events: bytes, now: float) -> None:
        closed = events.count(WorkerEvent.CLOSED)
        self.connections -= closed
        # A connection that is closed within a second of its opening was a health check, mostly.
        self.handed_over = max(0, self.handed_over - closed)
        if WorkerEvent.READY in events:
            self.is_ready = True
            self._ready_at = now
        if WorkerEvent.RELOADED in events:
            reloads = self.pending_reloads - events.count(WorkerEvent.RELOADED)
            self.pending_reloads = max(0, reloads)
            self.missed_pings = 0  # it could not answer meanwhile
        if WorkerEvent.PONG in events:
            self._is_pinged = False
            self.missed_pings = 0

    def report_work(self, frames: int, in_flight: int) -> None:
        """Note how much it has to do, from its figures at an answer to a ping.

        Args:
            frames: NOTIFYs that it and its predecessors have handled in all.
            in_flight: those that are not answered yet.
        """
        self.work = max(0, frames - self.frames) + in_flight
        self.frames = frames
        self.handed_over = 0

    # --- its end -----------------------------------------------------------------------

    def close_channel(self) -> None:
        """Let the worker read the end of the stream, if it lives, and hand it nothing more."""
        self.is_ready = False
        self._unsent = b""
        if self.channel is not None:
            self.channel.close()
            self.channel = None

    def ended(self, now: float) -> None:
        """Note that the process is gone, and when a successor may follow.

        The delay doubles from 0.1 s to 30 s, and starts anew after a process that was up for 10 s.
        """
        was_stable = self._ready_at is not None and now - self._ready_at >= _STABLE
        self.close_channel()
        self._forget_process()
        self.postpone(now, reset=was_stable)

    def postpone(self, now: float, *, reset: bool = False) -> None:
        """Set the time of the next attempt to fork."""
        grown = 0.0 if reset else self._delay * 2
        self._delay = min(max(grown, _FIRST_DELAY), _MAX_DELAY)
        self.restart_at = now + self._delay

    def kill(self) -> None:
        """End the process at once."""
        self._signal(signal.SIGKILL)

    def _signal(self, signum: int) -> None:
        if self.pid:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signum)


def describe_exit(status: int) -> str:
    """Describe how a process ended, from its wait status: "exit code 3", "signal 9 (Killed)"."""
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return f"exit code {code}"
    return f"signal {-code} ({signal.strsignal(-code)})"


def is_traced(pid: int | str) -> bool:
    """Return whether a debugger or tracer is attached to a process (Linux only)."""
    try:
        with open(f"/proc/{pid}/status", "rb") as status:
            return not status.read().partition(b"\nTracerPid:")[2].lstrip().startswith(b"0\n")
    except OSError:
        return False
