"""Settings that a reload replaces."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")


class LiveSettings(Generic[T]):
    """The settings in force, which a reload replaces.

    The supervisor has them for the workers it forks; a worker has what it does follow them.

    Args:
        read: gives the settings, anew for each reload. It raises ConfigurationError, or OSError,
            where they cannot be had; those in force stay then.
        for_good: attributes that a reload leaves as they are, with a warning, because the server
            is bound by them.
        logger: where that is said.

    Attributes:
        current: the settings in force.
    """

    def __init__(
        self, read: Callable[[], T], for_good: Sequence[str], logger: logging.Logger
    ) -> None:
        self._read = read
        self._for_good = for_good
        self._logger = logger
        self._apply: Callable[[T], object] | None = None
        self._reopen: Callable[[], object] | None = None
        self.current = read()

    def follow(self, apply: Callable[[T], object]) -> None:
        """Have the settings of each reload applied, in a worker's event loop."""
        self._apply = apply

    def on_reopen(self, reopen: Callable[[], object]) -> None:
        """Have a function called for each signal to reopen logs, in a worker."""
        self._reopen = reopen

    def reopen_logs(self) -> None:
        """Reopen the log files of this worker.

        Raises:
            ConfigurationError: one cannot be opened; its lines go where they went.
        """
        if self._reopen is not None:
            self._reopen()

    def reload(self) -> None:
        """Read the settings again and apply them.

        Raises:
            ConfigurationError, OSError: they cannot be had; nothing has changed.
        """
        settings = self._read()
        for option in self._for_good:
            if getattr(settings, option) != getattr(self.current, option):
                self._logger.warning("reload: another %s takes a restart", option.replace("_", " "))
        self._replace(settings)

    def reload_worker(self) -> None:
        """Do the same in a worker, where the supervisor has said already what takes a restart.

        Raises:
            ConfigurationError, OSError: they cannot be had; nothing has changed.
        """
        self._replace(self._read())

    def _replace(self, settings: T) -> None:
        kept: dict[str, Any] = {option: getattr(self.current, option) for option in self._for_good}
        self.current = replace(settings, **kept)
        if self._apply is not None:
            self._apply(self.current)
