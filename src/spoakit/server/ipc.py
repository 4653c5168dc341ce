"""Messages between a supervisor and its worker, one byte each, over a Unix stream socket.

Both sides see the end of a stream, and single bytes need no framing. A descriptor is sent with the
byte of its command. Figures are not sent: a worker publishes them in its row of shared memory
before it answers a ping.
"""

import array
import os
import signal
import socket
from enum import IntEnum
from typing import Final

from spoakit.metrics.families import counter, gauge

FRAMES: Final = counter("spoakit_frames_total", "NOTIFY frames received.")
FRAMES_LOST: Final = counter(
    "spoakit_frames_lost_total",
    "NOTIFY frames that a worker had not answered when it ended unexpectedly.",
)
IN_FLIGHT: Final = gauge(
    "spoakit_frames_in_flight",
    "NOTIFY frames received and not answered yet.",
    lost_as=(FRAMES_LOST, ""),
)

TRACEBACK_SIGNAL: Final[int] = getattr(signal, "SIGRTMIN", signal.SIGPROF)
"""Signal on which a worker writes the stack of its main thread to its channel."""

_RECEIVE_SIZE: Final = 4096
_MAX_DESCRIPTORS: Final = 64
_CLOSE_ON_EXEC: Final[int] = getattr(socket, "MSG_CMSG_CLOEXEC", 0)


class SupervisorCommand(IntEnum):
    """Command of the supervisor: one byte."""

    CONNECTION = ord("C")
    """Adopt the connection whose descriptor comes with this byte."""
    REFUSE_CHECKS = ord("H")
    """Answer health checks with a DISCONNECT from now on."""
    DRAIN = ord("D")
    """Drain, and exit. The end of the stream means the same."""
    RELOAD = ord("R")
    """Load the configuration again, and report when that is done."""
    REOPEN_LOGS = ord("L")
    """Open the logfile again by its name."""
    PING = ord("P")
    """Publish the figures, and report that the event loop runs."""


class WorkerEvent(IntEnum):
    """Event of a worker: one byte."""

    READY = ord("+")
    """All resources are up."""
    CLOSED = ord("-")
    """A connection is closed."""
    RELOADED = ord("r")
    """A reload is done, successfully or not."""
    PONG = ord("p")
    """The answer to a ping."""
    FAILED = ord("!")
    """It cannot start; the rest of the stream is the reason as text."""


def send_descriptor(channel: socket.socket, descriptor: int) -> None:
    """Send a connection to a worker. Raises BlockingIOError if its channel is full."""
    rights = array.array("i", [descriptor])
    channel.sendmsg(
        [bytes((SupervisorCommand.CONNECTION,))], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)]
    )


def receive_commands(channel: socket.socket) -> tuple[bytes, list[socket.socket]]:
    """Return the received commands, and the connections that came with them, in order.

    If this process has no descriptors left, the kernel closes connections, and there are fewer than
    `CONNECTION` commands. Empty commands mean the end of the stream.
    """
    commands, descriptors, _, _ = socket.recv_fds(
        channel, _RECEIVE_SIZE, _MAX_DESCRIPTORS, _CLOSE_ON_EXEC
    )
    connections = []
    for descriptor in descriptors:
        os.set_inheritable(descriptor, False)  # Python 3.11 leaves recv_fds's flags unused
        connections.append(socket.socket(fileno=descriptor))
    return commands, connections
