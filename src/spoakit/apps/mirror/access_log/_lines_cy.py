# cython: wraparound=False
"""Access log: one line for each copy. Hot code.

Lines are passed in batches to a `LogWriter`, whose thread writes them.

Plain Python that compiles to C (see ``spoakit._cython``).
"""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from time import perf_counter
from typing import TYPE_CHECKING, Any

from spoakit.apps.line_output import BATCH_SIZE, open_lines
from spoakit.apps.line_writer import LogWriter
from spoakit.apps.mirror.access_log import LOG_NAME
from spoakit.apps.mirror.config.schema import LogSettings

if TYPE_CHECKING:
    from spoakit import _cython as cython
    from spoakit.apps.mirror._buffer_cy import Buffer
    from spoakit.apps.mirror._request_cy import OutgoingRequest
else:
    try:
        import cython
    except ModuleNotFoundError:
        from spoakit import _cython as cython
    if cython.compiled:
        from cython.cimports.spoakit.apps.mirror._buffer_cy import Buffer
        from cython.cimports.spoakit.apps.mirror._request_cy import OutgoingRequest
    else:
        from spoakit.apps.mirror._buffer_cy import Buffer
        from spoakit.apps.mirror._request_cy import OutgoingRequest

COMPILED: bool = cython.compiled

FLUSH_INTERVAL: float = 0.1

_DEFAULT_SETTINGS: LogSettings = LogSettings()

_BATCH_SIZE = cython.declare(cython.Py_ssize_t, BATCH_SIZE)
# The form of each byte in a quoted text, as nginx has it: printable ASCII stays, but for the
# quotation mark and the backslash; all others are \\xNN.
_ESCAPED: tuple[bytes, ...] = tuple(
    b"%c" % byte if 0x20 <= byte < 0x7F and byte not in b'"\\' else b"\\x%02X" % byte
    for byte in range(256)
)
# The credit that a line costs, in thousandths of a percent: integers, so that sums are exact.
_LINE = cython.declare(cython.longlong, 100_000)


@cython.cclass
class Response:
    """Response to a copy, complete or not, as far as its line shows it.

    Attributes:
        version: the HTTP version, as b"1.1"; b"???" before there is a response.
        status: the status, 0 for no response.
        received: the size of the body in bytes.
        sent_at: when the request was sent, on ``time.perf_counter()``'s clock.
        first_byte_at: when its first byte was received; 0 if it was received at once.
    """

    if not cython.compiled:
        version: bytes
        status: int
        received: int
        sent_at: float
        first_byte_at: float

    def __init__(self) -> None:
        self.version = b"???"
        self.status = 0
        self.received = 0
        self.sent_at = self.first_byte_at = 0.0


@cython.final
@cython.cclass
class TargetLabel:
    """Name and origin of a target, prepared for lines.

    Args:
        name: the target's name.
        origin: the target's scheme and authority.
    """

    if not cython.compiled:
        _name: str
        _origin: bytes
        # The name in a line of text, with the delimiters around it.
        _quoted: bytes

    def __init__(self, name: str, origin: str) -> None:
        self._name = name
        self._origin = origin.encode()
        self._quoted = b'] "%b" "' % _escape(name.encode())


