"""Logging: lines of a kind are throttled, peers' bytes cannot forge lines.

A peer decides how often something goes wrong (HAProxy retries a refused handshake thousands of
times a second), so whatever a peer or a load can cause is logged through a `Throttle`.
"""

import logging
import select
import sys
import time
from collections.abc import Callable, Hashable
from typing import Final, TextIO
from weakref import WeakSet

_FORMAT: Final = "%(asctime)s.%(msecs)03d [%(process)d] %(levelname)s %(name)s: %(message)s"
_DATE_FORMAT: Final = "%Y-%m-%d %H:%M:%S"
_MAX_LENGTH: Final = 4096
_ESCAPES: Final = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160))}


class _Kind:
    """What is known of one kind of line: when it was last logged, and what was held back since."""

    __slots__ = ("args", "held_back", "level", "logged_at", "message")

    def __init__(self, logged_at: float) -> None:
        self.logged_at = logged_at
        self.held_back = 0
        self.level = logging.INFO
        self.message = ""
        self.args: tuple[object, ...] = ()


class Throttle:
    """Log the first line of a kind at once, and what follows within `interval` as one summary.

    No timer and no thread: a summary is written with the kind's next line after the interval, or
    by `flush`, which whoever runs the process calls about once a second for all throttles
    (`flush_throttles`) and once more at exit. Nothing is lost silently.

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

    def info(self, kind: Hashable, message: str, *args: object) -> None:
        """Log a line of `kind` at level INFO, now or in the kind's next summary."""
        self._log(logging.INFO, kind, message, args)

    def warning(self, kind: Hashable, message: str, *args: object) -> None:
        """Log a line of `kind` at level WARNING, now or in the kind's next summary."""
        self._log(logging.WARNING, kind, message, args)

    def error(self, kind: Hashable, message: str, *args: object) -> None:
        """Log a line of `kind` at level ERROR, now or in the kind's next summary."""
        self._log(logging.ERROR, kind, message, args)

    def flush(self, *, final: bool = False) -> None:
        """Summarise the kinds whose interval is over, or every kind in the `final` call."""
        now = self._clock()
        for kind, state in list(self._kinds.items()):
            elapsed = now - state.logged_at
            if not final and elapsed < self._interval:
                continue
            if state.held_back:
                # The line that stands for the others is one of them, hence one less "more".
                self._summarise(state, state.held_back - 1, now)
            else:
                del self._kinds[kind]

    def forget(self) -> None:
        """Drop what is held back: after a fork, the parent is the one to report it."""
        self._kinds.clear()

    def _log(self, level: int, kind: Hashable, message: str, args: tuple[object, ...]) -> None:
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
            self._kinds[kind] = _Kind(now)
            self._logger.log(level, message, *args)
            return
        state.level, state.message, state.args = level, message, args
        if now - state.logged_at < self._interval:
            state.held_back += 1
        else:
            self._summarise(state, state.held_back, now)

    def _summarise(self, state: _Kind, more: int, now: float) -> None:
        if more:
            seconds = max(1, round(now - state.logged_at))
            span = "second" if seconds == 1 else f"{seconds} seconds"
            suffix = f" (and {more} more like it in the last {span})"
        else:
            suffix = ""
        self._logger.log(state.level, state.message + suffix, *state.args)
        state.logged_at = now
        state.held_back = 0
        state.message, state.args = "", ()


_OTHERS: Final = object()
_throttles: WeakSet[Throttle] = WeakSet()


def flush_throttles(*, final: bool = False) -> None:
    """Flush every throttle of this process; the loop that runs the process calls it each second."""
    for throttle in list(_throttles):
        throttle.flush(final=final)


def forget_throttled() -> None:
    """Drop what every throttle holds back, in a process just forked."""
    for throttle in list(_throttles):
        throttle.forget()


class _OneLineFormatter(logging.Formatter):
    """Cut long messages and escape control characters, since peers' bytes end up in them."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        message = record.message
        if len(message) > _MAX_LENGTH:
            message = f"{message[:_MAX_LENGTH]}... ({len(message) - _MAX_LENGTH} characters more)"
        record.message = message.translate(_ESCAPES)
        return super().formatMessage(record)


class _UnwaitingHandler(logging.StreamHandler[TextIO]):
    """Drop lines that would have to wait, and say how many they were as soon as that is possible.

    Whoever reads standard error, a pipe to a collector for instance, may be slow or stuck, and a
    write would keep the event loop from everything else until he goes on. A pipe that takes
    anything takes a line.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._dropped = 0

    def emit(self, record: logging.LogRecord) -> None:
        if self._dropped and self._takes_more():
            lost = "%d lines of this log were lost: nobody read them"
            arguments = (self._dropped,)
            self._dropped = 0
            super().emit(
                logging.LogRecord(__name__, logging.WARNING, __file__, 0, lost, arguments, None)
            )
        if self._takes_more():
            super().emit(record)
        else:
            self._dropped += 1

    def _takes_more(self) -> bool:
        poll = select.poll()
        try:
            poll.register(self.stream.fileno(), select.POLLOUT)
        except (OSError, ValueError):
            return True  # what is no file does not block
        return bool(poll.poll(0))


def configure_logging(debug: bool = False) -> None:
    """Send all logs to standard error: time, process id, level, logger, message.

    Where nobody reads it, lines are dropped and counted, so that a log holds up nothing.

    For programs; a library's user configures logging as he likes.

    Args:
        debug: log from level DEBUG (each frame) instead of INFO.
    """
    handler = _UnwaitingHandler(sys.stderr)
    handler.setFormatter(_OneLineFormatter(_FORMAT, _DATE_FORMAT))
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
        old.close()
    root.addHandler(handler)
    root.setLevel(logging.DEBUG if debug else logging.INFO)
    logging.getLogger("asyncio").setLevel(logging.INFO)  # its DEBUG tells which selector it uses
