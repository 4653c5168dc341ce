# cython: wraparound=False
"""The access log: one line for each copy. Hot code.

Lines are gathered and handed in batches to a `LogWriter`, whose thread does the writing.

Plain Python that compiles to C (see ``spoakit._cython``).
"""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from time import perf_counter
from typing import TYPE_CHECKING, Any, Protocol

from spoakit.apps.line_output import BATCH_SIZE, open_lines
from spoakit.apps.line_writer import LogWriter
from spoakit.apps.mirror._request_cy import OutgoingRequest
from spoakit.apps.mirror.access_log import LOG_NAME
from spoakit.apps.mirror.config.settings import LogSettings

if TYPE_CHECKING:
    from spoakit import _cython as cython
else:
    try:
        import cython
    except ModuleNotFoundError:
        from spoakit import _cython as cython

COMPILED: bool = cython.compiled

FLUSH_INTERVAL: float = 0.1

_DEFAULT_SETTINGS: LogSettings = LogSettings()

_BATCH_SIZE = cython.declare(cython.Py_ssize_t, BATCH_SIZE)
_ZERO = cython.declare(cython.uint, 0x30)
# What a byte of a quoted text is in a line of text, as nginx does it: printable ASCII as it is, but
# for the quotation mark and the backslash, and \\xNN for all others.
_ESCAPED: tuple[bytes, ...] = tuple(
    b"%c" % byte if 0x20 <= byte < 0x7F and byte not in b'"\\' else b"\\x%02X" % byte
    for byte in range(256)
)
# A line, in thousandths of a percent: sums of these are exact.
_LINE = cython.declare(cython.longlong, 100_000)


class Response(Protocol):
    """What a line tells of a response; a connection that awaits or has read one is this."""

    @property
    def version(self) -> bytes:
        """The HTTP version, as b"1.1"; b"???" before there is a response."""

    @property
    def status(self) -> int:
        """The status, 0 for no response."""

    @property
    def received(self) -> int:
        """The size of the body in bytes."""

    @property
    def sent_at(self) -> float:
        """When the request was sent, on ``time.perf_counter()``'s clock."""


@cython.final
@cython.cclass
class TargetLabel:
    """A target as lines have it.

    Args:
        name: its name.
        origin: its scheme and authority.
    """

    _name: str
    _origin: bytes
    # The name in the text form, with what is around it.
    _quoted: bytes

    def __init__(self, name: str, origin: str) -> None:
        self._name = name
        self._origin = origin.encode()
        self._quoted = b'] "%b" "' % _escape(name.encode())


