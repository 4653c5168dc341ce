"""Repair of response heads that a strict parser refuses although their meaning is clear.

It runs only for heads that the parser has refused. libcurl, used by the C program, accepts all of
them.
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
    """Head whose meaning is not clear; the text says why."""


def tidy(received: bytes) -> tuple[bytes, bool] | None:
    """Return a received response with its head rewritten for a strict parser.

    Folded fields (RFC 9112, 5.2) are unfolded, several equal Content-Lengths become one (RFC 9110,
    8.6), a Content-Length beside a Transfer-Encoding is removed (RFC 9112, 6.3), lines may end with
    LF alone (2.2), fields may have white space before the colon, and lines without a colon are
    skipped.

    Args:
        received: the received part of the response, with interim responses before it.

    Returns:
        The rewritten bytes, and whether the connection must be closed after the response; None
        while the head is incomplete.

    Raises:
        OddHeadError: the length of the body is not clear, or the response is not HTTP/1.
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
        if head[9:10] != b"1":  # an interim response is followed by another one
            return b"".join(heads) + received, closes


def _check_beginning(received: bytes) -> None:
    """Refuse bytes that cannot become a head before the head is complete: it may never be."""
    if first := _LINE_END.search(received.lstrip()):
        parse_status(received.lstrip()[: first.start()])
    elif not _START.startswith(received.lstrip()[: len(_START)]):
        raise OddHeadError(f"it begins with {received[:40]!r}, which is not HTTP/1")


def _tidy_head(head: bytes) -> tuple[bytes, bool]:
    if b"\0" in head:
        raise OddHeadError("there is a NUL in its head")
    first, *rest = _LINE_END.split(head)
    version, status, reason = parse_status(first)
    fields = _parse_fields(rest)
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
        raise OddHeadError("the target changed the protocol without being asked to")
    return version, status, reason


def _parse_fields(lines: list[bytes]) -> list[tuple[bytes, bytes]]:
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
