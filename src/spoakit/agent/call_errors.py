"""Errors of calls of handlers: counted, logged within limits, passed on to tests."""

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
# The packages whose frames stand between the event loop and a handler.
_OWN_PACKAGES: Final = ("spoakit.agent.", "spoakit.spop.")


def show_name(name: bytes) -> str:
    """Return a name that came from a peer as logs show it: quoted, and cut after 80 bytes."""
    if not name:
        return "one without a name"
    shown = repr(name[:_MAX_NAME].decode("utf-8", "replace"))
    return shown if len(name) <= _MAX_NAME else f"{shown}..."


class CallErrors:
    """The calls of one handler, in one worker, that failed.

    Args:
        handler: the handler.
        on_error: called with each error, an exception of the handler's own or a `CallError`.
            For tests.

    Attributes:
        failures: calls that raised, or returned something other than actions.
        mismatches: messages whose arguments do not fit the handler.
        expired: calls that missed their deadline.
        refused: calls for which there was no thread.
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
        """Count and log that a call raised, or returned something other than actions.

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
        called = _from_the_handler(_traceback_of(error))
        # `with_traceback`, since an attribute of a frozen dataclass cannot be set.
        BaseException.with_traceback(error, called)
        place, kind = _place_of(error, self._handler.name)
        message = "%s failed%s%s"
        shown = self._subject, place, self._consequence
        throttle.error(kind, message, *shown, error=error, extra=self._extra)
        if self._on_error is None:
            _release(error)
        else:
            self._report(error)

    def record_deadline(self) -> None:
        """Count and log that a call had not finished at its deadline."""
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
            DeadlineError(f"handler {name} had not answered after {self._handler.deadline_after} s")
        )

    def record_refusal(self, reason: str) -> None:
        """Count and log that there was no thread for a call."""
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
        """Count and log that a message's arguments do not fit the handler."""
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

    def slow(self, seconds: float, calls: int) -> None:
        """Log that a call, or several in a row, took long on the event loop.

        Of a call of an async handler this is the part until it first waits.
        """
        throttle.warning(
            ("slow", self._handler.name),
            "%s took %.0f ms on the event loop%s, and everything waited: %s",
            self._subject,
            seconds * 1000,
            f" for {calls} calls" if calls > 1 else "",
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
    """Let an error out that must end more than the call in which it was met.

    A KeyboardInterrupt is raised by the event loop's next round, unless the process ignores
    SIGINT, as workers do. Raised at once, it would end the connection alone: uvloop catches
    whatever leaves ``data_received``.

    Raises:
        MemoryError: spoakit itself raised it, not the handler: the process is at its end.
    """
    kind = type(error)  # `isinstance` would ask the exception itself
    if issubclass(kind, MemoryError) and _from_the_handler(_traceback_of(error)) is None:
        raise error
    if issubclass(kind, KeyboardInterrupt) and signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        get_running_loop().call_soon(_raise, error, _traceback_of(error))


def _raise(error: BaseException, traceback: TracebackType | None) -> NoReturn:
    raise error.with_traceback(traceback)


def _traceback_of(error: BaseException) -> TracebackType | None:
    """Return the traceback of an exception, whatever its class has under that name."""
    found: TracebackType | None = _TRACEBACK.__get__(error)
    return found


def _release(error: BaseException) -> None:
    """Drop the tracebacks of an exception and of those that led to it.

    One that is raised again and again would collect the frames of each time.
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


def _from_the_handler(traceback: TracebackType | None) -> TracebackType | None:
    """Return the part of a traceback that begins behind spoakit's own frames, if there is one."""
    while traceback is not None:
        module = traceback.tb_frame.f_globals.get("__name__")
        if not (isinstance(module, str) and module.startswith(_OWN_PACKAGES)):
            break
        traceback = traceback.tb_next
    return traceback


def _place_of(error: BaseException, handler: str) -> tuple[str, Hashable]:
    """Return the place where an error was raised, as logs show it, and its kind for a throttle."""
    kind = f"{type(error).__module__}.{type(error).__qualname__}"
    traceback = _traceback_of(error)
    if traceback is None:
        return "", (kind, handler)
    while traceback.tb_next is not None:
        traceback = traceback.tb_next
    path, line = traceback.tb_frame.f_code.co_filename, traceback.tb_lineno
    return f" at {PurePath(path).name}:{line}", (kind, path, line)
