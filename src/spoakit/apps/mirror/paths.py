"""Request targets: split into authority and path, and rewritten for a mirror's target."""

from spoakit.apps.mirror.exceptions import RefusedRequestError
from spoakit.apps.mirror.patterns import Pattern

# RFC 9110, 5.6.2
TOKEN = b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


def split_target(method: bytes, target: bytes) -> tuple[bytes, bytes]:
    """Return the authority and the path of a request target that is not a path (RFC 9112, 3.2).

    Raises:
        RefusedRequestError: the target is neither a complete URL, nor ``*``, nor empty.
    """
    if target == b"*":
        return b"", target
    if not target:
        return b"", b"/"
    scheme, authority, path = split_url(target)
    if not scheme[:1].isalpha() or scheme.translate(None, TOKEN):
        raise RefusedRequestError(f"{target[:80]!r} is neither a path nor a URL")
    if not path:
        # RFC 9112, 3.2.4: OPTIONS without a path concerns the server as a whole.
        path = b"*" if method == b"OPTIONS" else b"/"
    return authority, path


def split_url(target: bytes) -> tuple[bytes, bytes, bytes]:
    """Return the scheme, the authority without a user, and the path of a target.

    The path has the query; it is empty, or begins with "/", where the target is a URL. A target
    that is not one is all path.
    """
    if target.startswith(b"/") or b"://" not in target:
        return b"", b"", target
    scheme, _, rest = target.partition(b"://")
    end = min((at for mark in b"/?#" if (at := rest.find(mark)) >= 0), default=len(rest))
    path = rest[end:]
    if path and not path.startswith(b"/"):
        path = b"/" + path
    return scheme, rest[:end].rpartition(b"@")[2], path


class PathRewriter:
    """Rewrite paths: first strip a prefix, then replace the first match of a pattern.

    Args:
        strip_prefix: removed if it ends at a slash or the end: "/api" from "/api/x", not "/apix".
        pattern: a regular expression; None for none.
        replacement: the replacement of the pattern's first match, as in `Pattern`.
    """

    def __init__(self, strip_prefix: str, pattern: str | None, replacement: str) -> None:
        self._prefix = strip_prefix.rstrip("/").encode()
        self._pattern = None if pattern is None else Pattern("path.pattern", pattern, replacement)

    def rewrite(self, path: bytes) -> bytes:
        """Return a path and its query as the target receives them."""
        if self._prefix and path.startswith(self._prefix):
            rest = path[len(self._prefix) :]
            if rest[:1] in (b"", b"/", b"?"):
                path = rest
        if self._pattern is not None:
            path = self._pattern.replaced(path)
        return path if path.startswith(b"/") else b"/" + path
