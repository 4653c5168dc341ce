# cython: wraparound=False
"""Reading the answer that nearly all answers are, in front of the parser for all of them. Hot code.

Plain Python that compiles to C (see ``spoakit._cython``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from spoakit import _cython as cython
else:
    try:
        import cython
    except ModuleNotFoundError:
        from spoakit import _cython as cython

COMPILED: bool = cython.compiled

_MAX_DIGITS = cython.declare(cython.Py_ssize_t, 18)


def read_plain_answer(data: bytes) -> tuple[int, int] | None:
    """Return the status and the size of the body of an answer that came in one piece.

    That is an HTTP/1.1 answer with a Content-Length after which the connection stays, and of which
    `data` holds all and nothing else. None for whatever differs in the slightest.
    """
    head: bytes
    body: bytes
    head, _, body = data.partition(b"\r\n\r\n")
    lines: list[bytes] = head.split(b"\r\n")
    line: bytes = lines[0]
    if not line.startswith(b"HTTP/1.1 ") or len(line) < 13 or line[12] != 0x20:
        return None
    status: cython.longlong = _read_number(line, 9, 12)
    if status < 200 or status == 204 or status == 304:
        return None
    size: cython.longlong = -1
    index: cython.Py_ssize_t
    for index in range(1, len(lines)):
        line = lines[index]
        if not line or line[0] <= 0x20:
            return None
        if len(line) < 12:
            continue
        first: cython.uint = line[0] | 0x20
        if first == 0x63:  # "c"
            if line[7] == 0x2D and line[8] | 0x20 == 0x6C:  # as in "content-length"
                if size >= 0 or line[:16].lower() != b"content-length: ":
                    return None
                size = _read_number(line, 16, len(line))
                if size < 0:
                    return None
            elif line[3] | 0x20 == 0x6E and not line.endswith(b": keep-alive"):  # "connection"
                return None
        elif first == 0x74 and line[:17].lower() == b"transfer-encoding":  # "t"
            return None
    return (status, size) if size == len(body) else None


@cython.cfunc
@cython.exceptval(-2, check=False)
def _read_number(line: bytes, start: cython.Py_ssize_t, end: cython.Py_ssize_t) -> cython.longlong:
    """Return the decimal number at ``line[start:end]``, -1 if it is none."""
    if not 0 < end - start <= _MAX_DIGITS:
        return -1
    number: cython.longlong = 0
    index: cython.Py_ssize_t
    for index in range(start, end):
        digit: cython.Py_ssize_t = line[index] - 0x30
        if digit < 0 or digit > 9:
            return -1
        number = number * 10 + digit
    return number
