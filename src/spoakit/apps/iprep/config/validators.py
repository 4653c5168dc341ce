"""Checks of the settings of sources: headers, URLs, columns, paths in JSON documents.

Each raises a `ConfigurationError` that names the key, the value and what is allowed.
"""

import re
from typing import Final
from urllib.parse import urlsplit

from spoakit.apps.checks import check_range, check_text
from spoakit.apps.iprep.addresses import number_of, parse_number
from spoakit.apps.iprep.config.units import NEVER_LISTED
from spoakit.apps.iprep.sources.json_list import JsonPath
from spoakit.apps.iprep.sources.lists import Columns
from spoakit.apps.urls import shown_text
from spoakit.exceptions import ConfigurationError

_MAX_NUMBER: Final = 1e12
_MAX_PATHS: Final = 100
# RFC 9110, 5.1 and 5.5.
_HEADER_NAME: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,255}")
_HEADER_VALUE: Final = re.compile(r"[!-~](?:[ -~]{0,8190}[!-~])?")
_OWN_HEADERS: Final = frozenset(
    (
        "accept-encoding",
        "connection",
        "content-length",
        "host",
        "if-modified-since",
        "if-none-match",
        "range",
        "transfer-encoding",
    )
)


def check_scale(best: float, worst: float) -> None:
    """Refuse numbers that are not the two ends of a scale."""
    check_range("best", best, -_MAX_NUMBER, _MAX_NUMBER)
    check_range("worst", worst, -_MAX_NUMBER, _MAX_NUMBER)
    if best == worst:
        raise ConfigurationError(f"best: {best!r} is worst too")


def check_headers(headers: tuple[tuple[str, str], ...]) -> None:
    """Refuse headers that are malformed, or not the user's choice, and show no values."""
    names: set[str] = set()
    for name, value in headers:
        if _HEADER_NAME.fullmatch(name) is None:
            raise ConfigurationError(f"headers: {name[:80]!r} is not the name of a header")
        option = f"headers.{name[:80]}"
        if name.lower() in _OWN_HEADERS:
            raise ConfigurationError(f"{option}: it cannot be chosen")
        if name.lower() in names:
            raise ConfigurationError(f"{option}: it is there twice")
        names.add(name.lower())
        if _HEADER_VALUE.fullmatch(value) is None:
            raise ConfigurationError(
                f"{option}: its value is not 1 to 8192 visible characters of ASCII and spaces"
            )


def check_test(text: str) -> None:
    """Refuse what a DNSBL cannot be tested with."""
    try:
        number = parse_number(text)
    except ValueError as error:
        raise ConfigurationError(
            f"test: {error}; give one that the zone always lists, or false"
        ) from None
    if number == number_of(NEVER_LISTED):
        raise ConfigurationError(f"test: {text!r} is never listed (RFC 5782, 5); give another one")


def check_url(url: str, headers: tuple[tuple[str, str], ...]) -> None:
    """Refuse what is not a URL of HTTP, or has a user beside a header Authorization."""
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        good = False
    if not good or not url.isascii() or not url.isprintable() or " " in url:
        raise ConfigurationError(f"url: {shown_text(url)[:80]!r} is not an http:// or https:// URL")
    if "@" in parts.netloc and any(name.lower() == "authorization" for name, _ in headers):
        raise ConfigurationError("headers.Authorization: the url has a user, too; give one of them")


def check_columns(columns: Columns) -> None:
    """Refuse columns that no line can have, and filters that no line can pass."""
    for column, values in columns.filter:
        if not values:
            raise ConfigurationError(f"filter.{str(column)[:80]}: there is no value in it")
    for place in columns.places():
        if isinstance(place, int):
            check_range("columns", place, 1, 1000)
        else:
            check_text("columns", place)
    if len(columns.delimiter) != 1 or columns.delimiter in '"\r\n':
        raise ConfigurationError(f"delimiter: {columns.delimiter[:80]!r} is not one character")
    check_scale(columns.best, columns.worst)


def check_select(paths: tuple[str, ...]) -> None:
    """Refuse what are not paths in a JSON document."""
    if not 1 <= len(paths) <= _MAX_PATHS:
        raise ConfigurationError(f"select: it has {len(paths)} paths, not 1 to {_MAX_PATHS}")
    for number, path in enumerate(paths, 1):
        check_text(f"select[{number}]", path)
        try:
            JsonPath(path)
        except ValueError as error:
            raise ConfigurationError(f"select[{number}]: {error}") from None
