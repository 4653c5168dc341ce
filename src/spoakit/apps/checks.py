"""Validators of settings: ranges, choices, names, writable files.

Each raises a `ConfigurationError` that names the option, the value and what is allowed. Options are
named like the configuration file's keys, as "timeouts.connect".
"""

import os
from typing import Final, TypeVar

from spoakit.exceptions import ConfigurationError

T = TypeVar("T", bound=str)

_MAX_TEXT: Final = 255


def check_range(option: str, value: float, low: float, high: float) -> None:
    """Refuse a number that is not in an inclusive range."""
    if not low <= value <= high:
        raise ConfigurationError(f"{option}: {value!r} is not in the range {low} to {high}")


def check_percent(option: str, value: float) -> None:
    """Refuse a percentage that is neither 0 nor from 0.001 to 100."""
    check_range(option, value, 0, 100)
    if 0 < value < 0.001:
        raise ConfigurationError(f"{option}: {value!r} is neither 0 nor at least 0.001 percent")


def choice(option: str, value: str, known: tuple[T, ...]) -> T:
    """Return a word if it is one of `known`, or refuse it."""
    for word in known:
        if word == value:
            return word
    raise ConfigurationError(f"{option}: {value!r} is not one of {', '.join(known)}")


def check_text(option: str, text: str) -> None:
    """Refuse a name that is empty, longer than 255 characters or not printable."""
    if not 1 <= len(text) <= _MAX_TEXT or not text.isprintable():
        raise ConfigurationError(
            f"{option}: {text[:80]!r} is not 1 to {_MAX_TEXT} printable characters"
        )


def check_writable(option: str, path: str) -> None:
    """Refuse a file that cannot be written or created, without changing it.

    Raises:
        ConfigurationError: the file cannot be written; the text names the option and the file.
    """
    folder = os.path.dirname(os.path.abspath(path))
    if os.path.isdir(path):
        reason = "it is a folder"
    elif os.path.exists(path):
        reason = "" if os.access(path, os.W_OK) else "no permission"
    elif not os.path.isdir(folder):
        reason = f"there is no folder {folder!r}"
    else:
        reason = "" if os.access(folder, os.W_OK | os.X_OK) else f"no permission in {folder!r}"
    if reason:
        raise ConfigurationError(f"{option}: {path!r} cannot be written: {reason}")
