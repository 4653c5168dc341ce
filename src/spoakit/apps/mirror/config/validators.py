"""Checks of the values of the mirror's settings alone: times, header fields, hosts, paths.

Each raises a `ConfigurationError` that names the option, the value and what is allowed. Options
have the names of the configuration file's keys, as "timeouts.connect".
"""

import re
from collections.abc import Iterable
from ipaddress import IPv6Address
from typing import Final

from spoakit.apps.checks import check_range
from spoakit.exceptions import ConfigurationError

DAY: Final = 86400
"""The longest time, in seconds."""

_SHORTEST: Final = 0.001
_MAX_PORT: Final = 65535

# RFC 9110, 5.6.2 and 5.5
_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_CONTROL: Final = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
# A name, of labels that can be looked up (RFC 1035, 2.3.4), an IPv4 address or an IPv6 address in
# brackets (RFC 3986, 3.2.2).
_LABEL: Final = r"[0-9A-Za-z_-]{1,63}"
_NAME: Final = re.compile(rf"{_LABEL}(?:\.{_LABEL})*\.?")
_HOST: Final = re.compile(rf"{_NAME.pattern}|\[[0-9A-Fa-f:.]+\]")
_MAX_NAME_SIZE: Final = 253
_AUTHORITY: Final = re.compile(rf"(?:{_HOST.pattern})(?::([0-9]{{1,5}}))?")
_PATH: Final = re.compile(r"/[!-~]*")

# The mirror writes these itself: no setting may change how a copy is framed.
_FRAMING: Final = frozenset(("content-length", "transfer-encoding"))
# These concern one connection only (RFC 9110, 7.6.1), and no copy has them.
_HOP_BY_HOP: Final = frozenset(
    ("connection", "expect", "keep-alive", "proxy-connection", "te", "trailer", "upgrade")
)


def check_token(option: str, text: str) -> None:
    """Refuse what can be neither a method nor the name of a field or cookie (RFC 9110, 5.6.2)."""
    if _TOKEN.fullmatch(text) is None:
        raise ConfigurationError(f"{option}: {text[:80]!r} is not a token (RFC 9110, 5.6.2)")


def check_field(option: str, name: str, value: str) -> None:
    """Refuse a header field that cannot be sent, or that the mirror writes itself.

    Its value may be a secret, and is not shown.
    """
    check_token(option, name)
    lower = name.lower()
    if lower == "host":
        raise ConfigurationError(f"{option}: {name!r} is set by the option host")
    if lower in _FRAMING or lower in _HOP_BY_HOP:
        raise ConfigurationError(
            f"{option}: {name!r} is the mirror's own to write or to leave out; take it away"
        )
    if _CONTROL.search(value):
        raise ConfigurationError(
            f"{option}: the value of {name!r} has a CR, LF, NUL or other control"
        )
    if value != value.strip(" \t"):
        raise ConfigurationError(f"{option}: the value of {name!r} has white space at an end")


def check_removable(option: str, name: str) -> None:
    """Refuse the name of a field that a copy cannot be without."""
    check_token(option, name)
    if name.lower() == "host" or name.lower() in _FRAMING:
        raise ConfigurationError(f"{option}: {name!r} cannot be left out: every copy needs its own")


def check_distinct(option: str, names: Iterable[str]) -> None:
    """Refuse names of which two differ in case at most."""
    seen: set[str] = set()
    for name in names:
        if name.lower() in seen:
            raise ConfigurationError(f"{option}: {name!r} is there twice")
        seen.add(name.lower())


def is_host(text: str) -> bool:
    """Return whether it is a host name or an address, IPv6 without brackets."""
    if ":" not in text:
        return len(text) <= _MAX_NAME_SIZE and _NAME.fullmatch(text) is not None
    try:
        IPv6Address(text)
    except ValueError:
        return False
    return True


def check_host(option: str, text: str) -> None:
    """Refuse what is neither a host name nor an address, IPv6 in brackets."""
    in_brackets = text.startswith("[") and text.endswith("]")
    if in_brackets is not (":" in text) or not is_host(text.strip("[]")):
        raise ConfigurationError(f"{option}: {text[:80]!r} is not a host name or address")


def check_server_name(option: str, text: str) -> None:
    """Refuse what no certificate can be for: neither a host name nor an address."""
    if not is_host(text):
        raise ConfigurationError(
            f"{option}: {text[:80]!r} is not a host name or an address without brackets"
        )


def check_authority(option: str, text: str) -> None:
    """Refuse what cannot be the value of a Host field: a host, perhaps with a port."""
    match = _AUTHORITY.fullmatch(text)
    if match is None or not 1 <= int(match[1] or 1) <= _MAX_PORT:
        raise ConfigurationError(
            f"{option}: {text[:80]!r} is not a host name or address with, perhaps, "
            f"a port of 1 to {_MAX_PORT}"
        )


def check_ports(option: str, first: int, last: int) -> None:
    """Refuse what is not a range of ports."""
    if not 1 <= first <= last <= _MAX_PORT:
        raise ConfigurationError(
            f"{option}: {first}-{last} is not a range of ports from 1 to {_MAX_PORT}, "
            "the lower one first"
        )


def clean_prefix(option: str, text: str) -> str:
    """Return a prefix of paths without a slash at its end, or refuse it.

    It is "" for "" and "/".
    """
    if text and (_PATH.fullmatch(text) is None or "?" in text or "#" in text):
        raise ConfigurationError(
            f"{option}: {text[:80]!r} is not a path: it begins with a slash, and has neither "
            "white space, a '?' or '#', nor anything that must be percent-encoded"
        )
    return text.rstrip("/")


def check_file_name(option: str, name: str) -> None:
    """Refuse a name that a file cannot have."""
    if not name or "\0" in name:
        raise ConfigurationError(f"{option}: {name!r} is not a file's name")


def check_time(option: str, seconds: float) -> None:
    """Refuse a time that is not in the range 0.001 s to a day."""
    check_range(option, seconds, _SHORTEST, DAY)


def check_sample_by(text: str) -> None:
    """Refuse what requests cannot be sampled by."""
    if text in ("", "src", "key"):
        return
    kind, colon, name = text.partition(":")
    if kind not in ("cookie", "header") or not colon:
        raise ConfigurationError(
            f"sample-by: {text[:80]!r} is not one of src, key, cookie:NAME and header:NAME"
        )
    check_token("sample-by", name)
