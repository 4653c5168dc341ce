"""URLs, parts of which are secrets: users and passwords, and the keys in queries."""

import re
from base64 import b64encode
from typing import Final
from urllib.parse import unquote_to_bytes, urlsplit, urlunsplit

_HIDDEN: Final = "***"


def shown_url(url: str) -> str:
    """Return a URL as it may be shown: without user, password and query."""
    url = re.sub(r"//[^/?#]*@", f"//{_HIDDEN}@", url, count=1)
    return re.sub(r"\?.+", f"?{_HIDDEN}", url, flags=re.DOTALL)


def shown_text(text: str) -> str:
    """Return what should have been a URL, without all that may have been meant to be secret."""
    scheme = r"^((?:[A-Za-z][A-Za-z0-9+.-]*:)?//)?"
    return shown_url(re.sub(f"{scheme}.*@", rf"\1{_HIDDEN}@", text, flags=re.DOTALL))


def without_users(text: str) -> str:
    """Return a text, as an error's, without the users and passwords of the URLs in it."""
    return re.sub(r"//\S*@", f"//{_HIDDEN}@", text)


def without_user(url: str) -> tuple[str, str | None]:
    """Return a URL without user and password, and the Authorization (RFC 7617) that they are.

    Octets of theirs that may not be in a URL are written with "%"; UTF-8 is what most servers
    expect.
    """
    parts = urlsplit(url)
    user, at, host = parts.netloc.rpartition("@")
    if not at:
        return url, None
    return urlunsplit(parts._replace(netloc=host)), basic_authorization(user)


def basic_authorization(userinfo: str) -> str:
    """Return the Authorization that the user and password of a URL are, as "me:secret"."""
    user, _, password = userinfo.partition(":")
    pair = unquote_to_bytes(user) + b":" + unquote_to_bytes(password)
    return f"Basic {b64encode(pair).decode()}"
