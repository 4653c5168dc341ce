"""Options in a table, from which they are parsed and explained."""

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
from spoakit.cli.values import NotAllowedError, Reader
from spoakit.exceptions import ConfigurationError


@dataclass(frozen=True, slots=True)
class Option:
    """An option.

    Attributes:
        flags: "-a, --address", or the long one alone.
        value: name of its value in the help; empty for a switch.
        help: a sentence or two.
        read: makes the value from its text.
        default: text of the value when the option is not given.
        repeated: all values count, not only the last.
        aliases: other long flags, which the help does not show.
        missing: error where the option is not given; empty for an option that need not be.
        unless: name of a switch with which it need not be given either.
        name: its name among the values: "monitor_interval"; that of the long flag by default.
    """

    flags: str
    value: str
    help: str
    read: Reader = values.text
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

    def read_from(self, options: argparse.Namespace) -> Any:
        """Return its value: None if it has none, a list if it is repeated, or a bool.

        Raises:
            ConfigurationError: the value is wrong or missing; the text names the option.
        """
        given = getattr(options, self.name)
        if given is None and self.missing and not getattr(options, self.unless, False):
            raise ConfigurationError(self.missing)
        if not self.value or given is None:
            return given
        return [self._read(text) for text in given] if self.repeated else self._read(given)

    def _read(self, text: str) -> object:
        try:
            return self.read(text)
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
"""Options under a title of the help."""


class OptionParser(argparse.ArgumentParser):
    """Parser of a command's options; wrong values are reported together.

    Args:
        program: name of the command.
        synopsis: lines on how to call it, for the help and for errors.
        groups: the options, with "help" among them.
        notes: end of the help.
        operand: name of what may stand beside the options, any number of times; empty for nothing.
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

    def read(self, arguments: Sequence[str] | None) -> dict[str, Any] | None:
        """Return the values by the options' names, with "operands"; leave if some are wrong.

        Returns:
            None if help or the version was asked for, which has been shown.
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
                found[option.name] = option.read_from(options)
            except ConfigurationError as error:
                errors.append(str(error))
        if errors:
            self.error("\n".join(errors))
        return found

    def error(self, message: str) -> NoReturn:
        """Print what is wrong, a line each, and how the command is called, and leave."""
        show_errors(without_users(message))
        show(f"\n{self._synopsis}\nFor help type: {self.prog} -h\n")
        self.exit(EX_USAGE)

    def _refuse_dashes(self, arguments: Sequence[str]) -> None:
        """Leave if an option has -- for a value, of which argparse makes an empty list."""
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
