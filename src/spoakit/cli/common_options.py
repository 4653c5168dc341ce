"""Options that commands share, and the server settings made of their values."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from spoakit.apps.checks import check_writable
from spoakit.cli import values
from spoakit.cli.option_table import Group, Option
from spoakit.cli.options import tls_settings
from spoakit.cli.values import NotAllowedError
from spoakit.exceptions import ConfigurationError
from spoakit.log_output import LOG_FORMATS, LOG_LEVELS, LogLevel, configure_logging
from spoakit.server import (
    CAPABILITIES,
    LOOPS,
    MAX_CONNECTION_AGE,
    MAX_CONNECTIONS,
    MAX_FRAME_SIZE_CAP,
    MAX_FRAMES,
    MAX_IN_FLIGHT,
    MAX_MESSAGES,
    MAX_REASSEMBLED_SIZE,
    Drain,
    Limits,
    Listen,
    ListenAddress,
    ServerSettings,
    begin_logfile,
    parse_address,
    parse_network,
    server_context,
)
from spoakit.spop import MIN_FRAME_SIZE

MAX_WORKERS: Final = 1000
_DAY: Final = 86400.0
_MAX_RUNTIME: Final = 7 * _DAY
_OFF: Final = ("no-", "!")
_DEFAULTS: Final = ServerSettings()


def capability(text: str) -> tuple[str, bool]:
    """Parse the name of a capability, with no- or ! before it to switch it off."""
    name = text.lower()
    prefix = next((prefix for prefix in _OFF if name.startswith(prefix)), "")
    name = name.removeprefix(prefix)
    if name not in CAPABILITIES:
        raise NotAllowedError(f"allowed: {', '.join(CAPABILITIES)}, and no- before any of them")
    return name, not prefix


# --- options with a letter, as in the C programs ----------------------------------------

ADDRESS: Final = Option(
    "-a, --address",
    "NAME",
    'Specify the address to listen on (default: "0.0.0.0").',
)
EVENT_BACKEND: Final = Option(
    "-B, --event-backend",
    "TYPE",
    "Specify the event loop (default: AUTO).",
    values.choice(LOOPS),
    "auto",
    aliases=("--libev-backend", "--loop"),
    name="loop",
)
BACKLOG: Final = Option(
    "-b, --connection-backlog",
    "VALUE",
    "Specify the connection backlog size (default: 1024).",
    values.number(1, 65535),
    "1024",
    aliases=("--backlog",),
)
CAPABILITY: Final = Option(
    "-c, --capability",
    "NAME",
    "Enable the specified capability, or disable it: no-NAME.",
    capability,
    repeated=True,
)
DAEMONIZE: Final = Option("-D, --daemonize", "", "Run this program as a daemon.")
DEBUG: Final = Option("-d, --debug", "", "Enable the debug mode: log each frame.")
PIDFILE: Final = Option("-F, --pidfile", "FILE", "Specifies a file to write the process-id to.")
FRAMES: Final = Option(
    "-f, --frames",
    "VALUE",
    "Close a connection after this many frames (default: never).",
    values.number(0, MAX_FRAMES),
    "0",
    aliases=("--max-frames",),
)
HELP: Final = Option("-h, --help", "", "Show this text.")
MONITOR_INTERVAL: Final = Option(
    "-i, --monitor-interval",
    "TIME",
    "Log each worker's counters at this interval (default: never).",
    values.time(1, 3600),
)
LOGFILE: Final = Option(
    "-l, --logfile",
    "[MODE:]FILE",
    "Log all messages to logfile (default: stdout/stderr).",
    values.logfile,
)
MAX_FRAME_SIZE: Final = Option(
    "-m, --max-frame-size",
    "VALUE",
    "Specify the maximum frame size (default: HAProxy's).",
    values.number(512, MAX_FRAME_SIZE_CAP),
)
NUM_WORKERS: Final = Option(
    "-n, --num-workers",
    "VALUE",
    "Specify the number of workers (default: 5).",
    values.number(1, MAX_WORKERS),
    "5",
    aliases=("--workers",),
)
PORT: Final = Option(
    "-p, --port",
    "VALUE",
    "Specify the port to listen on (default: 12345; 0: any).",
    values.any_port,
)
RUNTIME: Final = Option(
    "-r, --runtime",
    "TIME",
    "Run this program for the specified time (default: unlimited).",
    values.time(0, _MAX_RUNTIME),
)
PROCESSING_DELAY: Final = Option(
    "-t, --processing-delay",
    "TIME",
    "Set a delay to process a message (default: 0).",
    values.time(0, 1),
)
VERSION: Final = Option("-V, --version", "", "Show program version.")

LETTERS: Final = (
    ADDRESS,
    EVENT_BACKEND,
    BACKLOG,
    CAPABILITY,
    DAEMONIZE,
    DEBUG,
    PIDFILE,
    FRAMES,
    HELP,
    MONITOR_INTERVAL,
    LOGFILE,
    MAX_FRAME_SIZE,
    NUM_WORKERS,
    PORT,
    RUNTIME,
)
"""Options of all programs, in the order of the help."""

# --- options without a letter ---------------------------------------------------------

LOGGING: Final[Group] = (
    "The log:",
    (
        Option(
            "--log-level",
            "LEVEL",
            "debug, info, warning or error (default: info).",
            values.choice(LOG_LEVELS),
            "info",
        ),
        Option(
            "--log-format",
            "FORMAT",
            "text, or json for an object a line (default: text).",
            values.choice(LOG_FORMATS),
        ),
    ),
)
WATCH: Final = Option("--watch", "", "Reload the file when it changes, as on SIGHUP.")
LISTENING: Final[Group] = (
    "Listening:",
    (
        Option(
            "--listen",
            "URL",
            "tcp://HOST:PORT or unix:PATH, beside -a, -p, --unix; repeatable.",
            parse_address,
            repeated=True,
        ),
        Option("--unix", "PATH", "Listen on this Unix socket."),
        Option(
            "--unix-mode",
            "MODE",
            "Permissions of Unix sockets, octal (default: 660).",
            values.mode,
            "660",
        ),
        Option("--unix-owner", "USER", "Owner of Unix sockets, a name or a number."),
        Option("--unix-group", "GROUP", "Group of Unix sockets, a name or a number."),
        Option(
            "--allow",
            "CIDR",
            "Only this network may connect; repeat it for more.",
            parse_network,
            repeated=True,
        ),
        Option("--tls-cert", "FILE", "Accept TLS connections only, with this certificate."),
        Option("--tls-key", "FILE", "Its key, if it is not in the same file."),
        Option("--tls-ca", "FILE", "Require client certificates of these authorities."),
    ),
)
LIMITS: Final[Group] = (
    "Limits:",
    (
        Option(
            "--max-connections",
            "N",
            "Connections of all workers together (default: 4096).",
            values.number(1, MAX_CONNECTIONS),
            "4096",
        ),
        Option(
            "--max-in-flight",
            "N",
            "Frames of a connection without an ACK (default: 1024).",
            values.number(1, MAX_IN_FLIGHT),
            "1024",
        ),
        Option(
            "--max-messages",
            "N",
            "Close a connection for a frame of more messages (default: 1000).",
            values.number(1, MAX_MESSAGES),
            "1000",
        ),
        Option(
            "--frame-size-cap",
            "SIZE",
            "The largest frame that is accepted at all (default: 1MiB).",
            values.size(MIN_FRAME_SIZE, MAX_FRAME_SIZE_CAP),
        ),
        Option(
            "--max-reassembled",
            "SIZE",
            "The largest frame in fragments (default: 4MiB).",
            values.size(MIN_FRAME_SIZE, MAX_REASSEMBLED_SIZE),
            "4MiB",
        ),
        Option(
            "--hello-timeout",
            "TIME",
            "Time for a connection's HELLO (default: 10s).",
            values.duration(0.001, _DAY),
            "10s",
        ),
        Option(
            "--max-connection-age",
            "TIME",
            "Close older connections; 0 = never (default: 0).",
            values.duration(1, MAX_CONNECTION_AGE, off=True),
            "0",
        ),
    ),
)
WORKER_TIMEOUT: Final = Option(
    "--worker-timeout",
    "TIME",
    "Replace a worker that hangs longer; 0 = never (default: 10s).",
    values.duration(1, _DAY, off=True),
    "10s",
)
DRAIN: Final = Option(
    "--drain", "TIME", "Time for connections to end (default: 10s).", values.duration(0, _DAY)
)
DRAIN_CHECKS: Final = Option(
    "--drain-checks",
    "TIME",
    "Before that, refuse health checks and serve on (default: 0).",
    values.duration(0, _DAY),
    "0",
)

# --- ends of help texts ---------------------------------------------------------------

CAPABILITY_NOTE: Final = f"""\
Supported capabilities: {", ".join(CAPABILITIES)}.  The first two are
enabled unless they are switched off, as with -c no-pipelining.
"""
LOGFILE_NOTE: Final = """\
Allowed logging file opening modes: a, w.  The 'a' mode allows opening or
creating file for writing at end-of-file.  The 'w' mode allows truncating the
file to zero length or creating a new file.  The default is 'a'."""
TIME_NOTE: Final = """\
With a letter's option, a time is specified in milliseconds by default, but can be
in any other unit if the number is suffixed by a unit (us, ms, s, m, h, d).
The times of all other options need their unit.
"""
SIGNAL_NOTE: Final = """\
Signals: TERM and INT stop, HUP reloads the configuration, USR1
reopens the logfile, USR2 logs all counters.

