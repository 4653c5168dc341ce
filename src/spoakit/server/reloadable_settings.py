"""Settings that a reload replaces."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class ReloadableSettings(Generic[T]):
    """Settings of an application, which a reload replaces.

    The supervisor has them for the workers that it forks. A resource of the agent calls `follow`,
    so that a worker uses new ones at once::

        settings = ReloadableSettings(read_file, needs_restart=("path",), logger=logger)
        hooks = Hooks(settings.reload, settings.reopen_logs, reload_worker=settings.reload_worker)
        spoakit.server.run([agent], ServerSettings(), hooks)

    Args:
        read: returns the settings, and is called again for each reload. The settings in force stay
            where it raises ConfigurationError or OSError.
        needs_restart: attributes that a reload leaves as they are, with a warning.
        logger: where the warning goes.
        replaced: returns a copy of the settings with the attributes given by keyword; by default
            the one for dataclasses (``msgspec.structs.replace`` for msgspec's structs).

    Attributes:
        current: the settings in force.

    Raises:
        ConfigurationError, OSError: by the first call of `read`.
    """

    def __init__(
        self,
        read: Callable[[], T],
        needs_restart: Sequence[str],
        logger: logging.Logger,
        replaced: Callable[..., Any] = replace,
    ) -> None:
        self._read = read
        self._needs_restart = needs_restart
        self._logger = logger
        self._replaced = replaced
        self._apply: Callable[[T], object] | None = None
        self._reopen: Callable[[], object] | None = None
        self.current = read()

    def follow(self, apply: Callable[[T], object]) -> None:
        """Have a function called with the settings of each reload, in a worker's event loop."""
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
        """Read the settings again, warn of changes that need a restart, and apply the others.

        Raises:
            ConfigurationError, OSError: by `read`; nothing has changed.
        """
        settings = self._read()
        for option in self._needs_restart:
            if getattr(settings, option) != getattr(self.current, option):
                name = option.replace("_", " ")
                self._logger.warning("reload: a changed %s needs a restart", name)
        self._replace(settings)

    def reload_worker(self) -> None:
        """Do the same in a worker, without the warnings, which the supervisor has logged.

        Raises:
            ConfigurationError, OSError: by `read`; nothing has changed.
        """
        self._replace(self._read())

    def _replace(self, settings: T) -> None:
        kept = {option: getattr(self.current, option) for option in self._needs_restart}
        self.current = self._replaced(settings, **kept)
        if self._apply is not None:
            self._apply(self.current)
