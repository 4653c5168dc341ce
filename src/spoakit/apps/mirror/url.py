"""URL of a target."""

import re
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import unquote, urlsplit

from spoakit.apps.mirror.config.validators import is_host
from spoakit.apps.urls import basic_authorization, shown_text
from spoakit.exceptions import ConfigurationError

_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")


@dataclass(frozen=True, slots=True)
class TargetURL:
    """Destination of copies.

    Attributes:
        scheme: "http" or "https".
        host: a name or an address, IPv6 without its brackets.
        port: 1 to 65535.
        authority: host and port as in the URL; it is the Host of a request without one.
        base_path: the prefix of each request's path, with a slash at its start and none at its end;
            "" is the root.
        authorization: the Authorization (RFC 7617) made of user and password; "" without them.
    """

    scheme: str
    host: str
    port: int
    authority: str
    base_path: str = ""
    authorization: str = field(default="", repr=False)

    @classmethod
    def parse(cls, text: str) -> "TargetURL":
        """Parse a URL such as "http://localhost:8100/" or "https://me:secret@[2001:db8::1]/base".

        Raises:
            ConfigurationError: the URL is invalid; the text says why, without user and password.
        """
        if not text.isascii() or not text.isprintable() or " " in text:
            raise _invalid(text, "it has characters that must be percent-encoded")
        try:
            parts = urlsplit(text)
            host, port = parts.hostname, parts.port
        except ValueError:  # its text may quote a secret, so it is not shown
            raise _invalid(text, "its host or its port (1 to 65535) is malformed") from None
        if parts.scheme not in _DEFAULT_PORTS:
            raise _invalid(text, "it does not start with http:// or https://")
        if not host:
            raise _invalid(text, "it has no host")
        if not is_host(host):
            raise _invalid(text, "its host is not a host name or address")
        if port == 0:
            raise _invalid(text, "the port is not 1 to 65535")
        if "?" in text or "#" in text:
            raise _invalid(text, "it ends with its path; query and fragment come from the requests")
        userinfo, at, authority = parts.netloc.rpartition("@")
        if at and (reason := _credentials_error(userinfo)):
            raise _invalid(text, reason)
        return cls(
            parts.scheme,
            host,
            port or _DEFAULT_PORTS[parts.scheme],
            authority,
            f"/{parts.path.strip('/')}".rstrip("/"),
            basic_authorization(userinfo) if at else "",
        )

    @property
    def origin(self) -> str:
        """Scheme and authority, as "http://localhost:8100"."""
        return f"{self.scheme}://{self.authority}"

    def __str__(self) -> str:
        return f"{self.origin}{self.base_path}/"


def _credentials_error(userinfo: str) -> str:
    """Return why a user and a password cannot be sent (RFC 7617, 2); "" if they can."""
    user, _, password = userinfo.partition(":")
    try:
        user, password = (unquote(part, errors="strict") for part in (user, password))
    except UnicodeDecodeError:
        return "its user or password is not UTF-8, percent-encoded"
    if not user and not password:
        return "its user and password are empty; remove the '@'"
    if ":" in user:
        return "its user has a colon, which would end it"
    if _CONTROL.search(user + password):
        return "its user or password has a control character"
    return ""


def _invalid(text: str, reason: str) -> ConfigurationError:
    return ConfigurationError(f"invalid mirror URL {shown_text(text)!r}: {reason}")
