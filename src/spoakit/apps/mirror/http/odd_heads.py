"""Heads of responses that a strict parser refuses, though what they mean is plain.

Not hot: it runs for what the parser has refused, and for nothing else. The C program's libcurl
takes all of these, so that a target which sends them works with it.
"""

import re
from typing import Final

from spoakit.exceptions import SpoakitError

_END: Final = re.compile(rb"\r?\n\r?\n")
_LINE_END: Final = re.compile(rb"\r?\n")
_STATUS: Final = re.compile(rb"\s*(HTTP/1\.[01]) +([1-9][0-9]{2})(?: ([^\r\n]*))?")
_START: Final = b"HTTP/1."
_NUMBER: Final = re.compile(rb"[0-9]{1,18}")


class OddHeadError(SpoakitError):
    """A head that nobody can tell the meaning of; the text says why."""


def tidy(received: bytes) -> tuple[bytes, bool] | None:
    """Return what was received of a response with its head as a strict parser wants it.

    Folded fields (RFC 9112, 5.2) are unfolded, several equal Content-Lengths become one (RFC 9110,
    8.6), a Content-Length beside a Transfer-Encoding goes (RFC 9112, 6.3), lines may end with LF
    alone (2.2), fields may have white space before the colon, and lines without a colon are passed
    over.

    Args:
        received: all of the response up to now, interim responses in front of it included.

    Returns:
        It, and whether the connection has to be closed behind the response; None while the head has
        not come as a whole.

    Raises:
        OddHeadError: the length of its body cannot be told, or it is not HTTP/1.
    """
    heads: list[bytes] = []
    closes = False
    while True:
        end = _END.search(received)
        if end is None:
            _check_beginning(received)
            return None
        head, closes = _tidy_head(received[: end.start()])
        heads.append(head)
        received = received[end.end() :]
        if head[9:10] != b"1":  # an interim response has another one behind it
            return b"".join(heads) + received, closes


def _check_beginning(received: bytes) -> None:
    """Refuse what cannot become a head, before all of it has come: it may never come."""
    if first := _LINE_END.search(received.lstrip()):
        parse_status(received.lstrip()[: first.start()])
    elif not _START.startswith(received.lstrip()[: len(_START)]):
        raise OddHeadError(f"it begins with {received[:40]!r}, which is not HTTP/1")


def _tidy_head(head: bytes) -> tuple[bytes, bool]:
    if b"\0" in head:
        raise OddHeadError("there is a NUL in its head")
    first, *rest = _LINE_END.split(head)
    version, status, reason = parse_status(first)
    fields = _fields_of(rest)
    lengths = {
        part.strip()
        for name, value in fields
        if name.lower() == b"content-length"
        for part in value.split(b",")
    }
    is_chunked = any(name.lower() == b"transfer-encoding" for name, _ in fields)
    if not is_chunked and (len(lengths) > 1 or not all(map(_NUMBER.fullmatch, lengths))):
        shown = ", ".join(repr(length) for length in sorted(lengths)[:3])
        raise OddHeadError(f"its Content-Length is {shown}")
    lines = [b"%b %b %b" % (version, status, reason)]
    lines += [b"%b: %b" % field for field in fields if field[0].lower() != b"content-length"]
    if lengths and not is_chunked:
        lines.append(b"Content-Length: " + lengths.pop())
    return b"\r\n".join(lines) + b"\r\n\r\n", is_chunked and bool(lengths)


def parse_status(line: bytes) -> tuple[bytes, bytes, bytes]:
    """Return the version, the status and the reason of a response's first line.

    Raises:
        OddHeadError: it is not HTTP/1, or changes the protocol.
    """
    found = _STATUS.fullmatch(line)
    if found is None:
        raise OddHeadError(f"it begins with {line[:40]!r}, which is not HTTP/1")
    version, status, reason = found.groups(b"")
    if status == b"101":
        raise OddHeadError("the target changed the protocol, which nobody asked for")
    return version, status, reason


def _fields_of(lines: list[bytes]) -> list[tuple[bytes, bytes]]:
    fields: list[tuple[bytes, bytes]] = []
    for line in lines:
        if line[:1] in (b" ", b"\t") and fields:
            name, value = fields[-1]
            fields[-1] = name, value + b" " + line.strip()
            continue
        name, colon, value = line.partition(b":")
        if colon and name.strip():
            fields.append((name.strip(), value.strip()))
    return fields