SPDX-License-Identifier: Apache-2.0
"""


def begin_logging(given: Mapping[str, Any]) -> None:
    """Configure logging by these options' values, before anything is logged.

    Raises:
        StartupError: the logfile cannot be written.
    """
    level: LogLevel = "debug" if given["debug"] else given["log_level"]
    configure_logging(level, given["log_format"] or "text")
    if given["logfile"] is not None:
        begin_logfile(given["logfile"])


def server_settings(given: Mapping[str, Any]) -> ServerSettings:
    """Return the server settings for these options' values, which are keyed by name.

    Raises:
        ConfigurationError: values contradict each other.
    """
    drain = _DEFAULTS.drain.timeout if given["drain"] is None else given["drain"]
    return ServerSettings(
        listen=Listen(
            _addresses(given),
            unix_mode=given["unix_mode"],
            unix_owner=given["unix_owner"],
            unix_group=given["unix_group"],
            backlog=given["connection_backlog"],
            allow=tuple(given["allow"]),
            tls=tls_settings(given["tls_cert"], given["tls_key"], given["tls_ca"]),
        ),
        limits=_limits(given),
        drain=Drain(drain, given["drain_checks"]),
        workers=given["num_workers"],
        worker_timeout=given["worker_timeout"],
        capabilities=_capabilities(given["capability"]),
        runtime=given["runtime"] or None,
        pidfile=given["pidfile"],
        daemonize=given["daemonize"],
        logfile=given["logfile"],
        monitor=given["monitor_interval"],
        loop=given["loop"],
    )


def check_server_files(settings: ServerSettings) -> None:
    """Check the files of a server for --check, without writing any.

    Raises:
        ConfigurationError: a file cannot be used; the text names the option and the file.
    """
    if settings.listen.tls is not None:
        server_context(settings.listen.tls)
    if settings.logfile is not None:
        check_writable("--logfile", settings.logfile.path)
    if settings.pidfile is not None:
        check_writable("--pidfile", settings.pidfile)


def _addresses(given: Mapping[str, Any]) -> tuple[ListenAddress, ...]:
    """Return the addresses of --listen, and of -a, -p and --unix if one of these is given."""
    address, port, unix = given["address"], given["port"], given["unix"]
    if given["listen"] and (address, port, unix) == (None, None, None):
        return tuple(given["listen"])
    return (*Listen.at(address, port, unix=unix).addresses, *given["listen"])


def watching(settings: ServerSettings, given: Mapping[str, Any]) -> ServerSettings:
    """Return the settings with the configuration file watched, if --watch is given.

    Raises:
        ConfigurationError: --config is missing.
    """
    if not given["watch"]:
        return settings
    if given["config"] is None:
        raise ConfigurationError("--watch needs --config")
    return replace(settings, watch=given["config"])


def _limits(given: Mapping[str, Any]) -> Limits:
    frame_size = given["max_frame_size"] or 0
    cap = given["frame_size_cap"]
    if cap is None:
        cap = max(frame_size, _DEFAULTS.limits.frame_size_cap)
    return Limits(
        connections=given["max_connections"],
        in_flight=given["max_in_flight"],
        frame_size=frame_size,
        frame_size_cap=cap,
        reassembled_size=given["max_reassembled"],
        hello_timeout=given["hello_timeout"],
        frames=given["frames"],
        messages=given["max_messages"],
        connection_age=given["max_connection_age"],
    )


def _capabilities(switches: Sequence[tuple[str, bool]]) -> tuple[str, ...]:
    """Return the capabilities to announce; the last switch of each counts."""
    wanted = dict.fromkeys(_DEFAULTS.capabilities, True) | dict(switches)
    return tuple(name for name, is_on in wanted.items() if is_on)
