"""URLs of feeds, parts of which are secrets: who downloads, and the keys in queries."""

import re
from base64 import b64encode
from typing import Final
from urllib.parse import unquote_to_bytes, urlsplit, urlunsplit

_HIDDEN: Final = "***"


def shown_url(url: str) -> str:
    """Return a URL as it may be shown: without user, password and query."""
    url = re.sub(r"//[^/?#]*@", f"//{_HIDDEN}@", url, count=1)
    return re.sub(r"\?.+", f"?{_HIDDEN}", url)


def shown_text(text: str) -> str:
    """Return what should have been a URL, without all that may have been meant to be secret."""
    return shown_url(re.sub("//.*@", f"//{_HIDDEN}@", text))


def without_user(url: str) -> tuple[str, str | None]:
    """Return a URL without user and password, and the Authorization (RFC 7617) that they are.

    Octets of theirs that may not be in a URL are written with "%"; UTF-8 is what most servers
    expect.
    """
    parts = urlsplit(url)
    user, at, host = parts.netloc.rpartition("@")
    if not at:
        return url, None
    name, _, password = user.partition(":")
    pair = unquote_to_bytes(name) + b":" + unquote_to_bytes(password)
    return urlunsplit(parts._replace(netloc=host)), f"Basic {b64encode(pair).decode()}"