@cython.final
@cython.cclass
class AccessLog:
    """Log that passes lines to its writer in batches: every 100 ms, or when 128 KiB are full.

    Create it in a running event loop.

    Args:
        writer: gets the batches.
        worker: the worker's number, from 1; each line begins with it, as in the C program.
        settings: the form of lines, and which copies have one. The file is not opened; see
            `reopen`.
        names_targets: whether lines of text name the target.
    """

    if not cython.compiled:
        _writer: Any
        _worker: int
        _quiet: bool
        _buffered: bool
        _json: bool
        _names_targets: bool
        # The path of the file; None for the writer's first file.
        _path: Any
        # The credit that each response adds, in thousandths of a percent of a line, and its sum.
        _share: int
        _credit: int
        _prefix: bytes
        _started_at: float
        # Parts of the last line that the next one mostly shares: its start up to the fraction of
        # the second, and the text between the target and the sizes.
        _second: int
        _start: bytes
        _status: int
        _version: bytes
        _middle: bytes
        _lines: Buffer
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
        self._lines = Buffer()
        self._timer = None

    def configure(self, settings: LogSettings, names_targets: bool) -> None:
        """Apply new settings to further lines; called after a reload.

        Raises:
            ConfigurationError: the file cannot be opened; nothing has changed.
        """
        if settings.path != self._path:
            self._redirect(settings.path)
        self._apply(settings, names_targets)

    def reopen(self) -> None:
        """Reopen the file by its path, after a log rotation.

        Raises:
            ConfigurationError: the file cannot be opened; lines still go to the previous one.
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

    @cython.ccall
    def write(
        self,
        response: Response,
        request: OutgoingRequest,
        target: TargetLabel,
        result: bytes,
        now: cython.double,
    ) -> object:
        """Add a copy's line, if the settings and the sample want one.

        Args:
            response: the response, complete or not.
            request: the request.
            target: the target that the copy was sent to.
            result: b"ok", or the reason of the failure.
            now: ``time.perf_counter()``.
        """
        if self._quiet or (self._share < _LINE and result == b"ok" and not self._is_due()):
            return None
        if self._json:
            self._add_json(response, request, target, result, now)
        else:
            self._add_text(response, request, target, result, now)
        if not self._buffered or self._lines.size >= _BATCH_SIZE:
            self.flush()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(FLUSH_INTERVAL, self.flush)
        return None

    @cython.cfunc
    @cython.inline
    @cython.exceptval(check=False)
    def _is_due(self) -> cython.bint:
        """Count a response; return whether it is in the sample."""
        self._credit += self._share
        if self._credit < _LINE:
            return False
        self._credit -= _LINE
        return True

    @cython.cfunc
    @cython.exceptval(-1, check=False)
    def _add_text(
        self,
        response: Response,
        request: OutgoingRequest,
        target: TargetLabel,
        result: bytes,
        time: cython.double,
    ) -> cython.Py_ssize_t:
        """Add a line in the form of the C program."""
        out: Buffer = self._lines
        wire: bytes = request.wire
        start: cython.Py_ssize_t = request.method_size + 1
        end: cython.Py_ssize_t = start + request.target_size
        at: cython.ulonglong = _microseconds(time - self._started_at)
        took: cython.ulonglong = _microseconds(time - response.sent_at)
        if at // 1_000_000 != self._second:
            self._second = at // 1_000_000
            self._start = b"%b%5d." % (self._prefix, self._second)
        out.add(self._start)
        out.add_number(at % 1_000_000, 6)
        out.add(target._quoted if self._names_targets else b'] "')
        out.add_part(wire, 0, start)
        out.add(target._origin)
        if _is_plain(wire, start, end):
            out.add_part(wire, start, end)
        else:
            out.add(_escape(wire[start:end]))
        status: cython.uint = response.status
        version: bytes = response.version
        if status != self._status or version is not self._version:
            self._status = status
            self._version = version
            self._middle = b' HTTP/%b" %d ' % (version, status)
        out.add(self._middle)
        out.add_number(len(wire) - request.head_size)
        out.add(b"/")
        out.add_number(response.received)
        out.add(b" ")
        out.add_number(took // 1000)
        out.add(b".")
        out.add_number(took % 1000, 3)
        out.add(b" ")
        out.add(result)
        out.add(b"\n")
        return 0

    @cython.cfunc
    @cython.exceptval(-1, check=False)
    def _add_json(
        self,
        response: Response,
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
        self._lines.add(json.dumps(line).encode() + b"\n")
        return 0

    def flush(self) -> None:
        """Pass the gathered lines to the writer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._lines.size:
            self._writer.put(self._lines.copy())
            self._lines.truncate(0)
        self._writer.report()

    def close(self) -> None:
        """Flush, and close the writer."""
        self.flush()
        self._writer.close()


@cython.cfunc
@cython.exceptval(check=False)
def _is_plain(text: bytes, start: cython.Py_ssize_t, end: cython.Py_ssize_t) -> cython.bint:
    """Return whether ``text[start:end]`` needs no escapes; it has no white space or controls."""
    found: cython.bint = False
    octets: cython.p_char = text
    at: cython.Py_ssize_t
    for at in range(start, end):
        octet: cython.uchar = octets[at]
        found |= octet == 0x22 or octet == 0x5C or octet >= 0x7F
    return not found


@cython.cfunc
def _escape(text: bytes) -> bytes:
    return b"".join([_ESCAPED[byte] for byte in text])


@cython.cfunc
@cython.inline
@cython.exceptval(check=False)
def _microseconds(seconds: cython.double) -> cython.ulonglong:
    return int(seconds * 1_000_000) if seconds > 0 else 0
