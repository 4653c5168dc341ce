"""Signals: their meaning, and their reception by the supervisor."""

import logging
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from enum import Enum, auto
from types import FrameType
from typing import Any, Final, Self

from spoakit.exceptions import ConfigurationError

logger = logging.getLogger("spoakit.server")

STOP_SIGNALS: Final = frozenset({signal.SIGTERM, signal.SIGINT})
SIGNALS: Final = STOP_SIGNALS | {signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2}

_ONE_PRESS: Final = 0.5


class SignalAction(Enum):
    """Action that a signal asks for."""

    STOP = auto()
    END = auto()
    RELOAD = auto()
    REOPEN_LOGS = auto()
    REPORT = auto()

    def describe(self) -> str:
        """Return the action as logs name it: "reopen logs"."""
        return self.name.lower().replace("_", " ")


_ACTIONS: Final = {
    signal.SIGTERM: SignalAction.STOP,
    signal.SIGINT: SignalAction.STOP,
    signal.SIGHUP: SignalAction.RELOAD,
    signal.SIGUSR1: SignalAction.REOPEN_LOGS,
    signal.SIGUSR2: SignalAction.REPORT,
}

_HARMLESS: Final = frozenset({SignalAction.RELOAD, SignalAction.REOPEN_LOGS})


class SignalDebouncer:
    """Tell a signal's meaning from those before it.

    A terminal or a service manager may signal the group and the process both, so what comes within
    500 ms of a signal of the same meaning is that one again. Not so SIGHUP and SIGUSR1: obeying
    them twice does no harm, and the file may have changed in between. SIGTERM or SIGINT for the
    second time, later than that, asks to end at once.
    """

    __slots__ = ("_clock", "_last", "_stopping")

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last: dict[SignalAction, float] = {}
        self._stopping = False

    def read(self, signum: int) -> SignalAction | None:
        """Return what a signal of `SIGNALS` asks for; None when it repeats the one before it."""
        action = _ACTIONS[signal.Signals(signum)]
        now = self._clock()
        last = self._last.get(action)
        if last is not None and now - last < _ONE_PRESS and action not in _HARMLESS:
            return None
        self._last[action] = now
        if action is SignalAction.STOP:
            if self._stopping:
                return SignalAction.END
            self._stopping = True
        return action


def stop_receiving() -> None:
    """Let signals end this process, in one that only waits for the one that it has forked."""
    signal.set_wakeup_fd(-1)
    for signum in SIGNALS:
        signal.signal(signum, signal.SIG_DFL)


class InterruptedBySignal(BaseException):
    """Raised by a signal to stop, in code that may take for ever."""


class SignalReceiver:
    """Make signals something to read; a context manager, for a process without an asyncio loop.

    While it is entered, a signal of `SIGNALS`, or the end of a child process, makes `fileno`
    readable, and interrupts nothing outside of `interruptible`. However many come before they are
    read, each signal is kept once: the descriptor wakes up, and does not carry them.
    """

    __slots__ = ("_before", "_is_interruptible", "_pending", "_reader", "_wakeup", "_writer")

    RECEIVED: Final = SIGNALS | {signal.SIGCHLD}

    def __init__(self) -> None:
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        self._before: dict[signal.Signals, Any] = {}
        self._is_interruptible = False
        self._pending: dict[int, None] = {}
        self._wakeup = -1

    def __enter__(self) -> Self:
        # Python's C handler writes the signal's number to the socket.
        self._wakeup = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        self._before = {signum: signal.signal(signum, self._on_signal) for signum in self.RECEIVED}
        return self

    def __exit__(self, *exc: object) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        signal.set_wakeup_fd(self._wakeup)
        self.close()

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Let a signal to stop raise `InterruptedBySignal` in the block; it can be read, too."""
        self._is_interruptible = True
        try:
            yield
        finally:
            self._is_interruptible = False

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        self._pending[signum] = None
        if self._is_interruptible and signum in STOP_SIGNALS:
            self._is_interruptible = False
            raise InterruptedBySignal

    def fileno(self) -> int:
        """Return the descriptor that signals make readable."""
        return self._reader.fileno()

    @property
    def has_pending(self) -> bool:
        """True if signals came that have not been read; one that just comes may be missed."""
        return bool(self._pending)

    def read(self) -> list[int]:
        """Return the signals that came, each once, SIGCHLD among them."""
        with suppress(BlockingIOError):
            while self._reader.recv(4096):
                pass
        signals = list(self._pending)
        self._pending.clear()
        return signals

    def ignore(self) -> None:
        """Ignore the signals from now on, in a worker just forked."""
        signal.set_wakeup_fd(-1)
        for signum in SIGNALS:
            signal.signal(signum, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self.close()

    def close(self) -> None:
        """Close the descriptors."""
        self._reader.close()
        self._writer.close()


def _log_reload() -> None:
    logger.info("reload: there is nothing to reload")


def _log_reopen() -> None:
    logger.info("reopen logs: logs go to standard error")


@dataclass(frozen=True, slots=True)
class Hooks:
    """Functions that a program calls on SIGHUP and SIGUSR1, in the supervisor and in each worker.

    Both run in the process's event loop, between two callbacks. What a hook raises is logged, and
    if it was raised in the supervisor the workers are not told: so a reload is refused. Observers
    have seen all that was acknowledged before a reload.

    Attributes:
        reload: called on SIGHUP.
        reopen_logs: called on SIGUSR1, to reopen the files that the program writes; None for none.
        reopen_logfile: called on SIGUSR1 behind that; the server sets it where it has a logfile.
        reload_worker: called in a worker when its supervisor has reloaded, and may leave unsaid
            what that has said; None for `reload`.
    """

    reload: Callable[[], None] = _log_reload
    reopen_logs: Callable[[], None] | None = None
    reopen_logfile: Callable[[], None] = _log_reopen
    reload_worker: Callable[[], None] | None = None

    def of_worker(self) -> "Hooks":
        """Return what a worker that has a supervisor does."""
        return replace(self, reload=self.reload_worker or self.reload)

    def call(self, action: SignalAction) -> bool:
        """Run the hook for `RELOAD` or `REOPEN_LOGS`; tell if it went well."""
        what = action.describe()
        try:
            if action is SignalAction.RELOAD:
                self.reload()
            else:
                self._reopen()
        except (ConfigurationError, OSError) as error:
            logger.error("%s refused, going on as before: %s", what, error)
        except (Exception, SystemExit):
            # A hook that exits would take the service with it.
            logger.exception("%s failed; going on as before", what)
        else:
            return True
        return False

    def _reopen(self) -> None:
        try:
            if self.reopen_logs is not None:
                self.reopen_logs()
        finally:
            self.reopen_logfile()
