"""Output of logs: levels, formats, and a handler that never blocks.

A peer's bytes cannot forge lines: text has no control characters, and each line of JSON is one
object.
"""

import errno
import json
import logging
import math
import os
import select
import stat
import sys
import time
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Final, Literal, TextIO, get_args

from spoakit.exceptions import ConfigurationError
from spoakit.logs import ESCAPES, MAX_TRACEBACK_LINES, format_error

__all__ = [
    "LOG_FORMATS",
    "LOG_LEVELS",
    "LogFormat",
    "LogLevel",
    "configure_logging",
]

LogLevel = Literal["debug", "info", "warning", "error"]
"""Name of a level of the log."""
LogFormat = Literal["text", "json"]
"""Name of a format of the log: lines of text, or a JSON object a line."""

LOG_LEVELS: Final[tuple[LogLevel, ...]] = get_args(LogLevel)
"""All names of levels, for options and settings."""
LOG_FORMATS: Final[tuple[LogFormat, ...]] = get_args(LogFormat)
"""All names of formats, for options and settings."""

_DATE_FORMAT: Final = "%Y-%m-%d %H:%M:%S"

# Longest line in bytes, with its line feed. Writes to a pipe are atomic up to this size (PIPE_BUF
# on Linux), so that the lines of several workers do not mix.
_MAX_LINE: Final = 4096
# Bytes reserved for the note that a line has been cut.
_CUT_ROOM: Final = 40

# Limits in bytes for a line of JSON: its message, all its own fields, and each of these.
_MAX_MESSAGE: Final = 1024
_MAX_FIELDS: Final = 1024
_MAX_FIELD: Final = 256
_CUT: Final = "..."
_OWN_KEYS: Final = frozenset({"time", "level", "logger", "pid", "worker", "traceback"})
_RECORD_KEYS: Final = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime"}
# Priorities of levels in syslog(3) and the journal.
_PRIORITIES: Final = {"DEBUG": 7, "INFO": 6, "WARNING": 4, "ERROR": 3, "CRITICAL": 2}

_worker: int | None = None


def set_worker(number: int) -> None:
    """Set the number of this worker, from 1, for the lines of JSON."""
    global _worker
    _worker = number


class _TextFormatter(logging.Formatter):
    """Formatter of text lines, of at most 4,096 bytes without control characters.

    A line has time, process id, level, logger and message. Lines of a traceback or stack are
    indented, so that none looks like the first line of a record. The journal adds time and process
    id by itself, and gets the level as a prefix, see sd-daemon(3).

    Args:
        is_journal: returns True if lines go to the journal.
    """

    def __init__(self, is_journal: Callable[[], bool]) -> None:
        super().__init__(datefmt=_DATE_FORMAT)
        self._is_journal = is_journal

    def format(self, record: logging.LogRecord) -> str:
        begin = f"{record.levelname} {record.name}: "
        mark = ""
        if self._is_journal():
            mark = f"<{_PRIORITIES.get(record.levelname, 6)}>"
        else:
            now = self.formatTime(record, self.datefmt)
            begin = f"{now}.{int(record.msecs):03d} [{record.process}] {begin}"
        room = _MAX_LINE - 1 - len(mark)
        lines = [begin + _fit(_message(record), room - len(begin.encode()))]
        for text in _details(record):
            for line in islice(text.split("\n"), MAX_TRACEBACK_LINES):
                if line:
                    lines.append(f"  {_fit(line, room - 2)}")
        return "\n".join(mark + line for line in lines)


class _JsonFormatter(logging.Formatter):
    """Formatter of JSON lines of at most 4,096 bytes.

    Keys are "time" (RFC 3339, UTC), "level", "logger", "message", "pid", "worker" (a number, null
    in the supervisor), "traceback" if there is one, and the record's own (`extra`).
    """

    def format(self, record: logging.LogRecord) -> str:
        now = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        shown: dict[str, object] = {
            "time": f"{now}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": _fit_json(record.name, _MAX_FIELD),
            "message": _fit_json(_message(record), _MAX_MESSAGE),
            "pid": record.process,
            "worker": _worker,
            **_fields(record),
        }
        line = _encode(shown)
        details = "\n".join(filter(None, _details(record)))
        if details:
            room = _MAX_LINE - 1 - len(line) - len(', "traceback": ')
            shown["traceback"] = _fit_json(details, room, keep_end=True)
            line = _encode(shown)
        return line


def _fields(record: logging.LogRecord) -> dict[str, object]:
    """Return the record's own attributes, up to the limit on their size."""
    fields: dict[str, object] = {}
    room = _MAX_FIELDS
    for name, value in record.__dict__.items():
        if name in _RECORD_KEYS or name in _OWN_KEYS:
            continue
        plain = value is None or isinstance(value, int) or _is_finite(value)
        shown = value if plain else _fit_json(_text(value), _MAX_FIELD)
        room -= len(_encode({name: shown}))
        if room < 0:
            break
        fields[name] = shown
    return fields


def _is_finite(value: object) -> bool:
    return isinstance(value, float) and math.isfinite(value)


def _text(value: object) -> str:
    try:
        return str(value)
    except Exception as error:
        return f"(cannot be shown: {type(error).__name__})"


def _encode(value: object) -> str:
    # A peer's bytes may be lone surrogates, which ASCII escapes.
    return json.dumps(value, ensure_ascii=True)


