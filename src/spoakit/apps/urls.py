"""URLs with secrets: users, passwords, and keys in queries."""

import re
from base64 import b64encode
from typing import Final
from urllib.parse import unquote_to_bytes, urlsplit, urlunsplit

_HIDDEN: Final = "***"


def shown_url(url: str) -> str:
    """Return a URL for display, without user, password and query."""
    url = re.sub(r"//[^/?#]*@", f"//{_HIDDEN}@", url, count=1)
    return re.sub(r"\?.+", f"?{_HIDDEN}", url, flags=re.DOTALL)


def shown_text(text: str) -> str:
    """Return a malformed URL for display, without the parts that may be secret."""
    scheme = r"^((?:[A-Za-z][A-Za-z0-9+.-]*:)?//)?"
    return shown_url(re.sub(f"{scheme}.*@", rf"\1{_HIDDEN}@", text, flags=re.DOTALL))


def without_users(text: str) -> str:
    """Return a text, for example of an error, without the users and passwords of its URLs."""
    return re.sub(r"//\S*@", f"//{_HIDDEN}@", text)


def without_user(url: str) -> tuple[str, str | None]:
    """Return a URL without user and password, and the Authorization (RFC 7617) made of them.

    User and password are percent-encoded; most servers expect UTF-8.
    """
    parts = urlsplit(url)
    user, at, host = parts.netloc.rpartition("@")
    if not at:
        return url, None
    return urlunsplit(parts._replace(netloc=host)), basic_authorization(user)


def basic_authorization(userinfo: str) -> str:
    """Return the Authorization for the user and password of a URL, as "me:secret"."""
    user, _, password = userinfo.partition(":")
    pair = unquote_to_bytes(user) + b":" + unquote_to_bytes(password)
    return f"Basic {b64encode(pair).decode()}"
