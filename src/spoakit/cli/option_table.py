"""Option table, for parsing and for the help."""

import argparse
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn, TypeAlias

from spoakit.apps.urls import without_users
from spoakit.cli import values
from spoakit.cli.options import EX_USAGE, show, show_errors, version
from spoakit.cli.values import NotAllowedError, ValueParser
from spoakit.exceptions import ConfigurationError


@dataclass(frozen=True, slots=True)
class Option:
    """Option of a command.

    Attributes:
        flags: "-a, --address", or the long flag alone.
        value: the name of its value in the help; empty for a switch.
        help: a sentence or two.
        parse: returns the value for a text.
        default: the text of the default; None for no value.
        repeated: True to keep all values, not only the last.
        aliases: other long flags, which the help does not show.
        missing: the error if a required option is missing; empty for an optional one.
        unless: the name of a switch with which it is optional.
        name: its key among the values, "monitor_interval"; by default from the long flag.
    """

    flags: str
    value: str
    help: str
    parse: ValueParser = values.text
    default: str | None = None
    repeated: bool = False
    aliases: tuple[str, ...] = ()
    missing: str = ""
    unless: str = ""
    name: str = ""

    def __post_init__(self) -> None:
        if not self.name:
            name = self.flag.removeprefix("--").replace("-", "_")
            object.__setattr__(self, "name", name)

    @property
    def flag(self) -> str:
        """The long flag."""
        return self.flags.rpartition(" ")[2]

    def add_to(self, parser: argparse.ArgumentParser) -> None:
        """Add it to a parser, which leaves its value as text."""
        flags = [*self.flags.split(", "), *self.aliases]
        add = partial(parser.add_argument, *flags, dest=self.name, help=self.help)
        if not self.value:
            add(action="store_true")
        elif self.repeated:
            add(metavar=self.value, action="append", default=[])
        else:
            add(metavar=self.value, default=self.default)

    def parse_from(self, options: argparse.Namespace) -> Any:
        """Return its value; None without one, a list if it is repeated, a bool for a switch.

        Raises:
            ConfigurationError: the value is invalid or missing; the text names the option.
        """
        given = getattr(options, self.name)
        if given is None and self.missing and not getattr(options, self.unless, False):
            raise ConfigurationError(self.missing)
        if not self.value or given is None:
            return given
        return [self._parse(text) for text in given] if self.repeated else self._parse(given)

    def _parse(self, text: str) -> object:
        try:
            return self.parse(text)
        except NotAllowedError as error:
            words = self.flag.removeprefix("--").replace("-", " ")
            raise ConfigurationError(f"invalid {words} {text!r} ({self.flag}: {error})") from None
        except ConfigurationError as error:
            reason = re.sub(rf"^{self.flag[2:]}(: | (?=must ))", "", str(error))
            raise ConfigurationError(f"{self.flag}: {reason}") from None

    def explain(self) -> str:
        """Return its line of the help."""
        shown = f"    {self.flags}" if self.flags.startswith("--") else self.flags
        shown += f"={self.value}" if self.value else ""
        return f"  {shown:<32}{self.help}" if len(shown) < 32 else f"  {shown}\n{'':34}{self.help}"


Group: TypeAlias = tuple[str, tuple[Option, ...]]
"""Title in the help, and its options."""


class OptionParser(argparse.ArgumentParser):
    """Parser of a command's options, which reports all invalid values together.

    Args:
        program: the name of the command.
        synopsis: lines on how to call it, for the help and for errors.
        groups: the options, including "help".
        notes: the end of the help.
        operand: the name of operands, which may be given any number of times; empty for none.
    """

    def __init__(
        self,
        program: str,
        synopsis: str,
        groups: Sequence[Group],
        notes: str,
        operand: str = "",
    ) -> None:
        super().__init__(program, add_help=False)
        self._synopsis = synopsis
        self._groups = groups
        self._notes = notes
        self._operand = operand
        for option in self._options():
            option.add_to(self)
        if operand:
            self.add_argument("operands", nargs="*", metavar=operand)

    def parse_options(self, arguments: Sequence[str] | None) -> dict[str, Any] | None:
        """Return the values by the options' names, and "operands"; exit if any is invalid.

        Returns:
            None if the help or the version has been shown.
        """
        arguments = sys.argv[1:] if arguments is None else arguments
        self._refuse_dashes(arguments)
        options, unknown = self.parse_known_intermixed_args(arguments)
        if options.help:
            show(self._help_text())
            return None
        if getattr(options, "version", False):
            show(f"\n{self.prog} v{version()}\n")
            return None
        found: dict[str, Any] = {"operands": getattr(options, "operands", [])}
        errors = [f"unrecognized arguments: {' '.join(unknown)}"] if unknown else []
        for option in self._options():
            try:
                found[option.name] = option.parse_from(options)
            except ConfigurationError as error:
                errors.append(str(error))
        if errors:
            self.error("\n".join(errors))
        return found

    def error(self, message: str) -> NoReturn:
        """Print the errors, one a line, and the synopsis, and exit."""
        show_errors(without_users(message))
        show(f"\n{self._synopsis}\nFor help type: {self.prog} -h\n")
        self.exit(EX_USAGE)

    def _refuse_dashes(self, arguments: Sequence[str]) -> None:
        """Exit if an option has the value --, which argparse would turn into an empty list."""
        for argument in arguments:
            if found := re.fullmatch(r"(--[\w-]+)=--|(-\w)--", argument):
                self.error(f"argument {found[1] or found[2]}: expected one argument")

    def _options(self) -> Iterator[Option]:
        """Yield the options in the order of the help."""
        for _, options in self._groups:
            yield from options

    def _help_text(self) -> str:
        tables = (
            "\n".join((title, *(option.explain() for option in options)))
            for title, options in self._groups
        )
        return "\n\n".join((f"\n{self._synopsis.rstrip()}", *tables, self._notes))
