"""Configuration files: TOML in, tables out, and errors that say where and why."""

import errno
import os
import re
import threading
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

from spoakit.apps.environment import expand_variables
from spoakit.apps.values import Seconds, parse_seconds, parse_size
from spoakit.exceptions import ConfigurationError

MAX_SIZE: Final = 1024 * 1024
"""The most bytes a configuration file may have."""

_CONVERTING: Final = threading.Lock()

S = TypeVar("S")
T = TypeVar("T", bound=msgspec.Struct)


class Table(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True, rename="kebab"):
    """A table of the file; its attributes are the keys, with "_" for "-"."""


def read_settings(
    path: str | os.PathLike[str],
    settings_of: Callable[[dict[str, Any], Path], S],
    only: str | None = None,
) -> S:
    """Return the settings that are in a file.

    Args:
        path: the file, of 1 MiB at most.
        settings_of: makes them of what is in it, with the environment's variables replaced, and
            the folder that names of files are relative to: the file's.
        only: the one key of the file to use, where the others may need what only the service has:
            files that it may read, its environment.

    Raises:
        ConfigurationError: it cannot be read, is not TOML, or says what cannot be; the text names
            the file, the line or the key, and the reason. Places in lists are counted from 1.
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
    except (OSError, ValueError) as error:  # the latter for a name with a NUL
        raise ConfigurationError(getattr(error, "strerror", None) or str(error)) from None
    if len(data) > MAX_SIZE:
        raise ConfigurationError(f"it is larger than {MAX_SIZE} bytes")
    try:
        # Editors of another system may begin a file with a byte order mark.
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigurationError(f"line {line}: it is not UTF-8: {error.reason}") from None


def parse_toml(text: str) -> dict[str, Any]:
    """Return what is in a text.

    Raises:
        ConfigurationError: it is not TOML; the text names the line and the reason.
    """
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ConfigurationError("its tables or lists are nested too deeply") from None
    except ValueError as error:  # a number can be wrong in ways that are no TOMLDecodeError
        reason, _, place = str(error).removesuffix(")").rpartition(" (at ")
        # At the end there is no line, and tomllib says so.
        where = place if place.startswith("line") else "at its end"
        raise ConfigurationError(f"{where}: {reason}" if reason else str(error)) from None


class Prefix:
    """Say in a ConfigurationError that passes where it is, and whose it is."""

    def __init__(self, prefix: str, suffix: str = "") -> None:
        self._prefix = prefix
        self._suffix = suffix

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, ConfigurationError):
            raise ConfigurationError(f"{self._prefix}{error}{self._suffix}") from None


def convert(table: dict[str, Any], kind: type[T], where: str) -> T:
    """Return a table of a file as one of a class.

    Args:
        table: the keys and values of the file.
        kind: a `Table`.
        where: the table's place in the file, as "target[2]"; "" for the file's top.

    Raises:
        ConfigurationError: a key is unknown or missing, or a value of another type; the text names
            the key, places in lists counted from 1.
    """
    try:
        # msgspec fills its description of a class at its first use; two threads at once crash.
        with _CONVERTING:
            return msgspec.convert(table, kind, dec_hook=_decode)
    except msgspec.ValidationError as error:
        # "reason - at `$.path`", the latter only within the table.
        reason, _, place = str(error).partition(" - at `$")
        path = re.sub(r"\[([0-9]+)\]", _counted_from_1, place.removesuffix("`"))
        key = f"{where}{path}".removeprefix(".")
        reason = _in_our_words(reason)
        raise ConfigurationError(f"{key}: {reason}" if key else reason) from None


def _decode(kind: type, value: object) -> object:
    return parse_seconds(value) if kind is Seconds else parse_size(value)


def _counted_from_1(match: re.Match[str]) -> str:
    return f"[{int(match[1]) + 1}]"


def _in_our_words(reason: str) -> str:
    unknown = re.fullmatch("Object contains unknown field `(.*)`", reason, re.DOTALL)
    if unknown:
        return f"there is no key {unknown[1][:80]!r}"
    missing = re.fullmatch("Object missing required field `(.*)`", reason)
    if missing:
        return f"the key {missing[1]!r} is missing"
    # TOML has tables, and no null.
    return reason.replace("`object`", "`table`").replace(" | null`", "`")


def readable_file(option: str, name: str | None, folder: Path) -> str | None:
    """Return the path of a file, or refuse one that cannot be read; None for None.

    Args:
        option: the key, for the error.
        name: as it is in the configuration file.
        folder: what it is relative to.
    """
    if name is None:
        return None
    path = folder / name
    try:
        # A pipe that nobody writes into is not waited for.
        os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        return str(path)
    except (OSError, ValueError) as error:  # the latter for a name with a NUL
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigurationError(f"{option}: {str(path)!r} cannot be read: {reason}") from None
