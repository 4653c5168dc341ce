"""spoa-mirror: the options of the C program."""

import logging
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, Final, NoReturn

from spoakit.apps.mirror.agent import create_agent
from spoakit.apps.mirror.settings import MirrorSettings, TargetSettings
from spoakit.apps.mirror.url import TargetURL
from spoakit.cli.options import EX_USAGE, Parser, open_standard_streams, version
from spoakit.exceptions import ConfigurationError
from spoakit.logs import configure_logging
from spoakit.server import Limits, Listen, ServerSettings, run
from spoakit.server.settings import CAPABILITIES, MAX_FRAME_SIZE_CAP

logger = logging.getLogger("spoakit.mirror")

_USAGE: Final = """\
Usage: spoa-mirror { -h --help }
       spoa-mirror { -V --version }
       spoa-mirror { -r --runtime=TIME } [OPTION]...
"""
_HELP: Final = """\
Options are:
  -a, --address=NAME              Specify the address to listen on (default: "0.0.0.0").
  -b, --connection-backlog=VALUE  Specify the connection backlog size (default: 1024).
  -c, --capability=NAME           Enable the support of the specified capability.
  -h, --help                      Show this text.
  -m, --max-frame-size=VALUE      Specify the maximum frame size (default: that of HAProxy).
  -n, --num-workers=VALUE         Specify the number of workers (default: {cpus}, the usable CPUs).
  -p, --port=VALUE                Specify the port to listen on (default: 12345).
  -r, --runtime=TIME              Run this program for the specified time (0 = unlimited).
  -u, --mirror-url=URL            Specify the URL for the HTTP mirroring.
  -V, --version                   Show program version.

Supported capabilities: fragmentation, pipelining, async.  The first two are
always enabled.

A worker is a process.  Without a URL, requests are acknowledged and not
mirrored.

The time delay/interval is specified in milliseconds by default, but can be
in any other unit if the number is suffixed by a unit (us, ms, s, m, h, d).

SPDX-License-Identifier: Apache-2.0
"""

_UNITS: Final = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_MAX_RUNTIME: Final = 7 * 86400.0
_MAX_WORKERS: Final = 1000
_MIN_FRAME_SIZE: Final = 512
_FRAME_SIZE_CAP: Final = Limits().frame_size_cap
_DEFAULT_CAPABILITIES: Final = ServerSettings().capabilities


