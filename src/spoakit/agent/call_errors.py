"""Errors of handler calls: counting, throttled logging, reporting to tests."""

import logging
import signal
from asyncio import get_running_loop
from collections.abc import Callable, Hashable
from pathlib import PurePath
from types import TracebackType
from typing import Final, NoReturn

from spoakit.agent.handlers import Handler, HandlerKind
from spoakit.exceptions import CallError, DeadlineError, MismatchError, RefusedError
from spoakit.logs import Throttle

logger = logging.getLogger("spoakit.agent")
throttle = Throttle(logger)
once_a_minute = Throttle(logger, 60.0)

_SLOW_INLINE: Final = "make it async def, or threaded=True"
_SLOW_ASYNC: Final = "make it a def with threaded=True, or await asyncio.to_thread(...)"
_MAX_NAME: Final = 80
_MAX_RELEASED: Final = 20
_TRACEBACK: Final = BaseException.__dict__["__traceback__"]
# Packages whose stack frames are between the event loop and a handler.
_OWN_PACKAGES: Final = ("spoakit.agent.", "spoakit.spop.")


def show_name(name: bytes) -> str:
    """Return a peer's name for a log line: quoted, and cut after 80 bytes."""
    if not name:
        return "(without a name)"
    shown = repr(name[:_MAX_NAME].decode("utf-8", "replace"))
    return shown if len(name) <= _MAX_NAME else f"{shown}..."


class CallErrors:
    """Failed calls of one handler in one worker: counts and log lines.

    Args:
        handler: the handler.
        on_error: for tests; called with each error, the handler's exception or a `CallError`.

    Attributes:
        failures: calls that raised, or returned something other than actions.
        mismatches: messages whose arguments do not match the handler's parameters.
        expired: calls that missed their deadline.
        refused: calls for which no thread was free.
    """

    __slots__ = (
        "_consequence",
        "_extra",
        "_handler",
        "_on_error",
        "_subject",
        "expired",
        "failures",
        "mismatches",
        "refused",
    )

    def __init__(
        self, handler: Handler, on_error: Callable[[BaseException], object] | None = None
    ) -> None:
        self.failures = 0
        self.mismatches = 0
        self.expired = 0
        self.refused = 0
        self._handler = handler
        self._on_error = on_error
        self._extra = {
            "agent": handler.agent,
            "handler": handler.name,
            "spoe_message": handler.message,
        }
        if handler.kind is HandlerKind.OBSERVER:
            self._subject, self._consequence = f"observer {handler.name}", ""
        elif handler.fallback:
            self._subject, self._consequence = f"handler {handler.name}", ", its fallback is sent"
        else:
            self._subject, self._consequence = f"handler {handler.name}", ", nothing is set"

    def record_failure(self, error: BaseException) -> None:
        """Count and log a call that raised, or returned something other than actions.

        Raises:
            MemoryError: see `propagate_fatal`.
        """
        propagate_fatal(error)
        self.failures += 1
        try:
            self._log_failure(error)
        except BaseException as raised:  # the exception's own code may raise anything
            throttle.error(
                ("unshowable", self._handler.name),
                "%s failed%s: its exception cannot be shown: %s",
                self._subject,
                self._consequence,
                type(raised).__name__,
                extra=self._extra,
            )
            self._report(error)

    def _log_failure(self, error: BaseException) -> None:
        called = _skip_own_frames(_get_traceback(error))
        # `with_traceback`, since an attribute of a frozen dataclass cannot be set.
        BaseException.with_traceback(error, called)
        place, kind = _locate(error, self._handler.name)
        message = "%s failed%s%s"
        shown = self._subject, place, self._consequence
        throttle.error(kind, message, *shown, error=error, extra=self._extra)
        if self._on_error is None:
            _drop_tracebacks(error)
        else:
            self._report(error)

    def record_deadline(self) -> None:
        """Count and log a call that missed its deadline."""
        self.expired += 1
        name = self._handler.name
        throttle.warning(
            ("expired", name),
            "%s missed its deadline%s",
            self._subject,
            self._consequence,
            extra=self._extra,
        )
        self._report(
            DeadlineError(f"handler {name} did not finish within {self._handler.deadline_after} s")
        )

    def record_refusal(self, reason: str) -> None:
        """Count and log a call for which no thread was free."""
        self.refused += 1
        throttle.warning(
            ("refused", self._handler.name, reason),
            "no thread is free for %s%s: %s",
            self._subject,
            self._consequence,
            reason,
            extra=self._extra,
        )
        self._report(RefusedError(f"no thread is free for {self._subject}: {reason}"))

    def record_mismatch(self, reason: str, peer: str) -> None:
        """Count and log a message whose arguments do not match the handler's parameters."""
        self.mismatches += 1
        handler = self._handler
        once_a_minute.warning(
            (handler.name, reason),
            "%s cannot be called%s: message %s from %s: %s; check the spoe-message's args",
            self._subject,
            self._consequence,
            handler.message,
            peer,
            reason,
            extra={**self._extra, "peer": peer},
        )
        self._report(MismatchError(f"handler {handler.name} cannot be called: {reason}"))

    def record_slow(self, seconds: float, calls: int) -> None:
        """Log calls that blocked the event loop for long.

        For an async handler the time is the part before its first await that blocks.
        """
        throttle.warning(
            ("slow", self._handler.name),
            "%s blocked the event loop for %.0f ms%s; %s",
            self._subject,
            seconds * 1000,
            f" in {calls} calls" if calls > 1 else "",
            _SLOW_ASYNC if self._handler.kind is HandlerKind.ASYNC else _SLOW_INLINE,
            extra=self._extra,
        )

    def _report(self, error: BaseException | CallError) -> None:
        if self._on_error is None:
            return
        try:
            self._on_error(error)
        except Exception:
            logger.exception("on_error failed, called with %s", type(error).__qualname__)


