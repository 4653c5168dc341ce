"""Parser of configuration files in TOML, whose errors name file, line or key, and reason."""

import errno
import os
import re
import threading
import tomllib
from collections.abc import Callable, Set
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeAlias, TypeVar, get_args, get_origin

import msgspec

from spoakit.apps.checks import choice
from spoakit.apps.environment import expand_variables
from spoakit.apps.values import parse_seconds, parse_size
from spoakit.exceptions import ConfigurationError

MAX_SIZE: Final = 1024 * 1024
"""Size limit of a configuration file in bytes."""

_CONVERTING: Final = threading.Lock()

S = TypeVar("S")
T = TypeVar("T", bound=msgspec.Struct)


class Table(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True, rename="kebab"):
    """A table of the file and its settings; the attributes are the keys, with "_" for "-".

    A subclass checks its values in `__post_init__`, so that they are checked wherever they come
    from. It raises `ConfigurationError`, which names the option by its place in the outermost
    table that `convert` is called with: "timeouts.connect".
    """


@dataclass(frozen=True, slots=True)
class Notation:
    """Form in which a file has a value, where it is another one than the setting's.

    It stands in an attribute's type: ``Annotated[float, Notation(...)]``.

    Attributes:
        form: the type of the value in the file.
        parse: called with the value and the folder that names of files are relative to; it returns
            the setting's value, or raises `ConfigurationError`, without the key. A text that
            begins with a dot goes on with the key.
    """

    form: Any
    parse: Callable[[Any, Path], object]


NO_KEY: Final = Notation(Any, lambda value, _: value)
"""Notation of an attribute that is not a key of the file."""


def existing_file(name: str, folder: Path) -> str:
    """Return the path of a file that can be read.

    Args:
        name: as it is in the configuration file.
        folder: what it is relative to.

    Raises:
        ConfigurationError: it cannot be read; the text names the path and the reason.
    """
    path = folder / name
    try:
        # A pipe that nobody writes into is not waited for.
        os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        return str(path)
    except (OSError, ValueError) as error:  # the latter for a name with a NUL
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigurationError(f"{str(path)!r} cannot be read: {reason}") from None


Seconds: TypeAlias = Annotated[float, Notation(Any, lambda value, _: parse_seconds(value))]
"""A time in seconds; in a file, a number of them or a text with a unit."""

Size: TypeAlias = Annotated[int, Notation(Any, lambda value, _: parse_size(value))]
"""A size in bytes; in a file, a number of them or a text with a unit."""

ExistingFile: TypeAlias = Annotated[str, Notation(str, existing_file)]
"""The path of a file that can be read; in a file, its name."""

FileName: TypeAlias = Annotated[
    str, Notation(str, lambda name, folder: name and os.path.abspath(folder / name))
]
"""The absolute path of a file that need not be there; in a file, its name."""

Pairs: TypeAlias = Annotated[
    tuple[tuple[str, str], ...], Notation(dict[str, str], lambda value, _: tuple(value.items()))
]
"""Names and texts in their order; in a file, a table."""


def read_settings(
    path: str | os.PathLike[str],
    settings_of: Callable[[dict[str, Any], Path], S],
    only: str | None = None,
) -> S:
    """Read a configuration file and return its settings.

    Args:
        path: the file, of 1 MiB at most.
        settings_of: returns the settings of a document, with environment variables expanded, and of
            the folder of the file, to which paths are relative.
        only: the only key of the file to use, for commands: other keys may need files or
            environment variables that only the service has.

    Raises:
        ConfigurationError: the file cannot be read, is not TOML, or has invalid settings; the text
            names the file, the line or the key, and the reason. Items of lists are counted from 1.
    """
    with Prefix(f"{os.fspath(path)}: "):
        document = parse_toml(_read(path))
        if only is not None:
            document = {key: value for key, value in document.items() if key == only}
        return settings_of(expand_variables(document), Path(path).parent)


def _read(path: str | os.PathLike[str]) -> str:
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_SIZE + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise ConfigurationError(getattr(error, "strerror", None) or str(error)) from None
    if len(data) > MAX_SIZE:
        raise ConfigurationError(f"it is larger than {MAX_SIZE} bytes")
    try:
        # Editors on Windows may begin a file with a byte order mark.
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigurationError(f"line {line}: it is not UTF-8: {error.reason}") from None


def parse_toml(text: str) -> dict[str, Any]:
    """Parse a text.

    Raises:
        ConfigurationError: the text is not TOML; the error names the line and the reason.
    """
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ConfigurationError("its tables or lists are nested too deeply") from None
    except ValueError as error:  # some invalid numbers raise no TOMLDecodeError
        reason, _, place = str(error).removesuffix(")").rpartition(" (at ")
        # tomllib names no line for an error at the end.
        where = place if place.startswith("line") else "at its end"
        raise ConfigurationError(f"{where}: {reason}" if reason else str(error)) from None


