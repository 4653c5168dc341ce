"""Throttled log lines, and exceptions as bounded text.

A peer decides how often something goes wrong (HAProxy retries a refused handshake thousands of
times a second), so whatever a peer or a load can cause is logged through a `Throttle`.
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

# Limits of what is logged of one exception.
_MAX_ERROR_TEXT: Final = 1000
_MAX_FRAMES: Final = 20
_MAX_CHAIN: Final = 5
MAX_TRACEBACK_LINES: Final = 200
_MAX_TRACEBACK: Final = 8192


class FormattedError(NamedTuple):
    """An exception as text, which keeps nothing of it alive.

    Attributes:
        summary: its type and text, in one line.
        traceback: its traceback, lines without control characters; "" if it has none.
    """

    summary: str
    traceback: str


def describe_error(error: BaseException) -> str:
    """Return the type and the text of an exception in one line, cut after 1,000 characters."""
    try:
        return _describe_error(error)
    except BaseException:  # its class and its text may run code of any kind
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
    """Return an exception as text: its last 20 frames, then its causes."""
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
    """Yield the lines of a traceback; the exceptions that led to it follow, as they may be cut."""
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
    """A kind of line: when it was last logged, and the last line that was held back since."""

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
    """Log the first line of a kind at once, and what follows within `interval` as one summary.

    No timer and no thread: a summary is written with the kind's next line after the interval, or
    by `flush`, which the process's main loop calls about once a second for all throttles
    (`flush_throttles`) and once more at exit. Nothing is lost silently.

    A line may show an exception with its traceback. It is formatted when it is logged: a summary
    shows the one that the kind was last logged with, so a kind should tell types and places apart.

    The `extra` of a line becomes attributes of its record, as in the standard library; with
    ``--log-format json`` they are keys of the line, and a summary has "repeated" beside them.

    Args:
        logger: where the lines go.
        interval: seconds in which a kind is logged once.
        max_kinds: how many kinds are told apart; further ones share one, so that kinds made from
            what a peer sends cannot grow the table or flood the log.
        clock: monotonic seconds.
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
            error: an exception to show behind the message, with its traceback.
            extra: see the class.
        """
        self._log(logging.ERROR, kind, message, args, extra, error)

    def flush(self, *, final: bool = False) -> None:
        """Summarise the kinds whose interval is over, or every kind in the `final` call."""
        now = self._clock()
        for kind, state in list(self._kinds.items()):
            elapsed = now - state.logged_at
            if not final and elapsed < self._interval:
                continue
            if state.suppressed:
                # The line that stands for the others is one of them, hence one less "more".
                self._summarise(state, state.suppressed - 1, now)
            else:
                del self._kinds[kind]

    def forget(self) -> None:
        """Drop what is held back: after a fork, the parent is the one to report it."""
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
                self.flush()  # forgets the quiet kinds
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
                # The exception that was last logged is another one than this.
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
            # Every formatter appends this text, where it would format `exc_info` itself.
            record.exc_text = error.traceback or None
        try:
            self._logger.handle(record)
        except Exception:
            # A filter of the application's may raise, which must not cost a connection.
            _failing.handleError(record)


_OTHERS: Final = object()
_suppressed: Final = [0]
_failing: Final = logging.Handler()
_throttles: WeakSet[Throttle] = WeakSet()


def flush_throttles(*, final: bool = False) -> None:
    """Flush every throttle of this process; the loop that runs the process calls it each second."""
    for throttle in list(_throttles):
        throttle.flush(final=final)


def suppressed_lines() -> int:
    """Return how many lines all throttles of this process have held back."""
    return _suppressed[0]


def forget_throttled() -> None:
    """Drop what every throttle holds back, in a process just forked."""
    for throttle in list(_throttles):
        throttle.forget()
