# cython: wraparound=False
"""Parser for the most common form of response, tried before the general parser. Hot code.

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
# "HTTP/1.1 200 " and two line ends.
_MIN_SIZE = cython.declare(cython.Py_ssize_t, 17)


def parse_plain_response(data: bytes) -> tuple[int, int] | None:
    """Return the status and the body size of a response that was received at once.

    It must be an HTTP/1.1 response with a Content-Length, after which the connection stays open,
    and `data` must be all of it and nothing else. Return None for every other form.
    """
    if len(data) < _MIN_SIZE or not data.startswith(b"HTTP/1.1 ") or data[12] != 0x20:
        return None
    status: cython.longlong = _parse_number(data, 9, 12)
    if status < 200 or status == 204 or status == 304:
        return None
    size: cython.longlong = -1
    start: cython.Py_ssize_t = _line_end(data, 0) + 2
    end: cython.Py_ssize_t = _line_end(data, start)
    while end > start:
        first: cython.uint = data[start]
        if first <= 0x20:
            return None
        first |= 0x20
        if first == 0x63:  # "c"
            if end - start < 12:
                pass
            elif data[start + 7] == 0x2D and data[start + 8] | 0x20 == 0x6C:  # "content-length"
                if size >= 0 or not _is_length(data, start):
                    return None
                size = _parse_number(data, start + 16, end)
                if size < 0:
                    return None
            elif data[start + 3] | 0x20 == 0x6E and not data.startswith(b": keep-alive", end - 12):
                return None  # as in "connection"
        elif first == 0x74 and data[start : start + 17].lower() == b"transfer-encoding":  # "t"
            return None
        start = end + 2
        end = _line_end(data, start)
    # The head ends with an empty line, and the whole body follows.
    return (status, size) if end == start and size == len(data) - end - 2 else None


@cython.cfunc
@cython.inline
@cython.exceptval(-2, check=False)
def _line_end(data: bytes, start: cython.Py_ssize_t) -> cython.Py_ssize_t:
    """Return the index of the end of the line that begins at `start`; -1 if it has no end."""
    if not cython.compiled:
        return data.find(b"\r\n", start)
    # Lines are short, so a loop costs less than a call of `bytes.find`.
    end: cython.Py_ssize_t
    for end in range(start, len(data) - 1):
        if data[end] == 0x0D and data[end + 1] == 0x0A:
            return end
    return -1


@cython.cfunc
@cython.inline
@cython.exceptval(-2, check=False)
def _is_length(data: bytes, start: cython.Py_ssize_t) -> cython.bint:
    """Return whether a Content-Length, in any case, begins at `start`."""
    return (
        data.startswith(b"Content-Length: ", start)
        or data.startswith(b"content-length: ", start)
        or data[start : start + 16].lower() == b"content-length: "
    )


@cython.cfunc
@cython.exceptval(-2, check=False)
def _parse_number(line: bytes, start: cython.Py_ssize_t, end: cython.Py_ssize_t) -> cython.longlong:
    """Return the decimal number at ``line[start:end]``; -1 if it is not a number."""
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
