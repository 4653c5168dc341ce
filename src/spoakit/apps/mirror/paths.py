"""What a request asks for: taking it apart, and changing it for a target."""

from spoakit.apps.mirror.patterns import Pattern
from spoakit.exceptions import SpoakitError

# RFC 9110, 5.6.2
TOKEN = b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


class RefusedRequestError(SpoakitError):
    """A request of which no safe or no faithful copy can be made; the text says why."""


def split_target(method: bytes, target: bytes) -> tuple[bytes, bytes]:
    """Return the authority and the path of a target that is no path (RFC 9112, 3.2).

    Raises:
        RefusedRequestError: it is neither a complete URL, nor ``*``, nor empty.
    """
    if target == b"*":
        return b"", target
    scheme, separator, rest = target.partition(b"://")
    if not separator or not scheme[:1].isalpha() or scheme.translate(None, TOKEN):
        if target:
            raise RefusedRequestError(f"{target[:80]!r} is neither a path nor a URL")
        return b"", b"/"
    end = min(
        (found for found in (rest.find(mark) for mark in (b"/", b"?", b"#")) if found >= 0),
        default=len(rest),
    )
    path = rest[end:]
    if not path:
        # RFC 9112, 3.2.4: without a path, it is the server that is asked for its options.
        path = b"*" if method == b"OPTIONS" else b"/"
    elif not path.startswith(b"/"):
        path = b"/" + path
    return rest[:end].rpartition(b"@")[2], path


class PathRewriter:
    """Change paths: first strip a prefix, then replace what matches a pattern.

    Args:
        strip_prefix: taken away where it stands whole: "/api" from "/api/x", not from "/apix".
        pattern: a regular expression, of which the first match is replaced; None for none.
        replacement: what replaces it, as in `Pattern`.
    """

    def __init__(self, strip_prefix: str, pattern: str | None, replacement: str) -> None:
        self._prefix = strip_prefix.rstrip("/").encode()
        self._pattern = None if pattern is None else Pattern("path.pattern", pattern, replacement)

    def rewrite(self, path: bytes) -> bytes:
        """Return a path, with its query, as the target shall get it."""
        if self._prefix and path.startswith(self._prefix):
            rest = path[len(self._prefix) :]
            if rest[:1] in (b"", b"/", b"?"):
                path = rest
        if self._pattern is not None:
            path = self._pattern.replaced(path)
        return path if path.startswith(b"/") else b"/" + path
