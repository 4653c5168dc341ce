"""Configuration file: TOML in, settings out; see docs/reference/mirror-configuration.md."""

import os
from pathlib import Path
from typing import Any, Final

from spoakit.apps.mirror.config.schema import Defaults, File, Target
from spoakit.apps.mirror.config.settings import MirrorSettings, TargetSettings
from spoakit.apps.mirror.url import TargetURL
from spoakit.apps.toml import Prefix, convert, read_settings
from spoakit.apps.urls import shown_text
from spoakit.exceptions import ConfigurationError

# What a table of defaults is checked with.
_ANY_URL: Final = TargetURL.parse("http://localhost")


def read_config(path: str | os.PathLike[str]) -> MirrorSettings:
    """Read a configuration file, of 1 MiB at most; names of files are relative to where it is.

    Raises:
        ConfigurationError: see `spoakit.apps.toml.read_settings`.
    """
    return read_settings(path, _settings)


def _settings(document: dict[str, Any], folder: Path) -> MirrorSettings:
    mirror = convert(document, File, "")
    # Wrong defaults are an error of the defaults, and not of each target.
    defaults = convert(mirror.defaults, Defaults, "defaults")
    with Prefix("defaults."):
        defaults.target(_ANY_URL, "", folder)
    if not mirror.target:
        raise ConfigurationError("target: there is none; each is a [[target]] with its url")
    targets = []
    for number, table in enumerate(mirror.target, 1):
        with Prefix("", _label(table)):
            target = convert(_merged(mirror.defaults, table), Target, f"target[{number}]")
            with Prefix(f"target[{number}]."):
                targets.append(_target(target, folder))
    return MirrorSettings(
        tuple(targets), mirror.drain, mirror.log.settings(folder), mirror.processing_delay
    )


def _target(target: Target, folder: Path) -> TargetSettings:
    with Prefix("url: "):
        url = TargetURL.parse(target.url)
    return target.target(url, target.name, folder)


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