class Prefix:
    """Context that adds a prefix and a suffix to the text of a ConfigurationError."""

    def __init__(self, prefix: str, suffix: str = "") -> None:
        self._prefix = prefix
        self._suffix = suffix

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, ConfigurationError):
            raise ConfigurationError(f"{self._prefix}{error}{self._suffix}") from None


def convert(table: dict[str, Any], kind: type[T], where: str, folder: Path = Path()) -> T:
    """Return a table of a file as the settings that it is.

    Args:
        table: the keys and values of the file.
        kind: a `Table`.
        where: the table's place in the file, as "target[2]"; "" for the file's top.
        folder: what names of files are relative to.

    Raises:
        ConfigurationError: a key is unknown or missing, or a value is of another type or not
            allowed; the text names the key, places in lists counted from 1.
    """
    # msgspec fills its description of a class at its first use; two threads at once crash.
    with _CONVERTING:
        converted: T = _convert(_parse_table(table, kind, where, folder), kind, where)
        return converted


def _convert(value: object, kind: Any, where: str) -> Any:
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        if isinstance(error.__cause__, ConfigurationError):  # of a `__post_init__`
            raise ConfigurationError(f"{where}.{error.__cause__}".removeprefix(".")) from None
        # "reason - at `$.path`", the latter only within the value.
        reason, _, place = str(error).partition(" - at `$")
        path = re.sub(r"\[([0-9]+)\]", _counted_from_1, place.removesuffix("`"))
        key = f"{where}{path}".removeprefix(".")
        reason = _in_our_words(reason)
        raise ConfigurationError(f"{key}: {reason}" if key else reason) from None


def _parse_table(table: object, kind: Any, where: str, folder: Path) -> object:
    """Return a table whose values have the forms of the settings."""
    if not isinstance(table, dict):
        return table
    types = _types(kind)
    return {
        key: _parse(value, types[key], f"{where}.{key}".removeprefix("."), folder)
        if key in types
        else value
        for key, value in table.items()
    }


def _parse(value: object, kind: Any, where: str, folder: Path) -> object:
    """Return a value in the form of its setting, one that has no other form as it is."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _parse_notation(value, arguments[1], where, folder)
    if origin is Literal:
        return choice(where, value, arguments) if isinstance(value, str) else value
    if origin is tuple:
        return (
            tuple(_parse(each, arguments[0], where, folder) for each in value)
            if isinstance(value, list)
            else value
        )
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return _parse_table(value, kind, where, folder)
    for each in arguments:  # of a union
        value = _parse(value, each, where, folder)
    return value


def _parse_notation(value: object, notation: Notation, where: str, folder: Path) -> object:
    if notation is NO_KEY and not isinstance(value, msgspec.Struct):
        table, _, key = where.rpartition(".")
        raise ConfigurationError(f"{table}: there is no key {key!r}")
    value = _convert(value, notation.form, where)
    try:
        return notation.parse(value, folder)
    except ConfigurationError as error:
        separator = "" if str(error).startswith(".") else ": "
        raise ConfigurationError(f"{where}{separator}{error}") from None


def table_keys(kind: type[Table]) -> Set[str]:
    """Return the keys of a table."""
    return _types(kind).keys()


@cache
def _types(kind: Any) -> dict[str, Any]:
    """Return the types of a table's values by their keys."""
    return {field.encode_name: field.type for field in msgspec.structs.fields(kind)}


def _counted_from_1(match: re.Match[str]) -> str:
    return f"[{int(match[1]) + 1}]"


def _in_our_words(reason: str) -> str:
    unknown = re.fullmatch("Object contains unknown field `(.*)`", reason, re.DOTALL)
    if unknown:
        return f"there is no key {unknown[1][:80]!r}"
    missing = re.fullmatch("Object missing required field `(.*)`", reason)
    if missing:
        return f"the key {missing[1]!r} is missing"
    # TOML calls objects tables, and has no null.
    return reason.replace("`object`", "`table`").replace(" | null`", "`")


def readable_file(option: str, name: str | None, folder: Path) -> str | None:
    """Return the path of a file, or refuse one that cannot be read; None for None.

    Args:
        option: the key, for the error.
        name: the path in the configuration file.
        folder: the folder that the path is relative to.
    """
    if name is None:
        return None
    with Prefix(f"{option}: "):
        return existing_file(name, folder)
