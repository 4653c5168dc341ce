# cython: wraparound=False
"""Reading the lines that nearly all lines of a list are: an address or network. Hot code.

Plain Python that compiles to C (see ``spoakit._cython``).
"""

from __future__ import annotations

from socket import AF_INET6, inet_pton
from struct import Struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from spoakit import _cython as cython
else:
    try:
        import cython
    except ModuleNotFoundError:
        from spoakit import _cython as cython

COMPILED: bool = cython.compiled

_NEWLINE = cython.declare(cython.uint, 0x0A)
# As a literal it would have 32 bits.
_ONE = cython.declare(cython.ulonglong, 1)
_LOWER_HALF = cython.declare(cython.ulonglong, 2**64 - 1)
# The upper 96 bits of an IPv4 address in an IPv6 address (RFC 4291, 2.5.5.2).
_MAPPED = cython.declare(cython.ulonglong, 0xFFFF)
_HALVES: Struct = Struct(">QQ")


def read_common_lines(
    data: bytes,
    first4: list[int],
    last4: list[int],
    first6: list[int],
    last6: list[int],
    others: list[tuple[int, bytes]],
    free4: cython.Py_ssize_t,
    free6: cython.Py_ssize_t,
) -> tuple[int, int]:
    """Read the lines that are an address or network and nothing else, and hand back others.

    Uncompiled it hands back all lines, which is the fastest way for that form.

    Args:
        data: whole lines, each of which ends with LF.
        first4: gets the first address of each IPv4 entry.
        last4: gets the last one.
        first6: gets the first address of each IPv6 entry: its upper 64 bits, and its lower ones.
        last6: gets the last one, likewise.
        others: gets the lines that are anything else but empty, or a comment from its start, and
            their numbers, from 0. A CR at their ends is left.
        free4: the most bits that the prefix of an IPv4 network may leave free; a larger network
            is handed back.
        free6: likewise for IPv6.

    Returns:
        The number of lines, and of the entries with bits set behind the prefix.
    """
    if not cython.compiled:
        lines = data.split(b"\n")
        others.extend(enumerate(lines[:-1]))
        return len(lines) - 1, 0
    size: cython.Py_ssize_t = len(data)
    start: cython.Py_ssize_t = 0
    count: cython.Py_ssize_t = 0
    masked: cython.Py_ssize_t = 0
    while start < size:
        address: cython.longlong = 0
        octet: cython.uint = 0
        digits: cython.uint = 0
        dots: cython.uint = 0
        position: cython.Py_ssize_t = start
        code: cython.uint = data[position]
        while True:
            if 0x30 <= code <= 0x39:
                octet = octet * 10 + code - 0x30
                digits += 1
                # Neither 256, nor 01, which is octal to some.
                if octet > 255 or (digits > 1 and octet < 10):
                    break
            elif code == 0x2E and digits and dots < 3:
                address = address << 8 | octet
                octet = digits = 0
                dots += 1
            else:
                break
            position += 1
            code = data[position]
        free: cython.longlong = 0
        good: cython.bint = dots == 3 and digits > 0
        if good and code == 0x2F:  # "/"
            free = _free_bits(data, position + 1)
            good = free >= 0
            position += 2 if free > 22 else 3
            code = data[position] if good else 0
        if code == 0x0D:
            position += 1
            code = data[position] if position < size else 0
        if good and code == _NEWLINE and free <= free4:
            address = address << 8 | octet
            bits: cython.longlong = (_ONE << free) - 1
            masked += (address & bits) != 0
            first4.append(address & ~bits)
            last4.append(address | bits)
        else:
            position = start
            while data[position] != _NEWLINE:
                position += 1
            if not _is_empty(data, start, position):
                line: bytes = data[start:position]
                masks: cython.Py_ssize_t = _read_ipv6(line, first6, last6, free6)
                if masks < 0:
                    others.append((count, line))
                else:
                    masked += masks
        start = position + 1
        count += 1
    return count, masked


@cython.cfunc
@cython.exceptval(-2)
def _free_bits(data: bytes, position: cython.Py_ssize_t) -> cython.longlong:
    """Return the bits that a prefix of one or two digits leaves free; -1 for what is none.

    More than 22 are those of a prefix of one digit, since 01 is none.
    """
    digit: cython.longlong = data[position] - 0x30
    if not 0 <= digit <= 9:
        return -1
    second: cython.longlong = data[position + 1] - 0x30
    if not 0 <= second <= 9:
        return 32 - digit
    length: cython.longlong = digit * 10 + second
    return 32 - length if 10 <= length <= 32 else -1


@cython.cfunc
@cython.exceptval(-2)
def _read_ipv6(
    line: bytes, first: list[int], last: list[int], most: cython.Py_ssize_t
) -> cython.Py_ssize_t:
    """Read an IPv6 address or network; return whether bits were masked, -1 for anything else."""
    if b":" not in line:
        return -1
    text, slash, prefix = line.removesuffix(b"\r").decode("latin-1").partition("/")
    try:
        address = inet_pton(AF_INET6, text)
    except (OSError, ValueError):
        return -1
    upper: cython.ulonglong
    lower: cython.ulonglong
    upper, lower = _HALVES.unpack(address)
    if upper == 0 and lower >> 32 == _MAPPED:
        return -1
    free: cython.Py_ssize_t = 0
    if slash:
        if not (len(prefix) <= 3 and prefix.isascii() and prefix.isdigit()):
            return -1
        free = 128 - int(prefix)
        if not 0 <= free <= most:
            return -1
    upper_bits: cython.ulonglong = _lowest_bits(free - 64)
    lower_bits: cython.ulonglong = _lowest_bits(free)
    first.append(upper & ~upper_bits)
    first.append(lower & ~lower_bits)
    last.append(upper | upper_bits)
    last.append(lower | lower_bits)
    return (upper & upper_bits) != 0 or (lower & lower_bits) != 0


@cython.cfunc
@cython.exceptval(check=False)
def _lowest_bits(count: cython.Py_ssize_t) -> cython.ulonglong:
    """Return so many of the lowest of 64 bits: none below 0, all above 64."""
    if count <= 0:
        return 0
    return (_ONE << count) - 1 if count < 64 else _LOWER_HALF


@cython.cfunc
@cython.exceptval(check=False)
def _is_empty(data: bytes, start: cython.Py_ssize_t, end: cython.Py_ssize_t) -> cython.bint:
    """Whether a line is a comment from its start, or empty but for a CR."""
    if start == end:
        return True
    code: cython.uint = data[start]
    return code == 0x23 or code == 0x3B or (code == 0x0D and end - start == 1)
