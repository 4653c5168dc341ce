"""Environment variables in the texts of a configuration file: `${NAME}`.

They are expanded after TOML is parsed, so that a value cannot add keys or tables. No error shows a
value, since values may be passwords.
"""

import os
import re
from collections.abc import Mapping
from typing import Any, Final

from spoakit.exceptions import ConfigurationError

_MAX_KEY: Final = 80
_REFERENCE: Final = re.compile(r"\$\$\{|\$\{([^}]*)(\}?)")
_NAME: Final = re.compile(r"[A-Za-z_][0-9A-Za-z_]*", re.ASCII)


def expand_variables(
    document: dict[str, Any], environment: Mapping[str, str] = os.environ
) -> dict[str, Any]:
    """Return a document with `${NAME}` replaced in its texts, but not in its keys.

    `${NAME:-default}` uses the default if the variable is not set or empty, as in a shell, and
    `$${` is a literal `${`.

    Raises:
        ConfigurationError: a variable is not set, or its syntax is wrong; the text names the key.
    """
    try:
        expanded: dict[str, Any] = _expand(document, "", environment)
    except RecursionError:  # dotted keys create nested tables without nested syntax
        raise ConfigurationError("its tables or lists are nested too deeply") from None
    return expanded


def _expand(value: Any, where: str, environment: Mapping[str, str]) -> Any:
    if isinstance(value, str):
        return _expand_text(value, where, environment) if "${" in value else value
    if isinstance(value, dict):
        return {
            key: _expand(each, f"{where}.{key[:_MAX_KEY]}".removeprefix("."), environment)
            for key, each in value.items()
        }
    if isinstance(value, list):
        return [
            _expand(each, f"{where}[{number}]", environment) for number, each in enumerate(value, 1)
        ]
    return value


def _expand_text(text: str, where: str, environment: Mapping[str, str]) -> str:
    def replace(match: re.Match[str]) -> str:
        if match[0] == "$${":
            return "${"
        if not match[2]:
            raise ConfigurationError(f"{where}: a '${{' has no '}}'; write $${{ for a literal ${{")
        name, colon, default = match[1].partition(":-")
        if _NAME.fullmatch(name) is None or "${" in default:
            raise ConfigurationError(
                f"{where}: a '${{' is not ${{NAME}} or ${{NAME:-default}}; write $${{ for a "
                "literal ${"
            )
        return _value_of(name, default if colon else None, where, environment)

    return _REFERENCE.sub(replace, text)


def _value_of(name: str, default: str | None, where: str, environment: Mapping[str, str]) -> str:
    value = environment.get(name)
    if default is not None and not value:
        return default
    if value is None:
        raise ConfigurationError(
            f"{where}: the variable {name} is not set in the environment; set it, or give a "
            f"default: ${{{name}:-default}}"
        )
    if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
        raise ConfigurationError(f"{where}: the variable {name} is not UTF-8")
    return value
