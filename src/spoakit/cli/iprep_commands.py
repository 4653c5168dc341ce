"""Commands for a running spoa-iprep, which use its control socket."""

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import Any, BinaryIO, Final

from spoakit.apps.iprep.config.loader import read_control
from spoakit.apps.iprep.control.paths import CONTROL_VARIABLE, default_control, with_default
from spoakit.apps.iprep.control.socket import (
    Answer,
    Connection,
    ControlError,
    RefusedError,
    Request,
    ask,
)
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
        f"The control socket (default: from --config, ${CONTROL_VARIABLE}, or the user's).",
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
        "Its score during the ban, 0 (worst) to 100 (default: 0).",
        values.number(0, 100),
        "0",
    ),
    Option("--reason", "TEXT", "The reason, shown in the list of bans.", str, ""),
)


_UNBAN: Final = (Option("--all", "", "End all bans."),)
_UPDATE: Final = (
    Option(
        "--accept-shrink",
        "",
        "Take a list that lost more of its entries than max-shrink allows.",
        name="accept-shrink",
    ),
)
_STDIN: Final = "-"


@dataclass(frozen=True, slots=True)
class _Command:
    """Command, with its options and the text of its response.

    Attributes:
        help: a sentence for the help.
        show: returns the text of a response; its second argument is the time since the epoch.
        operand: the key of its operand in a request, such as "address"; "" without an operand.
        check: raises a ConfigurationError for an invalid operand.
        options: the options that only this command has.
        show_line: returns a line for the response to one of many operands; None for a command that
            does not read operands from standard input.
        instead: the name of a switch that replaces the operand.
        has_timeout: True if the response must arrive within seconds.
    """

    help: str
    show: Callable[[Answer, float], str]
    operand: str = ""
    check: Callable[[str], None] | None = None
    options: tuple[Option, ...] = ()
    show_line: Callable[[Answer, float], str] | None = None
    instead: str = ""
    has_timeout: bool = True

    def parser(self, name: str) -> OptionParser:
        """Return the parser of its options and its operand."""
        operand = self.operand.upper()
        words = [operand] if operand else []
        if self.show_line is not None:
            words.append("| -")
        if self.instead:
            words.append(f"| --{self.instead}")
        shown = f"{{ {' '.join(words)} }}" if len(words) > 1 else "".join(words)
        synopsis = f"Usage: spoa-iprep {name} {shown + ' ' if shown else ''}[OPTION]...\n"
        groups = (("Options are:", (*self.options, *_EVERYWHERE)),)
        notes = f"{self.help[0].upper()}{self.help[1:]}.\n"
        if self.show_line is not None:
            notes += (
                "With - addresses come from standard input, one a line; # begins a comment.\n"
                "Errors are shown with the line, the others go on, and the exit code is 1.\n"
            )
        return OptionParser(f"spoa-iprep {name}", synopsis, groups, notes, operand)

    def reads_stdin(self, given: Mapping[str, Any]) -> bool:
        """Return whether operands are read from standard input."""
        return self.show_line is not None and given["operands"] == [_STDIN]

    def request(self, given: Mapping[str, Any]) -> Request:
        """Return the request for its options and its operand.

        Raises:
            ConfigurationError: the operand is missing or invalid.
        """
        request = self.options_request(given)
        if self.operand and not (self.instead and given[self.instead] and not given["operands"]):
            if len(given["operands"]) != 1:
                count = len(given["operands"])
                raise ConfigurationError(
                    f"{self.operand.upper()}: give one {self.operand}, not {count or 'none'}"
                )
            [operand] = given["operands"]
            request |= self.operand_request(operand)
        return request

    def options_request(self, given: Mapping[str, Any]) -> Request:
        """Return the part of a request for the options; switches only if they are on."""
        return {
            option.name: given[option.name]
            for option in self.options
            if given[option.name] is not False
        }

    def operand_request(self, operand: str) -> Request:
        """Return the part of a request for the operand.

        Raises:
            ConfigurationError: the operand is invalid.
        """
        if self.check is not None:
            self.check(operand)
        return {self.operand: operand}


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
        "give addresses or networks a score for a time",
        answers.show_ban,
        "address",
        _check_network,
        _BAN,
        show_line=answers.show_ban,
    ),
    "unban": _Command(
        "end the bans of an address, of all addresses in a network, or all bans",
        answers.show_unban,
        "address",
        _check_network,
        _UNBAN,
        show_line=answers.show_unban,
        instead="all",
    ),
    "bans": _Command("list the bans, ordered by their end", answers.show_bans),
    "lookup": _Command(
        "show the score of an address, and the reasons",
        answers.show_lookup,
        "address",
        _check_address,
        show_line=answers.show_lookup_line,
    ),
    "sources": _Command("show the sources and their errors", answers.show_sources),
    "update": _Command(
        "download a source now, and return when it is in a new table",
        answers.show_update,
        "source",
        options=_UPDATE,
        has_timeout=False,
    ),
}
"""Commands by name."""


def run_command(arguments: Sequence[str]) -> int:
    """Run a command, whose name is the first argument; return its exit code.

    Returns:
        0; 1 without a response or for an error. A wrong command line exits with 64.
    """
    name = arguments[0]
    command = COMMANDS[name]
    parser = command.parser(name)
    given = parser.parse_options(arguments[1:])
    if given is None:
        return 0
    request: Request = {"command": name}
    try:
        reads_stdin = command.reads_stdin(given)
        request |= command.options_request(given) if reads_stdin else command.request(given)
    except ConfigurationError as error:
        parser.error(str(error))
    try:
        path = _control_path(given)
    except ConfigurationError as error:
        show_errors(str(error))
        return EX_USAGE
    try:
        if reads_stdin:
            return _run_for_each(command, path, request, given)
        answer = ask(path, request) if command.has_timeout else ask(path, request, None)
        show(json.dumps(answer) if given["json"] else command.show(answer, time.time()))
    except ControlError as error:
        show_errors(str(error))
        return EX_FAILED
    return 0


def _run_for_each(command: _Command, path: str, request: Request, given: Mapping[str, Any]) -> int:
    """Run a command for each operand on standard input; return its exit code.

    Raises:
        ControlError: there is no response.
    """
    assert command.show_line is not None
    code = 0
    with closing(Connection(path)) as connection:
        for number, operand in _operands(sys.stdin.buffer):
            try:
                answer = connection.ask(request | command.operand_request(operand))
                line = command.show_line(answer, time.time())
            except (ConfigurationError, RefusedError) as error:
                show_errors(f"line {number}: {error}")
                code = EX_FAILED
            else:
                show(json.dumps(answer) if given["json"] else line)
    return code


def _operands(lines: BinaryIO) -> Iterator[tuple[int, str]]:
    """Yield line numbers and operands of a file with one operand a line."""
    for number, line in enumerate(lines, 1):
        text = line.decode(errors="replace").partition("#")[0].strip()
        if text:
            yield number, text


def _control_path(given: Mapping[str, Any]) -> str:
    if given["control"] is not None:
        return str(given["control"])
    if given["config"] is None:
        return default_control()
    path = with_default(read_control(given["config"])).path
    if path is None:
        raise ConfigurationError(
            f"{given['config']}: control.path is false, so it has no control socket"
        )
    return path
