"""Configuration file: TOML in, settings out; see docs/reference/iprep-configuration.md."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final, get_args

from msgspec import structs

from spoakit.apps.checks import choice
from spoakit.apps.iprep.config.schema import ControlSettings, ReputationSettings
from spoakit.apps.iprep.config.sources import (
    DatabaseSettings,
    DnsblSettings,
    FeedSettings,
    SourceSettings,
    SourceType,
)
from spoakit.apps.iprep.sources.limits import ListLimits
from spoakit.apps.iprep.sources.lists import ColumnNames, Columns
from spoakit.apps.toml import (
    Prefix,
    Table,
    convert,
    read_settings,
    readable_file,
    table_keys,
)
from spoakit.exceptions import ConfigurationError

_FILE: Final[Mapping[str, type[Table]]] = {"feed": FeedSettings}
_LIST: Final[Mapping[str, type[Table]]] = {"feed": FeedSettings, "limits": ListLimits}
# Attributes of `SourceSettings` whose keys stand in the table of the source.
_PARTS: Final[Mapping[SourceType, Mapping[str, type[Table]]]] = {
    "list": _LIST,
    "drop": _LIST,
    "csv": _LIST,  # and `Columns`, see `_columns`
    "json": _LIST,
    "mmdb": {"feed": FeedSettings, "database": DatabaseSettings},
    "dnsbl": {"dnsbl": DnsblSettings},
}
# Keys of `SourceSettings` that not all types have.
_FILES: Final = ("list", "drop", "csv", "json", "mmdb")
_TYPES_WITH: Final[Mapping[str, tuple[str, ...]]] = {
    "path": _FILES,
    "url": _FILES,
    "max-age": _FILES,
    "scores": ("csv", "mmdb", "dnsbl"),
    "select": ("json",),
}


def read_config(path: str | os.PathLike[str]) -> ReputationSettings:
    """Read a configuration file, of 1 MiB at most; names of files are relative to where it is.

    Raises:
        ConfigurationError: see `spoakit.apps.toml.read_settings`.
    """
    return read_settings(path, settings_of)


def read_control(path: str | os.PathLike[str]) -> ControlSettings:
    """Read the table `control` of a configuration file, for a command to a service that runs.

    The sources of the service, their secrets and its environment are not needed for that.

    Raises:
        ConfigurationError: as `read_config`, of this table and of what is not TOML.
    """
    return read_settings(path, settings_of, only="control").control


class _Sources(Table, frozen=True):
    """Tables that are parted before they are settings."""

    source: tuple[dict[str, Any], ...] = ()


def settings_of(document: dict[str, Any], folder: Path) -> ReputationSettings:
    """Return the settings that are in a document, names of files relative to a folder.

    Raises:
        ConfigurationError: as `read_config`, without the file's name.
    """
    if isinstance(document.get("source"), dict):
        raise ConfigurationError("source: there may be several; write [[source]]")
    tables = convert({"source": document.get("source", [])}, _Sources, "").source
    rest = {key: value for key, value in document.items() if key != "source"}
    settings = convert(rest, ReputationSettings, "", folder)
    sources = tuple(
        _source(table, f"source[{number}]", folder) for number, table in enumerate(tables, 1)
    )
    is_default = "path" not in document.get("control", {})
    control = structs.replace(settings.control, is_default=is_default)
    return structs.replace(settings, sources=sources, control=control)


def check_files(settings: ReputationSettings) -> None:
    """Refuse sources whose files cannot be read now; for a service they would be failed sources.

    Raises:
        ConfigurationError: a file cannot be read; the text names the source's key and the reason.
    """
    for number, source in enumerate(settings.sources, 1):
        with Prefix(f"source[{number}].", f" (the source {source.name[:80]!r})"):
            readable_file("path", source.path, Path())
            readable_file("tls.ca-file", source.feed.tls.ca_file, Path())


def _source(table: dict[str, Any], where: str, folder: Path) -> SourceSettings:
    name = table.get("name")
    with Prefix("", f" (the source {name[:80]!r})" if isinstance(name, str) else ""):
        kind = table.get("type")
        types = get_args(SourceType)
        if not isinstance(kind, str):
            raise ConfigurationError(f"{where}: it needs a type: {', '.join(types)}")
        source_type: SourceType = choice(f"{where}.type", kind, types)
        return convert(_parted(table, source_type, where, folder), SourceSettings, where, folder)


def _parted(table: dict[str, Any], kind: SourceType, where: str, folder: Path) -> dict[str, Any]:
    """Return a source's table with settings in the place of the keys that are theirs."""
    rest = dict(table)
    parts: dict[str, Table] = {}
    for attribute, part in _PARTS[kind].items():
        parts[attribute] = convert(_pop(rest, table_keys(part)), part, where, folder)
    if kind == "csv":
        parts["columns"] = _columns(rest, where)
    for key, types in _TYPES_WITH.items():
        if key in rest and kind not in types:
            raise ConfigurationError(f"{where}: there is no key {key!r}")
    if kind == "json" and "select" not in rest:
        raise ConfigurationError(f"{where}: the key 'select' is missing")
    return parts | rest


def _columns(rest: dict[str, Any], where: str) -> Columns:
    """Return the columns of a CSV, some of whose keys have a table of their own."""
    names = convert(rest.pop("columns", {}), ColumnNames, f"{where}.columns")
    own = _pop(rest, table_keys(Columns) - table_keys(ColumnNames))
    return structs.replace(convert(own, Columns, where), **structs.asdict(names))


def _pop(table: dict[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    return {key: table.pop(key) for key in keys if key in table}
