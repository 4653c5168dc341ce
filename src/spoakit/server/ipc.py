"""Messages between a supervisor and its worker, one byte each, over a Unix stream socket.

A stream, since its end is then seen by both; single bytes, since they need no framing. A descriptor
travels with its command's byte. Figures are in the worker's row of shared memory: it publishes them
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
    "NOTIFY frames that were with a worker when it ended unexpectedly.",
)
IN_FLIGHT: Final = gauge(
    "spoakit_frames_in_flight",
    "NOTIFY frames received and not answered yet.",
    lost_as=(FRAMES_LOST, ""),
)

TRACEBACK_SIGNAL: Final[int] = getattr(signal, "SIGRTMIN", signal.SIGPROF)
"""Has a worker write the calls of its main thread to its channel; then it is killed."""

_RECEIVE_SIZE: Final = 4096
_MAX_DESCRIPTORS: Final = 64
_CLOSE_ON_EXEC: Final[int] = getattr(socket, "MSG_CMSG_CLOEXEC", 0)


class SupervisorCommand(IntEnum):
    """A byte from the supervisor."""

    CONNECTION = ord("C")
    """Take the connection whose descriptor comes with this byte."""
    REFUSE_CHECKS = ord("H")
    """Answer health checks with a DISCONNECT from now on."""
    DRAIN = ord("D")
    """Finish what is under way, and leave. The end of the stream means the same."""
    RELOAD = ord("R")
    """Load the configuration again, and report when that is done."""
    REOPEN_LOGS = ord("L")
    """Open the logfile again by its name."""
    PING = ord("P")
    """Publish the figures, and report that the event loop runs."""


class WorkerEvent(IntEnum):
    """A byte from the worker."""

    READY = ord("+")
    """All resources are up."""
    CLOSED = ord("-")
    """One of the connections is gone."""
    RELOADED = ord("r")
    """A reload is done, whatever came of it."""
    PONG = ord("p")
    """The answer to a ping."""
    FAILED = ord("!")
    """It cannot start; what follows to the end is the reason, as text."""


def send_descriptor(channel: socket.socket, descriptor: int) -> None:
    """Send a connection to a worker. Raises BlockingIOError when it has too many to take yet."""
    rights = array.array("i", [descriptor])
    channel.sendmsg(
        [bytes((SupervisorCommand.CONNECTION,))], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)]
    )


def receive_commands(channel: socket.socket) -> tuple[bytes, list[socket.socket]]:
    """Return the commands received, and the connections that came with them, in their order.

    There are fewer connections than `CONNECTION` commands when this process ran out of descriptors:
    the kernel has closed them then. Empty commands are the end of the stream.
    """
    commands, descriptors, _, _ = socket.recv_fds(
        channel, _RECEIVE_SIZE, _MAX_DESCRIPTORS, _CLOSE_ON_EXEC
    )
    connections = []
    for descriptor in descriptors:
        os.set_inheritable(descriptor, False)  # Python 3.11 leaves recv_fds's flags unused
        connections.append(socket.socket(fileno=descriptor))
    return commands, connections
