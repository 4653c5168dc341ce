"""The configuration file: TOML in, settings out. docs/mirror-configuration.md describes it."""

import os
import re
import tomllib
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

from spoakit.apps.mirror.settings import MirrorSettings, TargetSettings
from spoakit.apps.mirror.tables import Defaults, File, Target
from spoakit.apps.mirror.url import TargetURL
from spoakit.apps.mirror.values import Seconds, parse_seconds, parse_size
from spoakit.exceptions import ConfigurationError

MAX_SIZE: Final = 1024 * 1024
"""The most bytes a configuration file may have."""

# What a table of defaults is checked with.
_ANY_URL: Final = TargetURL.parse("http://localhost")

T = TypeVar("T", bound=msgspec.Struct)


def read_config(path: str | os.PathLike[str]) -> MirrorSettings:
    """Read a configuration file.

    Args:
        path: the file, of 1 MiB at most. Names of files in it are relative to where it is.

    Raises:
        ConfigurationError: it cannot be read, is not TOML, or says what cannot be; the text names
            the file, the line or the key, and the reason. Targets and the places in lists are
            counted from 1.
    """
    try:
        return _settings(_parse(_read(path)), Path(path).parent)
    except ConfigurationError as error:
        raise ConfigurationError(f"{os.fspath(path)}: {error}") from None


def _read(path: str | os.PathLike[str]) -> str:
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_SIZE + 1)
    except (OSError, ValueError) as error:  # the latter for a name with a NUL
        raise ConfigurationError(getattr(error, "strerror", None) or str(error)) from None
    if len(data) > MAX_SIZE:
        raise ConfigurationError(f"it is larger than {MAX_SIZE} bytes")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigurationError(f"line {line}: it is not UTF-8: {error.reason}") from None


def _parse(text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ConfigurationError("its tables or lists are nested too deeply") from None
    except ValueError as error:  # a number can be wrong in ways that are no TOMLDecodeError
        reason, _, place = str(error).removesuffix(")").rpartition(" (at ")
        # At the end there is no line, and tomllib says so.
        where = place if place.startswith("line") else "at its end"
        raise ConfigurationError(f"{where}: {reason}" if reason else str(error)) from None


def _settings(document: dict[str, Any], folder: Path) -> MirrorSettings:
    mirror = _convert(document, File, "")
    # Wrong defaults are an error of the defaults, and not of each target.
    defaults = _convert(mirror.defaults, Defaults, "defaults")
    with _Prefix("defaults."):
        defaults.target(_ANY_URL, "", folder)
    if not mirror.target:
        raise ConfigurationError("target: there is none; each is a [[target]] with its url")
    targets = []
    for number, table in enumerate(mirror.target, 1):
        with _Prefix("", _label(table)):
            target = _convert(_merged(mirror.defaults, table), Target, f"target[{number}]")
            with _Prefix(f"target[{number}]."):
                targets.append(_target(target, folder))
    return MirrorSettings(
        tuple(targets), mirror.drain, mirror.log.settings(), mirror.processing_delay
    )


def _target(target: Target, folder: Path) -> TargetSettings:
    with _Prefix("url: "):
        url = TargetURL.parse(target.url)
    return target.target(url, target.name, folder)


class _Prefix:
    """Say in a ConfigurationError that passes where it is, and whose it is."""

    def __init__(self, prefix: str, suffix: str = "") -> None:
        self._prefix = prefix
        self._suffix = suffix

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, ConfigurationError):
            raise ConfigurationError(f"{self._prefix}{error}{self._suffix}") from None


def _label(table: dict[str, Any]) -> str:
    """Return what tells a target from the others better than its number."""
    name = table.get("name") or table.get("url")
    return f" (the target {name[:80]!r})" if isinstance(name, str) else ""


def _merged(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Return a table with defaults under it, key by key, and so for the tables in it."""
    merged = under | over
    for key, value in over.items():
        below = under.get(key)
        if isinstance(value, dict) and isinstance(below, dict):
            merged[key] = _merged(below, value)
    return merged


def _convert(table: dict[str, Any], kind: type[T], where: str) -> T:
    try:
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
