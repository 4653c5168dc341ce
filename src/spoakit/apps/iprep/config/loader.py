"""Configuration file: TOML in, settings out; see docs/reference/iprep-configuration.md."""

import os
from pathlib import Path
from typing import Any

from spoakit.apps.checks import choice
from spoakit.apps.iprep.config.schema import SOURCES, File
from spoakit.apps.iprep.config.settings import (
    SOURCE_TYPES,
    ControlSettings,
    ReputationSettings,
    SourceSettings,
)
from spoakit.apps.toml import Prefix, convert, read_settings, readable_file
from spoakit.exceptions import ConfigurationError


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


def settings_of(document: dict[str, Any], folder: Path) -> ReputationSettings:
    """Return the settings that are in a document, names of files relative to a folder.

    Raises:
        ConfigurationError: as `read_config`, without the file's name.
    """
    if isinstance(document.get("source"), dict):
        raise ConfigurationError("source: there may be several; write [[source]]")
    file = convert(document, File, "")
    sources = tuple(
        _source(table, f"source[{number}]", folder) for number, table in enumerate(file.source, 1)
    )
    return file.settings(sources, folder)


def check_files(settings: ReputationSettings) -> None:
    """Refuse sources whose files cannot be read now; for a service they would be failed sources.

    Raises:
        ConfigurationError: a file cannot be read; the text names the source's key and the reason.
    """
    for number, source in enumerate(settings.sources, 1):
        with Prefix(f"source[{number}].", f" (the source {source.name[:80]!r})"):
            readable_file("path", source.path, Path())
            readable_file("tls.ca-file", source.feed.ca_file, Path())


def _source(table: dict[str, Any], where: str, folder: Path) -> SourceSettings:
    name = table.get("name")
    with Prefix("", f" (the source {name[:80]!r})" if isinstance(name, str) else ""):
        kind = table.get("type")
        if not isinstance(kind, str):
            raise ConfigurationError(f"{where}: it needs a type: {', '.join(SOURCE_TYPES)}")
        with Prefix(f"{where}."):
            source_type = choice("type", kind, SOURCE_TYPES)
        source = convert(table, SOURCES[source_type], where)
        with Prefix(f"{where}."):
            return source.settings(folder)