def _fit_json(text: str, room: int, *, keep_end: bool = False) -> str:
    """Return a text that has at most `room` bytes as JSON, cut at its end or its beginning."""
    text = text[-room:] if keep_end else text[:room]
    while len(_encode(text)) > room:
        kept = max(0, (len(text) - len(_CUT)) * (room - 8) // len(_encode(text)))
        text = f"{_CUT}{text[len(text) - kept :]}" if keep_end else f"{text[:kept]}{_CUT}"
        if not kept:
            break
    return text


def _details(record: logging.LogRecord) -> Iterator[str]:
    """Yield the record's traceback and stack, "" for none."""
    details = record.exc_text or ""
    if record.exc_info and record.exc_info[1] is not None:
        error = format_error(record.exc_info[1])
        details = error.traceback or error.summary
    yield details
    yield record.stack_info or ""


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception as error:
        return f"{record.msg!s:.100} (its arguments cannot be shown: {type(error).__name__})"


def _fit(text: str, room: int) -> str:
    """Return a text with escaped control characters, cut to at most `room` bytes of UTF-8."""
    data = text[:room].translate(ESCAPES).encode("utf-8", "backslashreplace")
    if len(text) <= room and len(data) <= room:
        return data.decode()
    kept = data[: max(0, room - _CUT_ROOM)].decode("utf-8", "ignore")
    return f"{kept}... ({len(text)} characters in all)"


class _NonBlockingHandler(logging.Handler):
    """Handler that drops records instead of blocking.

    The reader of standard error, such as a log collector at the other end of a pipe, may be slow or
    stuck, and a write that waits for it would block the event loop. The number of dropped records
    is logged as soon as the stream accepts a record again.
    """

    def __init__(self, stream: TextIO | None) -> None:
        super().__init__()
        self._stream = stream
        self._dropped = 0
        self._is_torn = False

    def emit(self, record: logging.LogRecord) -> None:
        try:
            if self._dropped and self._write(self.format(self._dropped_record())):
                self._dropped = 0
            if not self._write(self.format(record)):
                self._dropped += 1
        except Exception:  # a log line must not raise where it is logged
            self._dropped += 1

    def _dropped_record(self) -> logging.LogRecord:
        dropped = "%d lines of this log were lost: its reader is too slow, or the disk is full"
        arguments = (self._dropped,)
        return logging.LogRecord(__name__, logging.WARNING, __file__, 0, dropped, arguments, None)

    def _write(self, text: str) -> bool:
        """Write a record; return False if it was not written completely."""
        if self._stream is None:
            return False
        try:
            descriptor = self._stream.fileno()
        except (OSError, ValueError):
            self._stream.write(f"{text}\n")  # in memory: it does not block
            return True
        data = f"{text}\n".encode()
        if self._is_torn:
            data = b"\n" + data
        try:
            if stat.S_ISREG(os.fstat(descriptor).st_mode):
                # If this write fails, another worker's write may have cut a line before it.
                self._is_torn = True
                return self._check_whole(data, os.write(descriptor, data))
            return all(
                self._check_whole(chunk, _write_without_waiting(descriptor, chunk))
                for chunk in _chunks(data)
            )
        except OSError:
            return False

    def _check_whole(self, data: bytes, written: int) -> bool:
        # A socket or a full disk may accept a part. The next line must not be appended to it.
        self._is_torn = data[written - 1 : written] != b"\n"
        return written == len(data)


def _chunks(data: bytes) -> Iterator[bytes]:
    """Split data after line feeds into chunks that a pipe accepts atomically."""
    start = 0
    while len(data) - start > _MAX_LINE:
        end = data.rfind(b"\n", start, start + _MAX_LINE) + 1 or start + _MAX_LINE
        yield data[start:end]
        start = end
    yield data[start:]


_NOT_SUPPORTED: Final = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS, errno.ESPIPE)


def _write_without_waiting(descriptor: int, chunk: bytes) -> int:
    """Write at most `_MAX_LINE` bytes to a pipe, a socket or a terminal.

    O_NONBLOCK is not an option, since it applies to all processes that share the pipe.

    Raises:
        BlockingIOError: the write would block.
        OSError: it failed.
    """
    if sys.platform == "linux":
        try:
            return os.pwritev(descriptor, [chunk], -1, os.RWF_NOWAIT)
        except OSError as error:
            if error.errno not in _NOT_SUPPORTED:
                raise
    # A writable pipe accepts this much, unless another process writes first.
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    if not poll.poll(0):
        raise BlockingIOError
    return os.write(descriptor, chunk)


def _is_journal(stream: TextIO | None) -> bool:
    """Return whether a stream goes to the journal; see JOURNAL_STREAM in systemd.exec(5)."""
    wanted = os.environ.get("JOURNAL_STREAM")
    if not wanted or stream is None:
        return False
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return wanted == f"{status.st_dev}:{status.st_ino}"


def configure_logging(level: LogLevel = "info", format: LogFormat = "text") -> None:
    """Send all logs to standard error.

    Lines are dropped and counted if writing them would block.

    It is for programs; the library itself does not configure logging.

    Args:
        level: the lowest level to log; "debug" shows each frame.
        format: "text", or "json" for a JSON object a line.

    Raises:
        ConfigurationError: the level or format is unknown.
    """
    for name, value, allowed in (("level", level, LOG_LEVELS), ("format", format, LOG_FORMATS)):
        if value not in allowed:
            raise ConfigurationError(
                f"log {name} must be one of {', '.join(allowed)}, got {value!r}"
            )
    stream = sys.stderr
    handler = _NonBlockingHandler(stream)
    if format == "json":
        handler.setFormatter(_JsonFormatter())
    else:
        handler.setFormatter(_TextFormatter(lambda: _is_journal(stream)))
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
        old.close()
    root.addHandler(handler)
    root.setLevel(level.upper())
    # asyncio's DEBUG lines, such as the selector in use, are not of interest.
    logging.getLogger("asyncio").setLevel(max(logging.INFO, root.level))