def propagate_fatal(error: BaseException) -> None:
    """Raise an error that must end the process, not only the call in which it occurred.

    A KeyboardInterrupt is raised in the next round of the event loop, unless the process ignores
    SIGINT, as workers do. Raised here it would only end the connection: uvloop catches all
    exceptions of ``data_received``.

    Raises:
        MemoryError: spoakit's own code raised it, so the process is out of memory.
    """
    kind = type(error)  # `isinstance` would ask the exception itself
    if issubclass(kind, MemoryError) and _skip_own_frames(_get_traceback(error)) is None:
        raise error
    if issubclass(kind, KeyboardInterrupt) and signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        get_running_loop().call_soon(_raise, error, _get_traceback(error))


def _raise(error: BaseException, traceback: TracebackType | None) -> NoReturn:
    raise error.with_traceback(traceback)


def _get_traceback(error: BaseException) -> TracebackType | None:
    """Return the traceback of an exception, even if its class overrides the attribute."""
    traceback: TracebackType | None = _TRACEBACK.__get__(error)
    return traceback


def _drop_tracebacks(error: BaseException) -> None:
    """Drop the tracebacks of an exception and of its causes and contexts.

    An exception object that is raised repeatedly would collect the stack frames of each time.
    """
    waiting: list[BaseException | None] = [error]
    for _ in range(_MAX_RELEASED):
        if not waiting:
            return
        each = waiting.pop()
        if each is None:
            continue
        BaseException.with_traceback(each, None)
        waiting += [each.__cause__, each.__context__]
        if isinstance(each, BaseExceptionGroup):
            waiting += each.exceptions


def _skip_own_frames(traceback: TracebackType | None) -> TracebackType | None:
    """Return a traceback without spoakit's own frames at its beginning; None if none is left."""
    while traceback is not None:
        module = traceback.tb_frame.f_globals.get("__name__")
        if not (isinstance(module, str) and module.startswith(_OWN_PACKAGES)):
            break
        traceback = traceback.tb_next
    return traceback


def _locate(error: BaseException, handler: str) -> tuple[str, Hashable]:
    """Return where an error was raised, for the log line, and a key for the throttle."""
    kind = f"{type(error).__module__}.{type(error).__qualname__}"
    traceback = _get_traceback(error)
    if traceback is None:
        return "", (kind, handler)
    while traceback.tb_next is not None:
        traceback = traceback.tb_next
    path, line = traceback.tb_frame.f_code.co_filename, traceback.tb_lineno
    return f" at {PurePath(path).name}:{line}", (kind, path, line)
