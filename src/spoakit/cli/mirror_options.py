"""The options of spoa-mirror: one table, from which they are parsed and explained."""

import argparse
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, NoReturn, get_args

from spoakit.apps.mirror.settings import HttpVersion, Truncated
from spoakit.apps.mirror.url import TargetURL
from spoakit.cli import values
from spoakit.cli.options import EX_USAGE, Parser
from spoakit.cli.values import Reader
from spoakit.exceptions import ConfigurationError
from spoakit.server.settings import CAPABILITIES, LOOPS, MAX_FRAME_SIZE_CAP, parse_network

BACKENDS: Final = ("auto", "select", "poll", "epoll", "linuxaio")
MAX_WORKERS: Final = 1000
_DAY: Final = 86400.0
_MAX_RUNTIME: Final = 7 * _DAY
_OFF: Final = ("no-", "!")

USAGE: Final = """\
Usage: spoa-mirror { -h --help }
       spoa-mirror { -V --version }
       spoa-mirror { -r --runtime=TIME } [OPTION]...
"""
_NOTES: Final = f"""\
Supported libev backends: {", ".join(BACKENDS)}.  There is no
libev here: auto is uvloop, the others are Python's event loop on the system
call of that name.

Supported capabilities: {", ".join(CAPABILITIES)}.  The first two are
enabled unless they are switched off, as with -c no-pipelining.

Allowed logging file opening modes: a, w.  The 'a' mode allows opening or
creating file for writing at end-of-file.  The 'w' mode allows truncating the
file to zero length or creating a new file.  The default is 'a'.  If a capital
letter is used for the mode, then line buffering is used when writing to the
log file, instead of writing what 100 ms bring.

The time delay/interval is specified in milliseconds by default, but can be
in any other unit if the number is suffixed by a unit (us, ms, s, m, h, d).

A worker is a process.  Without a URL, requests are acknowledged and not
mirrored.  Signals: TERM and INT stop, HUP reloads the configuration, USR1
reopens the logfile, USR2 logs all counters.

SPDX-License-Identifier: Apache-2.0
"""


def usable_cpus() -> int:
    """Return how many CPUs this process may use, up to the number of workers there may be."""
    if sys.platform == "linux":
        return min(len(os.sched_getaffinity(0)), MAX_WORKERS)
    return os.cpu_count() or 1


def capability(text: str) -> tuple[str, bool]:
    """Read the name of a capability, and whether it is to be announced or switched off."""
    name = text.lower()
    prefix = next((prefix for prefix in _OFF if name.startswith(prefix)), "")
    name = name.removeprefix(prefix)
    if name not in CAPABILITIES:
        raise ConfigurationError(
            f"unsupported capability {text!r} (allowed: {', '.join(CAPABILITIES)}, and no- before "
            "any of them)"
        )
    return name, not prefix


@dataclass(frozen=True, slots=True)
class Option:
    """An option.

    Attributes:
        flags: "-a, --address", or the long one alone.
        value: what its value is called in the help; empty for a switch.
        help: a sentence or two.
        read: makes the value from its text.
        default: the text that it has when it is not given.
        repeated: all values count, not only the last.
        alias: another long flag.
    """

    flags: str
    value: str
    help: str
    read: Reader = values.text
    default: str | None = None
    repeated: bool = False
    alias: str = ""

    @property
    def name(self) -> str:
        """Its name as a key: "monitor_interval"."""
        return self.flag.removeprefix("--").replace("-", "_")

    @property
    def flag(self) -> str:
        """The long flag."""
        return self.flags.rpartition(" ")[2]

    def add_to(self, parser: argparse.ArgumentParser) -> None:
        """Add it to a parser, which leaves its value as text."""
        flags = [*self.flags.split(", "), *([self.alias] if self.alias else [])]
        if not self.value:
            parser.add_argument(*flags, dest=self.name, action="store_true")
        elif self.repeated:
            parser.add_argument(*flags, dest=self.name, action="append", default=[])
        else:
            parser.add_argument(*flags, dest=self.name, default=self.default)

    def read_from(self, options: argparse.Namespace) -> Any:
        """Return its value: None if it has none, a list if it is repeated, or a bool.

        Raises:
            ConfigurationError: the value is wrong; the text names the option.
        """
        given = getattr(options, self.name)
        if not self.value or given is None:
            return given
        try:
            return [self.read(text) for text in given] if self.repeated else self.read(given)
        except ConfigurationError as error:
            reason = str(error).removeprefix(self.flag.removeprefix("--") + ": ")
            raise ConfigurationError(f"{self.flag}: {reason}") from None

    def explain(self) -> str:
        """Return its line of the help."""
        shown = f"    {self.flags}" if self.flags.startswith("--") else self.flags
        shown += f"={self.value}" if self.value else ""
        return f"  {shown:<32}{self.help}"