@cython.final
@cython.cclass
class AccessLog:
    """Gather lines and hand them over in batches: after 100 ms, or when 64 KiB are together.

    To be used in a running event loop.

    Args:
        writer: writes the batches.
        worker: the worker's number, from 1; each line begins with it, as in the C program.
        settings: which lines there are, and in which form. Their file is not opened, see `reopen`.
        names_targets: whether lines of text name the target.
    """

    _writer: Any
    _worker: cython.uint
    _quiet: cython.bint
    _buffered: cython.bint
    _json: cython.bint
    _names_targets: cython.bint
    # The file; None for the writer's first one.
    _path: Any
    # How many thousandths of a percent of a line there are to a response, and how many are due.
    _share: cython.longlong
    _credit: cython.longlong
    _prefix: bytes
    _started_at: cython.double
    # What the last line had, and this one most likely has as well: its start up to the fraction of
    # the second, and what stands between the target and the sizes.
    _second: cython.ulonglong
    _start: bytes
    _status: cython.uint
    _version: bytes
    _middle: bytes
    _lines: bytearray
    _timer: Any

    def __init__(
        self,
        writer: LogWriter,
        worker: int = 1,
        settings: LogSettings = _DEFAULT_SETTINGS,
        names_targets: bool = False,
    ) -> None:
        self._writer = writer
        self._worker = worker
        self._apply(settings, names_targets)
        self._credit = 0
        self._prefix = b"[%2d][" % worker
        self._started_at = perf_counter()
        self._second = self._status = 0
        self._start = b"%b%5d." % (self._prefix, 0)
        self._version = self._middle = b""
        self._lines = bytearray()
        self._timer = None

    def configure(self, settings: LogSettings, names_targets: bool) -> None:
        """Write further lines as these settings say.

        Raises:
            ConfigurationError: the file cannot be opened; nothing has changed.
        """
        if settings.path != self._path:
            self._redirect(settings.path)
        self._apply(settings, names_targets)

    def reopen(self) -> None:
        """Open the file by its name, for further lines.

        Raises:
            ConfigurationError: it cannot be opened; lines go where they went.
        """
        if self._path is not None:
            self._redirect(self._path)

    def _redirect(self, path: str | None) -> None:
        descriptor = None if path is None else open_lines(LOG_NAME, path)
        self.flush()
        self._writer.redirect(descriptor)

    def _apply(self, settings: LogSettings, names_targets: bool) -> None:
        self._quiet = settings.quiet
        self._buffered = settings.buffered
        self._json = settings.format == "json"
        self._share = round(settings.sample * 1000)
        self._path = settings.path
        self._names_targets = names_targets

    def write(
        self,
        response: Response,
        request: OutgoingRequest,
        target: TargetLabel,
        result: bytes,
        now: float,
    ) -> None:
        """Add a request's line, if it is to have one.

        Args:
            response: its response, or what there is of one.
            request: the request.
            target: where it went.
            result: b"ok", or what went wrong.
            now: ``time.perf_counter()``.
        """
        if self._quiet or (self._share < _LINE and result == b"ok" and not self._is_due()):
            return
        time: cython.double = now
        if self._json:
            self._add_json(response, request, target, result, time)
        else:
            self._add_text(response, request, target, result, time)
        if not self._buffered or len(self._lines) >= _BATCH_SIZE:
            self.flush()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(FLUSH_INTERVAL, self.flush)

    @cython.cfunc
    @cython.inline
    @cython.exceptval(check=False)
    def _is_due(self) -> cython.bint:
        """Count a response; return whether it is one of those that have a line."""
        self._credit += self._share
        if self._credit < _LINE:
            return False
        self._credit -= _LINE
        return True

    @cython.cfunc
    @cython.exceptval(-1, check=False)
    def _add_text(
        self,
        response: Any,
        request: OutgoingRequest,
        target: TargetLabel,
        result: bytes,
        time: cython.double,
    ) -> cython.Py_ssize_t:
        """Add a line in the form of the C program."""
        out: bytearray = self._lines
        wire: bytes = request.wire
        # Slices of this are not checked when compiled, and cost half; the sizes are the request's.
        start_of: cython.p_char = wire
        method_size: cython.Py_ssize_t = request.method_size
        at: cython.ulonglong = _microseconds(time - self._started_at)
        took: cython.ulonglong = _microseconds(time - response.sent_at)
        if at // 1_000_000 != self._second:
            self._second = at // 1_000_000
            self._start = b"%b%5d." % (self._prefix, self._second)
        out += self._start
        _add_number(out, at % 1_000_000, 6)
        out += target._quoted if self._names_targets else b'] "'
        out += start_of[: method_size + 1]
        out += target._origin
        path: bytes = start_of[method_size + 1 : method_size + 1 + request.target_size]
        # White space and control characters are in none.
        if b'"' in path or b"\\" in path or not path.isascii():
            path = _escape(path)
        out += path
        status: cython.uint = response.status
        version: bytes = response.version
        if status != self._status or version is not self._version:
            self._status = status
            self._version = version
            self._middle = b' HTTP/%b" %d ' % (version, status)
        out += self._middle
        _add_number(out, request.body_size, 1)
        out.append(0x2F)
        _add_number(out, response.received, 1)
        out.append(0x20)
        _add_number(out, took // 1000, 1)
        out.append(0x2E)
        _add_number(out, took % 1000, 3)
        out.append(0x20)
        out += result
        out.append(0x0A)
        return 0

    @cython.cfunc
    @cython.exceptval(-1, check=False)
    def _add_json(
        self,
        response: Any,
        request: OutgoingRequest,
        target: TargetLabel,
        result: bytes,
        time: cython.double,
    ) -> cython.Py_ssize_t:
        """Add a line that is a JSON object."""
        now: str = datetime.now(UTC).isoformat(timespec="milliseconds")
        line: dict[str, object] = {
            "time": now.replace("+00:00", "Z"),
            "worker": int(self._worker),
            "target": target._name,
            "method": request.method.decode("latin-1"),
            "url": (target._origin + request.target).decode("latin-1"),
            "version": response.version.decode("latin-1"),
            "status": response.status,
            "up": request.body_size,
            "down": response.received,
            "ms": round((time - response.sent_at) * 1000, 3),
            "result": result.decode("latin-1"),
        }
        self._lines += json.dumps(line).encode() + b"\n"
        return 0

    def flush(self) -> None:
        """Hand over what there is."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._lines:
            self._writer.put(bytes(self._lines))
            self._lines.clear()
        self._writer.report()

    def close(self) -> None:
        """Have what is left written, and end the writer."""
        self.flush()
        self._writer.close()


@cython.cfunc
def _escape(text: bytes) -> bytes:
    return b"".join([_ESCAPED[byte] for byte in text])


@cython.cfunc
@cython.inline
@cython.exceptval(check=False)
def _microseconds(seconds: cython.double) -> cython.ulonglong:
    return int(seconds * 1_000_000) if seconds > 0 else 0


@cython.cfunc
@cython.exceptval(-1, check=False)
def _add_number(
    out: bytearray, number: cython.ulonglong, width: cython.Py_ssize_t
) -> cython.Py_ssize_t:
    """Append a number in decimal, with zeros in front up to a width."""
    unit: cython.ulonglong = 1
    width -= 1
    while width > 0 or number // unit >= 10:
        unit *= 10
        width -= 1
    while unit > 0:
        out.append(_ZERO + number // unit % 10)
        unit //= 10
    return 0
