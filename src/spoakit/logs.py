"""Throttled log lines, and exceptions as text of limited length.

A peer determines how often errors occur: HAProxy retries a refused handshake thousands of times a
second. So each line that a peer or a load can cause is logged through a `Throttle`.
"""

import logging
import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from itertools import islice
from traceback import StackSummary, walk_tb
from types import TracebackType
from typing import Final, NamedTuple
from weakref import WeakSet

__all__ = [
    "Throttle",
    "describe_error",
]

ESCAPES: Final = {
    **{code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160))},
    **{ord(character): f"\\{letter}" for character, letter in zip("\t\n\r", "tnr", strict=True)},
    **{code: f"\\u{code:04x}" for code in (0x2028, 0x2029)},
}

# Limits on the text of one exception.
_MAX_ERROR_TEXT: Final = 1000
_MAX_FRAMES: Final = 20
_MAX_CHAIN: Final = 5
MAX_TRACEBACK_LINES: Final = 200
_MAX_TRACEBACK: Final = 8192


class FormattedError(NamedTuple):
    """Text of an exception, which holds no reference to it.

    Attributes:
        summary: its type and text, in one line.
        traceback: its traceback, without control characters in a line; "" without one.
    """

    summary: str
    traceback: str


def describe_error(error: BaseException) -> str:
    """Return the type and text of an exception in one line, cut after 1,000 characters."""
    try:
        return _describe_error(error)
    except BaseException:  # the exception's own code may raise anything
        return "an exception that cannot be shown"


def _describe_error(error: BaseException) -> str:
    kind = type(error)
    name = kind.__qualname__
    if kind.__module__ not in ("builtins", "__main__"):
        name = f"{kind.__module__}.{name}"
    try:
        text = str.__str__(str(error))
    except BaseException as raised:  # the exception's own code may raise anything
        text = f"(its text cannot be shown: {type(raised).__name__})"
    if len(text) > _MAX_ERROR_TEXT:
        text = f"{text[:_MAX_ERROR_TEXT]}... ({len(text)} characters in all)"
    return f"{name}: {text}".translate(ESCAPES) if text else name


def format_error(error: BaseException) -> FormattedError:
    """Return an exception as text, with its last 20 stack frames and its causes."""
    summary = describe_error(error)
    try:
        if error.__traceback__ is None and error.__cause__ is None:
            return FormattedError(summary, "")
        lines = "\n".join(islice(_traceback_lines(error, "Traceback", 0), MAX_TRACEBACK_LINES))
    except BaseException as raised:  # the exception's own code may raise anything
        lines = f"(its traceback cannot be shown: {type(raised).__name__})"
    if len(lines) > _MAX_TRACEBACK:
        lines = f"{lines[:_MAX_TRACEBACK]}... ({len(lines)} characters in all)"
    return FormattedError(summary, lines)


def _traceback_lines(error: BaseException, title: str, depth: int) -> Iterator[str]:
    """Yield the lines of a traceback, its causes last, since the end may be cut."""
    if depth >= _MAX_CHAIN:
        return
    yield f"{title} (most recent call last):"
    yield from _stack_lines(error.__traceback__)
    yield describe_error(error)
    for note in getattr(error, "__notes__", ()):
        yield f"{note}".translate(ESCAPES)
    if isinstance(error, BaseExceptionGroup):
        for number, member in enumerate(error.exceptions, start=1):
            yield from _traceback_lines(member, f"Exception {number} of this group", depth + 1)
    if error.__cause__ is not None:
        yield from _traceback_lines(error.__cause__, "Caused by", depth + 1)
    elif error.__context__ is not None and not error.__suppress_context__:
        yield from _traceback_lines(error.__context__, "Raised while handling", depth + 1)


def _stack_lines(traceback: TracebackType | None) -> Iterator[str]:
    stack = StackSummary.extract(walk_tb(traceback), limit=-_MAX_FRAMES)
    for entry in stack.format():
        for line in entry.splitlines():
            yield line.translate(ESCAPES)


_NONE: Final[Mapping[str, object]] = {}


class _Kind:
    """Kind of line: when it was last logged, and the last line suppressed since then."""

    __slots__ = ("args", "error", "extra", "level", "logged_at", "message", "suppressed")

    def __init__(self, logged_at: float) -> None:
        self.logged_at = logged_at
        self.suppressed = 0
        self.level = logging.INFO
        self.message = ""
        self.args: tuple[object, ...] = ()
        self.extra = _NONE
        self.error: FormattedError | None = None