_COMMON: Final = (
    Option(
        "-a, --address",
        "NAME",
        'Specify the address to listen on (default: "0.0.0.0").',
        default="0.0.0.0",
    ),
    Option(
        "-B, --libev-backend",
        "TYPE",
        "Specify the event loop (default: AUTO).",
        values.choice(LOOPS),
        "auto",
        alias="--event-backend",
    ),
    Option(
        "-b, --connection-backlog",
        "VALUE",
        "Specify the connection backlog size (default: 1024).",
        values.number(1, 65535),
        "1024",
    ),
    Option(
        "-c, --capability",
        "NAME",
        "Enable the specified capability, or disable it: no-NAME.",
        capability,
        repeated=True,
    ),
    Option("-D, --daemonize", "", "Run this program as a daemon."),
    Option(
        "-d, --debug",
        "LEVEL",
        "Log each frame, if the level is not 0 (default: 0).",
        values.number(-1, 511),
        "0",
    ),
    Option("-F, --pidfile", "FILE", "Specifies a file to write the process-id to."),
    Option("-h, --help", "", "Show this text."),
    Option(
        "-i, --monitor-interval",
        "TIME",
        "Log each worker's counters at this interval (default: never).",
        values.time(1, 3600),
    ),
    Option(
        "-l, --logfile",
        "[MODE:]FILE",
        "Log all messages to logfile (default: stdout/stderr).",
        values.logfile,
    ),
    Option(
        "-m, --max-frame-size",
        "VALUE",
        "Specify the maximum frame size (default: that of HAProxy).",
        values.number(512, MAX_FRAME_SIZE_CAP),
    ),
    Option(
        "-n, --num-workers",
        "VALUE",
        f"Specify the number of workers (default: {usable_cpus()}, the usable CPUs).",
        values.number(1, MAX_WORKERS),
        str(usable_cpus()),
    ),
    Option(
        "-p, --port",
        "VALUE",
        "Specify the port to listen on (default: 12345).",
        values.port,
        "12345",
    ),
    Option(
        "-r, --runtime",
        "TIME",
        "Run this program for the specified time (0 = unlimited).",
        values.time(0, _MAX_RUNTIME),
    ),
    Option(
        "-t, --processing-delay",
        "TIME",
        "Set a delay to process a message (default: 0).",
        values.time(0, 1),
    ),
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
    Option("-V, --version", "", "Show program version."),
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
    Option("--sample", "PERCENT", "Mirror so many of the requests (default: 100).", values.percent),
    Option(
        "--host",
        "NAME",
        "Host of the copies: keep, target or a name (default: keep).",
        values.host,
    ),
    Option(
        "--marker",
        "NAME[:VALUE]",
        "Add this header field to copies, with 1 if no value is given.",
        values.marker,
    ),
)
_CONFIGURATION: Final = (
    Option("--config", "FILE", "Read the targets from a TOML file, instead of -u."),
    Option("--watch", "", "Reload the file when it changes, as on SIGHUP."),
)
_LOG: Final = (
    Option(
        "--log-format",
        "FORMAT",
        "text or json (default: text).",
        values.choice(("text", "json")),
    ),
    Option(
        "--log-sample", "PERCENT", "Log so many of the requests (default: 100).", values.percent
    ),
    Option("--quiet", "", "Log no requests at all."),
)
_LISTENING: Final = (
    Option("--unix", "PATH", "Listen on this Unix socket instead."),
    Option(
        "--allow",
        "CIDR",
        "Only this network may connect; repeat it for more.",
        parse_network,
        repeated=True,
    ),
    Option("--tls-cert", "FILE", "Take TLS connections only, with this certificate."),
    Option("--tls-key", "FILE", "Its key, if it is not in the same file."),
    Option("--tls-ca", "FILE", "Ask for certificates that come from these authorities."),
)
_STOPPING: Final = (
    Option(
        "--drain",
        "TIME",
        "Time for connections, and for queues then (default: 10s).",
        values.time(0, _DAY),
    ),
    Option(
        "--drain-checks",
        "TIME",
        "Before that, refuse health checks and serve on (default: 0).",
        values.time(0, _DAY),
        "0",
    ),
)

# Those that say something of the targets of -u, and nothing where --config does.
OF_TARGETS: Final = (*_COMMON[-4:-1], *_TARGETS)

_GROUPS: Final = (
    ("Options are:", _COMMON),
    ("The targets of -u:", _TARGETS),
    ("A configuration file:", _CONFIGURATION),
    ("The log of requests:", _LOG),
    ("Listening:", _LISTENING),
    ("Stopping:", _STOPPING),
)


def all_options() -> Iterator[Option]:
    """Yield the options in the order of the help."""
    for _, options in _GROUPS:
        yield from options


def help_text() -> str:
    """Return what -h shows."""
    tables = [
        "\n".join((title, *(option.explain() for option in options))) for title, options in _GROUPS
    ]
    return "\n\n".join((f"\n{USAGE.rstrip()}", *tables, _NOTES))


class MirrorParser(Parser):
    """Leaves the values as text, so that all that is wrong with them is found in one place."""

    def __init__(self) -> None:
        super().__init__("spoa-mirror", add_help=False)
        for option in all_options():
            option.add_to(self)

    def error(self, message: str) -> NoReturn:
        """Print what is wrong, a line each, and the usage, and leave."""
        for line in message.splitlines():
            sys.stderr.write(f"ERROR: {line}\n")
        sys.stdout.write(f"\n{USAGE}\nFor help type: spoa-mirror -h\n\n")
        self.exit(EX_USAGE)

    def read(self, options: argparse.Namespace) -> dict[str, Any]:
        """Return the values by the options' names; leave if some of them are wrong."""
        found: dict[str, Any] = {}
        errors: list[str] = []
        for option in all_options():
            try:
                found[option.name] = option.read_from(options)
            except ConfigurationError as error:
                errors.append(str(error))
        if options.runtime is None:
            errors.append("runtime value not set: give -r, with 0 for unlimited")
        if errors:
            self.error("\n".join(errors))
        return found