class _Parser(Parser):
    """Leaves the values as text, so that all that is wrong with them is found in one place."""

    def __init__(self) -> None:
        super().__init__("spoa-mirror", add_help=False)
        self.add_argument("-h", "--help", action="store_true")
        self.add_argument("-V", "--version", action="store_true")
        self.add_argument("-a", "--address", default="0.0.0.0")
        self.add_argument("-b", "--connection-backlog", default="1024")
        self.add_argument("-c", "--capability", action="append", default=[])
        self.add_argument("-m", "--max-frame-size")
        self.add_argument("-n", "--num-workers", default=str(_usable_cpus()))
        self.add_argument("-p", "--port", default="12345")
        self.add_argument("-r", "--runtime")
        self.add_argument("-u", "--mirror-url")

    def error(self, message: str) -> NoReturn:
        """Print what is wrong, a line each, and the usage, and leave."""
        for line in message.splitlines():
            sys.stderr.write(f"ERROR: {line}\n")
        sys.stdout.write(f"\n{_USAGE}\nFor help type: spoa-mirror -h\n\n")
        self.exit(EX_USAGE)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run spoa-mirror; return its exit code, 64 for a wrong command line."""
    open_standard_streams()
    parser = _Parser()
    options = parser.parse_args(arguments)
    if options.help:
        print(f"\n{_USAGE}\n{_HELP.format(cpus=_usable_cpus())}")
        return 0
    if options.version:
        print(f"\nspoa-mirror v{version()}\n")
        return 0
    values: dict[str, Any] = {}
    errors: list[str] = []
    for name, read in _READERS.items():
        try:
            values[name] = read(getattr(options, name))
        except ConfigurationError as error:
            errors.append(str(error))
    if errors:
        parser.error("\n".join(errors))
    frame_size = values["max_frame_size"]
    settings = ServerSettings(
        listen=Listen(values["address"], values["port"], backlog=values["connection_backlog"]),
        limits=Limits(frame_size=frame_size, frame_size_cap=max(frame_size, _FRAME_SIZE_CAP)),
        workers=values["num_workers"],
        capabilities=values["capability"],
        runtime=values["runtime"],
    )
    configure_logging()
    if not values["mirror_url"]:
        logger.warning("without a URL (-u) requests are acknowledged and not mirrored")
    return run([create_agent(MirrorSettings(values["mirror_url"]))], settings)


def parse_time(text: str, longest: float) -> float:
    """Return the seconds that a time such as "500", "500ms" or "7d" stands for.

    Args:
        text: a number and its unit: us, ms, s, m, h or d, and ms without one.
        longest: the most seconds that are allowed; the least are 0.

    Raises:
        ConfigurationError: it is not a time, or out of the range.
    """
    match = re.fullmatch(r"(-?[0-9]+(?:\.[0-9]+)?)(us|ms|s|m|h|d)?", text)
    if match is None:
        raise ConfigurationError(f"invalid time format: '{text}'")
    seconds = float(match[1]) * _UNITS[match[2] or "ms"]
    if not 0 <= seconds <= longest:
        raise ConfigurationError(
            f"wrong amount of time (allowed range [0, {longest:.2f}s]): '{text}'"
        )
    return seconds


def _usable_cpus() -> int:
    if sys.platform == "linux":
        return min(len(os.sched_getaffinity(0)), _MAX_WORKERS)
    return os.cpu_count() or 1


def _number(text: str, low: int, high: int, what: str) -> int:
    if not re.fullmatch("[0-9]{1,10}", text) or not low <= int(text) <= high:
        raise ConfigurationError(f"invalid {what} '{text}'")
    return int(text)


def _read_capabilities(names: list[str]) -> tuple[str, ...]:
    for name in names:
        if name not in CAPABILITIES:
            raise ConfigurationError(f"unsupported capability '{name}'")
    return tuple(dict.fromkeys((*_DEFAULT_CAPABILITIES, *names)))


def _read_workers(text: str) -> int:
    return _number(text, 1, _MAX_WORKERS, "number of workers")


def _read_address(text: str) -> str:
    if not text:
        raise ConfigurationError("invalid address ''")
    return text


def _read_port(text: str) -> int:
    return _number(text, 1, 65535, "port")


def _read_backlog(text: str) -> int:
    return _number(text, 1, 65535, "connection backlog")


def _read_frame_size(text: str | None) -> int:
    if text is None:
        return 0
    size = _number(text, 0, MAX_FRAME_SIZE_CAP, "max-frame-size")
    if size < _MIN_FRAME_SIZE:
        raise ConfigurationError(f"max-frame-size cannot be less than {_MIN_FRAME_SIZE}")
    return size


def _read_runtime(text: str | None) -> float | None:
    if text is None:
        raise ConfigurationError("runtime value not set")
    return parse_time(text, _MAX_RUNTIME) or None


def _read_targets(url: str | None) -> tuple[TargetSettings, ...]:
    return () if url is None else (TargetSettings(TargetURL.parse(url)),)


# In the order in which the C program checks them.
_READERS: Final[dict[str, Callable[[Any], Any]]] = {
    "runtime": _read_runtime,
    "capability": _read_capabilities,
    "num_workers": _read_workers,
    "address": _read_address,
    "port": _read_port,
    "connection_backlog": _read_backlog,
    "max_frame_size": _read_frame_size,
    "mirror_url": _read_targets,
}


if __name__ == "__main__":
    sys.exit(main())
