"""The commands that speak to a running spoa-iprep over its control socket."""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import Final

from spoakit.apps.iprep.config import read_config
from spoakit.apps.iprep.control import Answer, ControlError, Request, ask
from spoakit.cli import iprep_answers as answers
from spoakit.cli import values
from spoakit.cli.option_table import Option
from spoakit.cli.options import Parser, show
from spoakit.exceptions import ConfigurationError

CONTROL_VARIABLE: Final = "SPOA_IPREP_CONTROL"
DEFAULT_CONTROL: Final = "/run/spoa-iprep.sock"

_YEAR: Final = 366 * 86_400.0

_EVERYWHERE: Final = (
    Option(
        "--control",
        "PATH",
        f"the control socket (default: that of --config, ${CONTROL_VARIABLE}, or "
        f"{DEFAULT_CONTROL})",
    ),
    Option("--config", "FILE", "the configuration file that names the control socket"),
    Option("--json", "", "print the answer as JSON"),
)
_BAN: Final = (
    Option(
        "--for",
        "TIME",
        "how long: a number of seconds, or one with us, ms, s, m, h or d (default: 1h)",
        values.time(1, _YEAR, "s"),
        "1h",
    ),
    Option(
        "--score",
        "N",
        "its score meanwhile, 0 (worst) to 100 (default: 0)",
        values.number(0, 100),
        "0",
    ),
    Option("--reason", "TEXT", "why, for whoever reads the list of bans", str, ""),
)


@dataclass(frozen=True, slots=True)
class _Command:
    """A command.

    Attributes:
        help: what it does.
        show: makes a text for people of its answer; the time is in seconds since the epoch.
        check: raises a ConfigurationError for an address that it does not take; None for a
            command that takes none.
        options: those that it alone has.
    """

    help: str
    show: Callable[[Answer, float], str]
    check: Callable[[str], None] | None = None
    options: tuple[Option, ...] = ()

    def add_to(self, parser: argparse.ArgumentParser) -> None:
        """Add what it takes to a parser."""
        if self.check is not None:
            parser.add_argument("address", metavar="ADDRESS")
        for option in (*self.options, *_EVERYWHERE):
            option.add_to(parser)

    def request(self, options: argparse.Namespace) -> Request:
        """Return what spoa-iprep is asked.

        Raises:
            ConfigurationError: an option's value is wrong, or the address.
        """
        request: Request = {}
        if self.check is not None:
            self.check(options.address)
            request["address"] = options.address
        given = {option.name: option.read_from(options) for option in self.options}
        if "for" in given:
            given["seconds"] = given.pop("for")
        return request | given


def _check_network(text: str) -> None:
    try:
        ip_network(text)
    except ValueError as error:
        raise ConfigurationError(
            f"invalid address {text!r} (ADDRESS: an address or a network such as 192.0.2.0/24): "
            f"{error}"
        ) from None


def _check_address(text: str) -> None:
    try:
        ip_address(text)
    except ValueError:
        raise ConfigurationError(f"invalid address {text!r} (ADDRESS: an address)") from None


COMMANDS: Final[Mapping[str, _Command]] = {
    "ban": _Command(
        "give an address or a network a score for a time", answers.show_ban, _check_network, _BAN
    ),
    "unban": _Command("end the ban of an address or a network", answers.show_unban, _check_network),
    "bans": _Command("list the bans, the next to end first", answers.show_bans),
    "lookup": _Command(
        "show an address's score, and how it comes about", answers.show_lookup, _check_address
    ),
    "sources": _Command("show the sources, and what is wrong with them", answers.show_sources),
}
"""The commands by their names."""


def run_command(arguments: Sequence[str]) -> int:
    """Run a command, whose name comes first; return its exit code.

    Returns:
        0, or 1 where nobody answers or the answer is an error; a wrong command line is left with
        64.
    """
    name = arguments[0]
    command = COMMANDS[name]
    parser = Parser(f"spoa-iprep {name}", description=f"{command.help}.")
    command.add_to(parser)
    parser.refuse_dashes(arguments[1:])
    options = parser.parse_args(arguments[1:])
    try:
        request = {"command": name} | command.request(options)
        path = _control_path(options)
    except ConfigurationError as error:
        parser.error(str(error))
    try:
        answer = ask(path, request)
        show(json.dumps(answer) if options.json else command.show(answer, time.time()))
    except ControlError as error:
        sys.stderr.write(f"ERROR: {error}\n")
        return 1
    return 0


def _control_path(options: argparse.Namespace) -> str:
    path: str | None = options.control
    if path is None and options.config is not None:
        path = read_config(options.config).control.path
        if path is None:
            raise ConfigurationError(f"{options.config}: there is no control.path in it")
    return path or os.environ.get(CONTROL_VARIABLE) or DEFAULT_CONTROL
