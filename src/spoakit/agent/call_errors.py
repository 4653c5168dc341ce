"""What goes wrong with a handler's calls: counted, logged with bounds, told to tests."""

import logging
from collections.abc import Callable
from traceback import walk_tb
from typing import Final

from spoakit.agent.handlers import Handler, HandlerKind
from spoakit.exceptions import DeadlineError, MismatchError, RefusedError
from spoakit.logs import Throttle

logger = logging.getLogger("spoakit.agent")
throttle = Throttle(logger)
once_a_minute = Throttle(logger, 60.0)

_MAX_NAME: Final = 80


def show_name(name: bytes) -> str:
    """Return a name that came from a peer as logs show it: quoted, and cut after 80 bytes."""
    if not name:
        return "one without a name"
    shown = repr(name[:_MAX_NAME].decode("utf-8", "replace"))
    return shown if len(name) <= _MAX_NAME else f"{shown}..."


def _place(error: BaseException, handler: str) -> str:
    """Return which line of a handler an error left, as logs show it; "" if it came from outside."""
    for frame, line in walk_tb(error.__traceback__):
        if f"{frame.f_globals.get('__name__')}.{frame.f_code.co_qualname}" == handler:
            return f" in line {line}"
    return ""


class CallErrors:
    """The calls of one handler, in one worker, that came to nothing.

    Args:
        handler: the handler.
        on_error: called with each error, an exception of the handler's own or a `CallError`.
            For tests.

    Attributes:
        failures: calls that raised, or returned what are no actions.
        mismatches: messages whose arguments the handler does not take.
        expired: calls that missed their deadline.
        refused: calls for which there was no thread.
    """

    __slots__ = ("_handler", "_on_error", "expired", "failures", "mismatches", "refused")

    def __init__(
        self, handler: Handler, on_error: Callable[[BaseException], object] | None = None
    ) -> None:
        self.failures = 0
        self.mismatches = 0
        self.expired = 0
        self.refused = 0
        self._handler = handler
        self._on_error = on_error

    def fail(self, error: BaseException) -> None:
        """Count and log that a call raised, or returned what are no actions."""
        self.failures += 1
        name = self._handler.name
        failed = f"{name} failed{_place(error, name)}"
        what = f"{type(error).__name__}: {error}"
        if self._handler.kind is HandlerKind.OBSERVER:
            throttle.error(name, "observer %s: %s", failed, what)
        else:
            throttle.error(name, "handler %s, its fallback is sent: %s", failed, what)
        logger.debug("%s failed", name, exc_info=error)
        self._tell(error)

    def expire(self) -> None:
        """Count and log that a call was not done at its deadline."""
        self.expired += 1
        name = self._handler.name
        throttle.warning(
            ("expired", name), "handler %s missed its deadline, its fallback is sent", name
        )
        self._tell(
            DeadlineError(f"handler {name} had not answered after {self._handler.deadline_after} s")
        )

    def refuse(self) -> None:
        """Count and log that there was no thread for a call."""
        self.refused += 1
        name = self._handler.name
        throttle.warning(
            ("refused", name), "no thread is free for handler %s, its fallback is sent", name
        )
        self._tell(RefusedError(f"no thread is free for handler {name}"))

    def mismatch(self, reason: str, peer: str) -> None:
        """Count and log that a message's arguments are not what the handler takes."""
        self.mismatches += 1
        handler = self._handler
        observer = handler.kind is HandlerKind.OBSERVER
        once_a_minute.warning(
            (handler.name, reason),
            "%s %s cannot be called%s: message %s from %s: %s; check the spoe-message's args",
            "observer" if observer else "handler",
            handler.name,
            "" if observer else ", its fallback is sent",
            handler.message,
            peer,
            reason,
        )
        self._tell(MismatchError(f"handler {handler.name} cannot be called: {reason}"))

    def slow(self, seconds: float, calls: int) -> None:
        """Log that a call, or several in a row, took long on the event loop."""
        name = self._handler.name
        throttle.warning(
            ("slow", name),
            "handler %s took %.0f ms on the event loop%s, and everything waited: "
            "make it async def, or threaded=True",
            name,
            seconds * 1000,
            f" for {calls} calls" if calls > 1 else "",
        )

    def _tell(self, error: BaseException) -> None:
        if self._on_error is not None:
            self._on_error(error)
