# cython: wraparound=False
"""Parser of the form that most responses have, tried before the parser of all forms. Hot code.

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
# "HTTP/1.1 200 " and two ends of lines.
_MIN_SIZE = cython.declare(cython.Py_ssize_t, 17)


def read_plain_response(data: bytes) -> tuple[int, int] | None:
    """Return the status and the size of the body of a response that came in one piece.

    That is an HTTP/1.1 response with a Content-Length after which the connection stays, and
    `data` is all of it and nothing else. None for anything that differs in the slightest.
    """
    if len(data) < _MIN_SIZE or not data.startswith(b"HTTP/1.1 ") or data[12] != 0x20:
        return None
    status: cython.longlong = _read_number(data, 9, 12)
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
                size = _read_number(data, start + 16, end)
                if size < 0:
                    return None
            elif data[start + 3] | 0x20 == 0x6E and not data.startswith(b": keep-alive", end - 12):
                return None  # as in "connection"
        elif first == 0x74 and data[start : start + 17].lower() == b"transfer-encoding":  # "t"
            return None
        start = end + 2
        end = _line_end(data, start)
    # The empty line, and behind it the whole body.
    return (status, size) if end == start and size == len(data) - end - 2 else None


@cython.cfunc
@cython.inline
@cython.exceptval(-2, check=False)
def _line_end(data: bytes, start: cython.Py_ssize_t) -> cython.Py_ssize_t:
    """Return where the line ends that starts there, -1 if it does not."""
    if not cython.compiled:
        return data.find(b"\r\n", start)
    # A loop costs less than a call of `bytes.find`; lines are short.
    end: cython.Py_ssize_t
    for end in range(start, len(data) - 1):
        if data[end] == 0x0D and data[end + 1] == 0x0A:
            return end
    return -1


@cython.cfunc
@cython.inline
@cython.exceptval(-2, check=False)
def _is_length(data: bytes, start: cython.Py_ssize_t) -> cython.bint:
    """Return whether a Content-Length starts there, whatever the case of its letters."""
    return (
        data.startswith(b"Content-Length: ", start)
        or data.startswith(b"content-length: ", start)
        or data[start : start + 16].lower() == b"content-length: "
    )


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
