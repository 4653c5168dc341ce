"""The commands that speak to a running spoa-iprep over its control socket."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import Any, Final

from spoakit.apps.iprep.config.loader import read_config
from spoakit.apps.iprep.control.paths import CONTROL_VARIABLE, default_control, with_default
from spoakit.apps.iprep.control.socket import Answer, ControlError, Request, ask
from spoakit.cli import iprep_answers as answers
from spoakit.cli import values
from spoakit.cli.common_options import HELP
from spoakit.cli.option_table import Option, OptionParser
from spoakit.cli.options import EX_FAILED, EX_USAGE, show, show_errors
from spoakit.exceptions import ConfigurationError

_YEAR: Final = 366 * 86_400.0

_EVERYWHERE: Final = (
    Option(
        "--control",
        "PATH",
        f"The control socket (default: that of --config, ${CONTROL_VARIABLE}, or the user's).",
    ),
    Option("--config", "FILE", "The configuration file that names the control socket."),
    Option("--json", "", "Print the answer as JSON."),
    HELP,
)
_BAN: Final = (
    Option(
        "--for",
        "TIME",
        "How long, such as 90s, 10m or 7d (default: 1h).",
        values.duration(1, _YEAR),
        "1h",
        name="seconds",
    ),
    Option(
        "--score",
        "N",
        "Its score meanwhile, 0 (worst) to 100 (default: 0).",
        values.number(0, 100),
        "0",
    ),
    Option("--reason", "TEXT", "Why, for the readers of the list of bans.", str, ""),
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

    def parser(self, name: str) -> OptionParser:
        """Return the parser of its options, and of the address that it takes."""
        operand = "" if self.check is None else "ADDRESS"
        synopsis = f"Usage: spoa-iprep {name} {operand + ' ' if operand else ''}[OPTION]...\n"
        groups = (("Options are:", (*self.options, *_EVERYWHERE)),)
        notes = f"{self.help[0].upper()}{self.help[1:]}.\n"
        return OptionParser(f"spoa-iprep {name}", synopsis, groups, notes, operand)

    def request(self, given: Mapping[str, Any]) -> Request:
        """Return what spoa-iprep is asked.

        Raises:
            ConfigurationError: the address is missing or wrong.
        """
        request: Request = {}
        if self.check is not None:
            if len(given["operands"]) != 1:
                count = len(given["operands"])
                raise ConfigurationError(f"ADDRESS: give one address, not {count or 'none'}")
            [address] = given["operands"]
            self.check(address)
            request["address"] = address
        return request | {option.name: given[option.name] for option in self.options}


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
    parser = command.parser(name)
    given = parser.read(arguments[1:])
    if given is None:
        return 0
    try:
        request = {"command": name} | command.request(given)
    except ConfigurationError as error:
        parser.error(str(error))
    try:
        path = _control_path(given)
    except ConfigurationError as error:
        show_errors(str(error))
        return EX_USAGE
    try:
        answer = ask(path, request)
        show(json.dumps(answer) if given["json"] else command.show(answer, time.time()))
    except ControlError as error:
        show_errors(str(error))
        return EX_FAILED
    return 0


def _control_path(given: Mapping[str, Any]) -> str:
    if given["control"] is not None:
        return str(given["control"])
    if given["config"] is None:
        return default_control()
    path = with_default(read_config(given["config"]).control).path
    if path is None:
        raise ConfigurationError(f"{given['config']}: control.path is false: there is no socket")
    return path
