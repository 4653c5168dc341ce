"""Tests of docs/reference/iprep-configuration.md: each key, its default and its range."""

import re
from pathlib import Path

import pytest

from spoakit.apps.iprep.config.loader import settings_of
from spoakit.apps.iprep.config.schema import ReputationSettings
from spoakit.apps.toml import parse_toml
from spoakit.apps.values import parse_seconds, parse_size
from spoakit.exceptions import ConfigurationError

REFERENCE = Path(__file__).parents[4] / "docs" / "reference" / "iprep-configuration.md"
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in REFERENCE.read_text().splitlines()
    if re.match(r"\| `[a-z0-9.-]+` \|", line)
]
DEFAULTS = [
    (key.strip("`"), default[1:-1]) for key, _, default, _, _ in ROWS if default.startswith("`")
]
RANGES = [
    (key.strip("`"), kind, allowed)
    for key, kind, _, allowed, _ in ROWS
    if " to " in allowed and kind != "text"
]
OF_THE_FILE = ("policy", "answers", "forwarded", "bans", "audit", "control", "cache")
OF_A_TYPE = {
    "csv": ("columns", "best", "worst", "delimiter"),
    "dnsbl": ("deadline", "cache-size", "min-ttl", "max-ttl", "max-pending", "octet", "test"),
}
# What else it takes for a key to have any of its values.
BESIDE = {
    "min-ttl": "max-ttl = '1d'\n",
    "max-ttl": "min-ttl = 0\n",
    "audit.threshold": "audit.path = 'a'\n",
}


def settings(key: str, line: str) -> ReputationSettings:
    """Return the settings of a file that has a line with a key, where that belongs."""
    first = key.split(".")[0]
    if first in OF_THE_FILE:
        return settings_of(parse_toml(BESIDE.get(key, "") + line), Path("/"))
    kind = next((kind for kind, keys in OF_A_TYPE.items() if first in keys), "list")
    place = "zone = 'bl.example'" if kind == "dnsbl" else "url = 'http://h'"
    text = f"cache = 'c'\n[[source]]\nname = 'a'\ntype = '{kind}'\n{place}\n{BESIDE.get(key, '')}"
    return settings_of(parse_toml(text + line), Path("/"))


@pytest.mark.parametrize(("key", "default"), DEFAULTS)
def test_the_default_is_what_holds_without_the_key(key: str, default: str) -> None:
    assert settings(key, f"{key} = {default}") == settings(key, "")


@pytest.mark.parametrize(("key", "kind", "allowed"), RANGES)
def test_the_range_is_what_is_taken(key: str, kind: str, allowed: str) -> None:
    low, high = (number(end.replace("`min-ttl`", "0"), kind) for end in allowed.split(" to "))
    step = 1 if kind in ("integer", "size") else 0.0001
    for value in (low, high):
        assert settings(key, f"{key} = {value}")
    for value in (low - step, high + step):
        with pytest.raises(ConfigurationError, match=rf"{key}: .* is not "):
            settings(key, f"{key} = {value}")


def number(text: str, kind: str) -> float:
    text = text.replace(",", "")
    if kind == "time":
        return parse_seconds(text.replace(" ", "") if " " in text else float(text))
    if kind == "size":
        return parse_size(text.replace(" ", ""))
    return int(text) if kind == "integer" else float(text)
