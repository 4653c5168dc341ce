"""Options of spoa-mirror: one table for parsing and for the help."""

import os
import sys
from dataclasses import replace
from typing import Final, get_args

from spoakit.apps.mirror.config.schema import HttpVersion, Truncated, TruncatedSuspect
from spoakit.apps.mirror.url import TargetURL
from spoakit.cli import common_options as common
from spoakit.cli import values
from spoakit.cli.option_table import Group, Option, OptionParser
from spoakit.server import LOOPS

_SYNOPSIS: Final = """\
Usage: spoa-mirror { -h --help }
       spoa-mirror { -V --version }
       spoa-mirror { -r --runtime=TIME } [OPTION]...
"""
_NOTES: Final = f"""\
Supported libev backends: {", ".join(LOOPS)}.
libev itself is not used: auto is uvloop if it is installed, otherwise asyncio; the
last four are Python's event loop on the system call with that name.

{common.CAPABILITY_NOTE}
{common.LOGFILE_NOTE}  If a capital
letter is used for the mode, then line buffering is used when writing to the
log file, instead of writing what 100 ms bring.

{common.TIME_NOTE}
A worker is a process.  Without a URL, requests are acknowledged and not
mirrored.  {common.SIGNAL_NOTE}"""


def usable_cpus() -> int:
    """Return the number of CPUs that this process may use, up to `MAX_WORKERS`."""
    if sys.platform == "linux":
        return min(len(os.sched_getaffinity(0)), common.MAX_WORKERS)
    return os.cpu_count() or 1


_TARGETS_OF_C: Final = (
    Option(
        "-u, --mirror-url",
        "URL",
        "Specify the URL for the HTTP mirroring; repeat it for more.",
        TargetURL.parse,
        repeated=True,
    ),
    Option(
        "-I, --mirror-interface",
        "NAME",
        "Specify the interface/address for outgoing connections.",
        values.interface,
    ),
    Option(
        "-P, --mirror-local-port",
        "VALUE",
        "Specify the local port range for outgoing connections.",
        values.ports,
    ),
)
_COMMON: Final = (
    common.ADDRESS,
    replace(
        common.EVENT_BACKEND,
        flags="-B, --libev-backend",
        aliases=("--event-backend", "--loop"),
    ),
    common.BACKLOG,
    common.CAPABILITY,
    common.DAEMONIZE,
    Option(
        "-d, --debug",
        "LEVEL",
        "Log each frame, if the level is not 0 (default: 0).",
        values.number(-1, 511),
        "0",
    ),
    common.PIDFILE,
    common.FRAMES,
    common.HELP,
    common.MONITOR_INTERVAL,
    common.LOGFILE,
    common.MAX_FRAME_SIZE,
    replace(
        common.NUM_WORKERS,
        help=f"Specify the number of workers (default: {usable_cpus()}, the usable CPUs).",
        default=str(usable_cpus()),
    ),
    replace(
        common.PORT,
        help="Specify the port to listen on (default: 12345).",
        parse=values.port,
    ),
    replace(
        common.RUNTIME,
        help="Run this program for the specified time (0 = unlimited).",
        missing="runtime value not set: give -r, with 0 for unlimited",
        unless="check",
    ),
    common.PROCESSING_DELAY,
    *_TARGETS_OF_C,
    common.VERSION,
)
_TARGETS: Final = (
    Option(
        "--http",
        "VERSION",
        "1.1, 2 or auto: 2 if an HTTPS server agrees (default: auto).",
        values.choice(get_args(HttpVersion)),
    ),
    Option("--insecure", "", "Accept any certificate of an HTTPS server."),
    Option(
        "--truncated",
        "WHAT",
        "skip, send or mark what HAProxy's buffer cut (default: skip).",
        values.choice(get_args(Truncated)),
    ),
    Option(
        "--truncated-suspect",
        "WHAT",
        "send or skip what it probably cut (default: send).",
        values.choice(get_args(TruncatedSuspect)),
    ),
    Option(
        "--sample", "PERCENT", "Mirror this share of the requests (default: 100).", values.percent
    ),
    Option(
        "--host",
        "NAME",
        "Host of the copies: keep, target or a name (default: keep).",
        values.host,
    ),
    Option(
        "--marker",
        "NAME[:VALUE]",
        "Header field of copies, not copied again; VALUE is 1 by default.",
        values.marker,
    ),
)
_CONFIGURATION: Final = (
    Option("--config", "FILE", "Read the targets from a TOML file, instead of -u."),
    common.WATCH,
    Option("--check", "", "Check configuration, files and targets, and end."),
)
_LOG: Final = (
    Option(
        "--access-log",
        "FILE",
        "Append the lines to a file, reopened on USR1 (default: stdout).",
        values.access_log,
    ),
    Option(
        "--log-sample", "PERCENT", "Log this share of the requests (default: 100).", values.percent
    ),
    Option("--quiet", "", "Log no requests at all."),
)
_STOPPING: Final = (
    common.WORKER_TIMEOUT,
    replace(common.DRAIN, help="Time for connections, and for queues then (default: 10s)."),
    common.DRAIN_CHECKS,
)

# Options for the targets of -u, which are not allowed with --config.
TARGET_OPTIONS: Final = (*_TARGETS_OF_C, *_TARGETS)

_GROUPS: Final[tuple[Group, ...]] = (
    ("Options are:", _COMMON),
    ("The targets of -u:", _TARGETS),
    ("The configuration:", _CONFIGURATION),
    ("The log of requests:", _LOG),
    common.LOGGING,
    common.LISTENING,
    common.LIMITS,
    ("Stopping:", _STOPPING),
)


def mirror_parser() -> OptionParser:
    """Return the parser of spoa-mirror's options."""
    return OptionParser("spoa-mirror", _SYNOPSIS, _GROUPS, _NOTES)
