"""The URL of a target."""

from dataclasses import dataclass
from urllib.parse import urlsplit

from spoakit.apps.mirror.config.validators import is_host
from spoakit.exceptions import ConfigurationError

_DEFAULT_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class TargetURL:
    """Where copies go.

    Attributes:
        scheme: "http" or "https".
        host: a name or an address, IPv6 without its brackets.
        port: 1 to 65535.
        authority: host and port as they were given, which is the Host of a request without one.
        base_path: goes in front of each request's path; one slash at its
            front and none at its end, so "" is the root.
    """

    scheme: str
    host: str
    port: int
    authority: str
    base_path: str = ""

    @classmethod
    def parse(cls, text: str) -> "TargetURL":
        """Read a URL such as "http://localhost:8100/" or "https://[2001:db8::1]/base".

        Raises:
            ConfigurationError: it is no such URL; the text says what is wrong.
        """
        if not text.isascii() or not text.isprintable() or " " in text:
            raise _invalid(text, "it has characters that must be percent-encoded")
        try:
            parts = urlsplit(text)
            host, port = parts.hostname, parts.port
        except ValueError as error:
            raise _invalid(text, str(error)) from None
        if parts.scheme not in _DEFAULT_PORTS:
            raise _invalid(text, "it does not start with http:// or https://")
        if not host:
            raise _invalid(text, "it names no host")
        if not is_host(host):
            raise _invalid(text, f"{host[:80]!r} is not a host name or address")
        if port == 0:
            raise _invalid(text, "the port is not 1 to 65535")
        if "@" in parts.netloc:
            raise _invalid(text, "user and password are not supported")
        if "?" in text or "#" in text:
            raise _invalid(text, "it ends with its path; query and fragment come from the requests")
        return cls(
            parts.scheme,
            host,
            port or _DEFAULT_PORTS[parts.scheme],
            parts.netloc,
            f"/{parts.path.strip('/')}".rstrip("/"),
        )

    @property
    def origin(self) -> str:
        """Scheme and authority, as "http://localhost:8100"."""
        return f"{self.scheme}://{self.authority}"

    def __str__(self) -> str:
        return f"{self.origin}{self.base_path}/"


def _invalid(text: str, reason: str) -> ConfigurationError:
    return ConfigurationError(f"invalid mirror URL {text!r}: {reason}")
