"""Worker from the supervisor's view: process, channel, connections, load."""

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
# Bytes; faulthandler writes at most 100 calls, each a line with a path.
_MAX_TRACEBACK: Final = 64 * 1024


class WorkerProcess:
    """Worker of a supervisor: its process, the channel to it, its connections.

    The object outlives the process: a replacement is forked for the same object and index.

    Attributes:
        index: number from 0, also of its row of counters; logs count from 1.
        pid: the process id; 0 without a process.
        channel: the supervisor's end of the channel; None without a process, or once the other end
            is closed.
        connections: connections handed over and not reported as closed.
        handed_over: approximate number of connections handed over since the last pong.
        frames: frames handled in all, as of the last pong.
        work: frames handled between the last two pongs, plus frames in flight at the last one.
        is_ready: True once its resources have started.
        missed_pings: number of pings that were due while an earlier one was not answered.
        pending_reloads: reloads that it has not finished.
        restart_at: when to fork a replacement; None if there is a process, or none is to follow.
        turn: order in which connections were handed to workers, the latest has the highest.
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
        """Reason why the process could not start; None if it has reported none."""
        return None if self._failure is None else self._failure.decode(errors="replace")

    @property
    def traceback(self) -> str:
        """Stack of its main thread, as received after `request_traceback`."""
        return (self._traceback or b"").decode(errors="replace")

    @property
    def is_available(self) -> bool:
        """True if it accepts connections: it is ready, and has answered the last ping."""
        return self.is_ready and not self.missed_pings

    def started(self, pid: int, channel: socket.socket) -> None:
        """Set the process that was forked, and the channel to it."""
        channel.setblocking(False)
        self._forget_process()
        self.pid = pid
        self.channel = channel
        self.restart_at = None

    # --- what goes to the worker -------------------------------------------------------

    def send_command(self, command: SupervisorCommand) -> None:
        """Send a command after the unsent ones, or keep it until the channel has room."""
        if self.channel is not None:
            # A worker that already misses pings is not excused by the reload.
            if command is SupervisorCommand.RELOAD and not self.missed_pings:
                self.pending_reloads += 1
            self._unsent += bytes((command,))
            self.flush()

    def ping(self) -> bool:
        """Send a ping; return False if an earlier one has not been answered."""
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
                self.is_ready = False  # it has ended; `_reap` will find it
            except OSError:
                pass  # its buffer is full, or the system has no memory

    def hand_over(self, connection: socket.socket) -> bool:
        """Hand a connection over, and close it here; return False if the channel is full."""
        self.flush()
        if self.channel is None or self._unsent:
            return False
        try:
            send_descriptor(self.channel, connection.fileno())
        except OSError:
            # It has ended, its buffer is full, or too many descriptors are in transit.
            return False
        connection.close()
        self.connections += 1
        self.handed_over += 1
        return True

    def request_traceback(self) -> None:
        """Request the stack of its main thread; a stopped process does not answer."""
        self._traceback = b""
        self._signal(TRACEBACK_SIGNAL)

    # --- what comes from the worker ----------------------------------------------------

    def receive_events(self, now: float) -> bytes | None:
        """Receive and apply events.

        Returns:
            The events; empty at the end of the channel, None if there are none now.
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
        # Most connections that are closed within a second of their opening were health checks.
        self.handed_over = max(0, self.handed_over - closed)
        if WorkerEvent.READY in events:
            self.is_ready = True
            self._ready_at = now
        if WorkerEvent.RELOADED in events:
            reloads = self.pending_reloads - events.count(WorkerEvent.RELOADED)
            self.pending_reloads = max(0, reloads)
            self.missed_pings = 0  # it could not answer during the reload
        if WorkerEvent.PONG in events:
            self._is_pinged = False
            self.missed_pings = 0

    def report_work(self, frames: int, in_flight: int) -> None:
        """Set its work, from its published figures at a pong.

        Args:
            frames: NOTIFYs that it and its predecessors have handled in all.
            in_flight: NOTIFYs that are not answered yet.
        """
        self.work = max(0, frames - self.frames) + in_flight
        self.frames = frames
        self.handed_over = 0

    # --- its end -----------------------------------------------------------------------

    def close_channel(self) -> None:
        """Close the channel; a running worker then stops."""
        self.is_ready = False
        self._unsent = b""
        if self.channel is not None:
            self.channel.close()
            self.channel = None

    def ended(self, now: float) -> None:
        """Forget the process, which has ended, and schedule a replacement.

        The back-off doubles from 0.1 s to 30 s; a process that ran for 10 s resets it.
        """
        was_stable = self._ready_at is not None and now - self._ready_at >= _STABLE
        self.close_channel()
        self._forget_process()
        self.postpone(now, reset=was_stable)

    def postpone(self, now: float, *, reset: bool = False) -> None:
        """Schedule the next attempt to fork, with the next back-off."""
        grown = 0.0 if reset else self._delay * 2
        self._delay = min(max(grown, _FIRST_DELAY), _MAX_DELAY)
        self.restart_at = now + self._delay

    def kill(self) -> None:
        """Kill the process."""
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
