"""Signals: the actions they ask for, and how the supervisor receives them."""

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
    """Debouncer of signals, which finds the action that a signal asks for.

    A terminal or a service manager may signal both the group and the process, so a repeated action
    within 500 ms is ignored. SIGHUP and SIGUSR1 are never ignored: repeating them is harmless, and
    the file may have changed in between. A second SIGTERM or SIGINT after 500 ms ends at once.
    """

    __slots__ = ("_clock", "_last", "_stopping")

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last: dict[SignalAction, float] = {}
        self._stopping = False

    def interpret(self, signum: int) -> SignalAction | None:
        """Return the action that a signal of `SIGNALS` asks for; None if it is a repetition."""
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
    """Restore default signal handling, in a process that only waits for the forked one."""
    signal.set_wakeup_fd(-1)
    for signum in SIGNALS:
        signal.signal(signum, signal.SIG_DFL)


class InterruptedBySignal(BaseException):
    """Raised by a signal to stop, in code that may block."""


class SignalReceiver:
    """Receiver of signals for a process without an asyncio loop; a context manager.

    While it is entered, a signal of `SIGNALS`, or the end of a child process, makes `fileno`
    readable, and does not interrupt code outside of `interruptible`. Each pending signal is kept
    once; the descriptor only wakes up the process, so its buffer may be full.
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
        """Let a signal to stop raise `InterruptedBySignal` in the block; it stays pending."""
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
        """True if signals are pending; may miss one that arrives at this moment."""
        return bool(self._pending)

    def pop_pending(self) -> list[int]:
        """Return and clear the pending signals, SIGCHLD included."""
        with suppress(BlockingIOError):
            while self._reader.recv(4096):
                pass
        signals = list(self._pending)
        self._pending.clear()
        return signals

    def ignore(self) -> None:
        """Ignore all signals, in a forked worker."""
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
    logger.info("reload: nothing to reload")


def _log_reopen() -> None:
    logger.info("reopen logs: logs go to standard error")


@dataclass(frozen=True, slots=True)
class Hooks:
    """Hooks for SIGHUP and SIGUSR1, called in the supervisor and then in each worker.

    They run between two callbacks of the event loop. Exceptions are logged. If a hook raises in the
    supervisor, the workers do not call it: this is how a reload is refused. Pending calls of
    observers are made before a reload.

    Attributes:
        reload: called on SIGHUP.
        reopen_logs: called on SIGUSR1, to reopen the files that the program writes; None for none.
        reopen_logfile: called on SIGUSR1 after that; the server sets it if it has a logfile.
        reload_worker: called in a worker when its supervisor has reloaded, which has already
            logged the changes; None for `reload`.
    """

    reload: Callable[[], None] = _log_reload
    reopen_logs: Callable[[], None] | None = None
    reopen_logfile: Callable[[], None] = _log_reopen
    reload_worker: Callable[[], None] | None = None

    def for_worker(self) -> "Hooks":
        """Return the hooks for a worker."""
        return replace(self, reload=self.reload_worker or self.reload)

    def call(self, action: SignalAction) -> bool:
        """Run the hook for `RELOAD` or `REOPEN_LOGS`; return True if it succeeded."""
        what = action.describe()
        try:
            if action is SignalAction.RELOAD:
                self.reload()
            else:
                self._reopen()
        except (ConfigurationError, OSError) as error:
            logger.error("%s refused, going on as before: %s", what, error)
        except (Exception, SystemExit):
            # SystemExit of a hook must not end the service.
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
