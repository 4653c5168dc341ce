"""Configuration file: TOML in, settings out; see docs/reference/mirror-configuration.md."""

import os
from pathlib import Path
from typing import Any

import msgspec

from spoakit.apps.mirror.config.schema import MirrorSettings, TargetSettings
from spoakit.apps.toml import Prefix, Table, convert, read_settings
from spoakit.apps.urls import shown_text
from spoakit.exceptions import ConfigurationError


class _Targets(Table, frozen=True):
    """Tables that are merged before they are settings."""

    defaults: dict[str, Any] = msgspec.field(default_factory=dict)
    target: tuple[dict[str, Any], ...] = ()


def read_config(path: str | os.PathLike[str]) -> MirrorSettings:
    """Read a configuration file, of 1 MiB at most; names of files are relative to where it is.

    Raises:
        ConfigurationError: see `spoakit.apps.toml.read_settings`.
    """
    return read_settings(path, _settings)


def _settings(document: dict[str, Any], folder: Path) -> MirrorSettings:
    merged = {key: document[key] for key in _Targets.__struct_fields__ if key in document}
    tables = convert(merged, _Targets, "")
    rest = {key: value for key, value in document.items() if key not in merged}
    mirror = convert(rest, MirrorSettings, "", folder)
    _check_defaults(tables.defaults, folder)
    if not tables.target:
        raise ConfigurationError("target: there is none; each is a [[target]] with its url")
    targets = []
    for number, table in enumerate(tables.target, 1):
        with Prefix("", _label(table)):
            target = _merged(tables.defaults, table)
            targets.append(convert(target, TargetSettings, f"target[{number}]", folder))
    return msgspec.structs.replace(mirror, targets=tuple(targets))


def _check_defaults(defaults: dict[str, Any], folder: Path) -> None:
    """Refuse wrong defaults as an error of the defaults, and not of each target."""
    for key in ("url", "name"):
        if key in defaults:
            raise ConfigurationError(f"defaults: there is no key {key!r}")
    convert(defaults | {"url": "http://localhost"}, TargetSettings, "defaults", folder)


def _label(table: dict[str, Any]) -> str:
    """Return what tells a target from the others better than its number."""
    name, url = table.get("name"), table.get("url")
    if not name and isinstance(url, str):
        name = shown_text(url)
    return f" (the target {name[:80]!r})" if isinstance(name, str) else ""


def _merged(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Return a table with defaults under it, key by key, and so for the tables in it."""
    merged = under | over
    for key, value in over.items():
        below = under.get(key)
        if isinstance(value, dict) and isinstance(below, dict):
            merged[key] = _merged(below, value)
    return merged
