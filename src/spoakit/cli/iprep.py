"""spoa-iprep: the options of the C program, -a and -V."""

import argparse
import sys
from collections.abc import Sequence
from typing import Final

from spoakit.apps.iprep.random_score import random_agent
from spoakit.cli.options import Parser, open_standard_streams, version
from spoakit.exceptions import ConfigurationError
from spoakit.logs import configure_logging
from spoakit.server import Listen, ServerSettings, run

_HELP: Final = """\
Usage: spoa-iprep [-h] [-V] [-d] [-a <address>] [-p <port>] [-n <num-workers>]
    -h                  Print this message
    -V                  Print the version
    -d                  Enable the debug mode: log each frame
    -a <address>        Specify the address to listen on (default: 0.0.0.0)
    -p <port>           Specify the port to listen on (default: 12345)
    -n <num-workers>    Specify the number of workers (default: 5)

Note: A worker is a process.
"""


class _Parser(Parser):
    def format_help(self) -> str:
        return _HELP


def main(arguments: Sequence[str] | None = None) -> int:
    """Run spoa-iprep; return its exit code, 64 for a wrong command line."""
    open_standard_streams()
    parser = _Parser("spoa-iprep", allow_abbrev=False)
    shown = f"spoa-iprep v{version()}"
    parser.add_argument("-V", "--version", action="version", version=shown)
    parser.add_argument("-d", dest="debug", action="store_true")
    parser.add_argument("-a", dest="address", default="0.0.0.0")
    parser.add_argument("-p", dest="port", type=int, default=12345)
    parser.add_argument("-n", dest="workers", type=int, default=5)
    options = parser.parse_args(arguments)
    try:
        settings = _settings(options)
    except ConfigurationError as error:
        parser.error(str(error))
    configure_logging(options.debug)
    return run([random_agent()], settings)


def _settings(options: argparse.Namespace) -> ServerSettings:
    listen = Listen(address=options.address, port=options.port)
    return ServerSettings(listen=listen, workers=options.workers)


if __name__ == "__main__":
    sys.exit(main())