class Throttle:
    """Throttle for log lines.

    The first line of a kind is logged at once; lines that follow within `interval` are summarised
    in one line. There is no timer: a summary is written with the kind's next line after the
    interval, or by `flush`, which the main loop of the process calls for all throttles about once a
    second (`flush_throttles`), and at exit. Nothing is lost silently.

    A line may show an exception with its traceback. It is formatted when it is logged. A summary
    shows the exception that the kind was last logged with, so a kind should contain its type and
    place.

    The `extra` of a line becomes attributes of its record, as in the standard library. With
    ``--log-format json`` they are keys of the line, and a summary also has the key "repeated".

    Args:
        logger: the logger for the lines.
        interval: seconds in which a kind is logged once.
        max_kinds: limit on the number of kinds; further ones share one, so that kinds that depend
            on a peer's input cannot grow the table or flood the log.
        clock: returns monotonic seconds.
    """

    __slots__ = ("__weakref__", "_clock", "_interval", "_kinds", "_logger", "_max_kinds")

    def __init__(
        self,
        logger: logging.Logger,
        interval: float = 1.0,
        *,
        max_kinds: int = 64,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._logger = logger
        self._interval = interval
        self._max_kinds = max_kinds
        self._clock = clock
        self._kinds: dict[Hashable, _Kind] = {}
        _throttles.add(self)

    def info(
        self, kind: Hashable, message: str, *args: object, extra: Mapping[str, object] = _NONE
    ) -> None:
        """Log a line of `kind` at level INFO, now or in the kind's next summary."""
        self._log(logging.INFO, kind, message, args, extra)

    def warning(
        self, kind: Hashable, message: str, *args: object, extra: Mapping[str, object] = _NONE
    ) -> None:
        """Log a line of `kind` at level WARNING, now or in the kind's next summary."""
        self._log(logging.WARNING, kind, message, args, extra)

    def error(
        self,
        kind: Hashable,
        message: str,
        *args: object,
        error: BaseException | None = None,
        extra: Mapping[str, object] = _NONE,
    ) -> None:
        """Log a line of `kind` at level ERROR, now or in the kind's next summary.

        Args:
            kind: see the class.
            message: a format for ``args``.
            args: what the message shows.
            error: an exception to show after the message, with its traceback.
            extra: see the class.
        """
        self._log(logging.ERROR, kind, message, args, extra, error)

    def flush(self, *, final: bool = False) -> None:
        """Write the summaries whose interval has passed, or all of them if `final`."""
        now = self._clock()
        for kind, state in list(self._kinds.items()):
            elapsed = now - state.logged_at
            if not final and elapsed < self._interval:
                continue
            if state.suppressed:
                # The summary shows one of the suppressed lines, so the rest is one less.
                self._summarise(state, state.suppressed - 1, now)
            else:
                del self._kinds[kind]

    def forget(self) -> None:
        """Drop suppressed lines, in a forked process; its parent reports them."""
        self._kinds.clear()

    def _log(
        self,
        level: int,
        kind: Hashable,
        message: str,
        args: tuple[object, ...],
        extra: Mapping[str, object],
        error: BaseException | None = None,
    ) -> None:
        if not self._logger.isEnabledFor(level):
            return
        now = self._clock()
        state = self._kinds.get(kind)
        if state is None:
            if len(self._kinds) >= self._max_kinds:
                self.flush()  # forgets kinds without recent lines
            if len(self._kinds) >= self._max_kinds:
                kind = _OTHERS
                state = self._kinds.get(kind)
        if state is None:
            state = self._kinds[kind] = _Kind(now)
            state.error = None if error is None else format_error(error)
            self._write(level, message, args, extra, state.error)
            return
        state.level, state.message, state.args, state.extra = level, message, args, extra
        if now - state.logged_at < self._interval:
            state.suppressed += 1
            _suppressed[0] += 1
            if kind is _OTHERS:
                # Different kinds share this one, so the logged exception may be another one.
                kind_of_error = type(error).__qualname__
                state.error = None if error is None else FormattedError(kind_of_error, "")
        else:
            state.error = None if error is None else format_error(error)
            self._summarise(state, state.suppressed, now)

    def _summarise(self, state: _Kind, more: int, now: float) -> None:
        suffix, extra = "", state.extra
        if more:
            extra = {**extra, "repeated": more}
            seconds = max(1, round(now - state.logged_at))
            span = "second" if seconds == 1 else f"{seconds} seconds"
            suffix = f" (and {more} more like it in the last {span})"
        self._write(state.level, state.message, state.args, extra, state.error, suffix)
        state.logged_at = now
        state.suppressed = 0
        state.message, state.args, state.extra = "", (), _NONE

    def _write(
        self,
        level: int,
        message: str,
        args: tuple[object, ...],
        extra: Mapping[str, object],
        error: FormattedError | None,
        suffix: str = "",
    ) -> None:
        if error is not None:
            message, args = f"{message}: %s", (*args, error.summary)
        record = self._logger.makeRecord(
            self._logger.name, level, __file__, 0, message + suffix, args, None, extra=extra
        )
        if error is not None:
            # All formatters append this text, in place of formatting `exc_info`.
            record.exc_text = error.traceback or None
        try:
            self._logger.handle(record)
        except Exception:
            # An exception of the application's filter must not end a connection.
            _failing.handleError(record)


_OTHERS: Final = object()
_suppressed: Final = [0]
_failing: Final = logging.Handler()
_throttles: WeakSet[Throttle] = WeakSet()


def flush_throttles(*, final: bool = False) -> None:
    """Flush all throttles of this process; its main loop calls it once a second."""
    for throttle in list(_throttles):
        throttle.flush(final=final)


def suppressed_lines() -> int:
    """Return the number of lines that all throttles of this process have suppressed."""
    return _suppressed[0]


def forget_throttled() -> None:
    """Drop the suppressed lines of all throttles, in a forked process."""
    for throttle in list(_throttles):
        throttle.forget()
