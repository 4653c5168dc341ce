"""The service in a worker: a reputation that follows snapshots, and the updater in one of them."""

import asyncio
import logging
import os
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import (
    AsyncExitStack,
    asynccontextmanager,
    closing,
    contextmanager,
    suppress,
)
from pathlib import Path
from typing import Final

from msgspec import structs

from spoakit.apps.iprep.audit import AUDIT_LOG, AuditLog
from spoakit.apps.iprep.bans import BanStore
from spoakit.apps.iprep.config.schema import ReputationSettings
from spoakit.apps.iprep.control.commands import Commands
from spoakit.apps.iprep.control.socket import serve_control
from spoakit.apps.iprep.scoring.reputation import Reputation
from spoakit.apps.iprep.snapshot.manifest import (
    UnfitSnapshotError,
    check_fitness,
    lock,
    manifest_of,
)
from spoakit.apps.iprep.snapshot.updater import Updater, updater_lock
from spoakit.apps.line_output import check_lines
from spoakit.exceptions import ConfigurationError, StartupError
from spoakit.metrics import WorkerMetrics
from spoakit.server import ReloadableSettings

logger = logging.getLogger("spoakit.iprep")

_PREFIX: Final = "spoa-iprep-"
_KEPT: Final = "snapshots"
# Workers of a supervisor that was killed have its folder for a moment.
_LOCK_TIMEOUT: Final = 2.0
_LOCK_INTERVAL: Final = 0.02
_ELECTION_INTERVAL: Final = 0.5
_RETRY_INTERVAL: Final = 10.0
# What the server is bound by.
_NEEDS_RESTART: Final = ("answers", "forwarded", "bans", "control", "audit")


def reloadable_settings(
    read: Callable[[], ReputationSettings],
) -> ReloadableSettings[ReputationSettings]:
    """Return settings that a reload reads again.

    Args:
        read: gives them; they are refused where it raises ConfigurationError or OSError, and where
            DNSBLs come to a service that had none.
    """
    first: ReputationSettings | None = None

    def read_checked() -> ReputationSettings:
        nonlocal first
        settings = read()
        if first is None:
            # Find out at the start what a worker could not do.
            if settings.audit.path is not None:
                check_lines(AUDIT_LOG, settings.audit.path)
            first = settings
        elif settings.asks and not first.asks:
            raise ConfigurationError("source: the first one of the type 'dnsbl' needs a restart")
        return settings

    return ReloadableSettings(read_checked, _NEEDS_RESTART, logger, structs.replace)


@contextmanager
def snapshots_folder(settings: ReputationSettings) -> Iterator[Path]:
    """Provide the folder for snapshots: one in the cache, which stays, or a temporary one.

    In the cache there may be a snapshot of an earlier service. It stays only if it can be used as
    it is, so that workers need not ask. Enter the context before workers are forked, and log
    before: all that is found is logged.
    """
    kept = None if settings.cache is None else _open_kept(Path(settings.cache) / _KEPT)
    if kept is None:
        with _temporary_folder() as folder:
            yield folder
        return
    folder, descriptor = kept
    try:
        _discard_unfit(folder, settings)
        yield folder
    finally:
        os.close(descriptor)


def _open_kept(folder: Path) -> tuple[Path, int] | None:
    """Return the folder in the cache and its lock; None if it cannot be had, which is logged.

    What is in it is trusted, and has passwords in it: it must be ours, and nobody else's.
    """
    try:
        folder.mkdir(0o700, parents=True, exist_ok=True)
        descriptor = _open_folder(folder)
        if os.fstat(descriptor).st_uid != os.geteuid():
            reason = "it belongs to another user"
        else:
            os.fchmod(descriptor, 0o700)
            if _lock_soon(descriptor):
                return folder, descriptor
            reason = "another service uses it; give each one a cache of its own"
        os.close(descriptor)
    except OSError as error:
        reason = error.strerror or str(error)
    logger.warning("%s: %s; the next start begins without a table", folder, reason)
    return None


def _lock_soon(descriptor: int) -> bool:
    end = time.monotonic() + _LOCK_TIMEOUT
    while not lock(descriptor):
        if time.monotonic() > end:
            return False
        time.sleep(_LOCK_INTERVAL)
    return True


def _discard_unfit(folder: Path, settings: ReputationSettings) -> None:
    """Remove the snapshot of an earlier service if it cannot be used."""
    try:
        snapshot = check_fitness(folder, settings)
    except UnfitSnapshotError as error:
        logger.warning("%s: the table of the last run is not used: %s", folder, error)
        # What was read of each source can be used with other settings, but not if it is damaged.
        for path in list(folder.iterdir()) if error.is_damaged else [manifest_of(folder)]:
            _remove(path)
        return
    if snapshot is not None:
        logger.info("the table of the last run is used until there is a new one")


def _remove(path: Path) -> None:
    with suppress(OSError):
        path.unlink()


@contextmanager
def _temporary_folder() -> Iterator[Path]:
    """Make a folder among other temporary files, and remove it at the end.

    Those that others left behind because they were killed are removed, too.
    """
    _remove_abandoned(Path(tempfile.gettempdir()))
    folder, descriptor = _new_folder()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)


@asynccontextmanager
async def open_reputation(
    live: ReloadableSettings[ReputationSettings],
    folder: Path,
    row: WorkerMetrics,
    audit: AuditLog | None = None,
) -> AsyncIterator[Reputation]:
    """Run the service in a worker as long as the context lasts.

    The context is entered when the first snapshot is in use.

    Args:
        live: the settings.
        folder: for snapshots, of all workers together.
        row: the worker's counters.
        audit: the audit log; None for none.

    Raises:
        StartupError: the file of the bans or the control socket cannot be had.
    """
    settings = live.current
    async with AsyncExitStack() as stack:
        bans = None
        if settings.bans.path is not None:
            bans = stack.enter_context(closing(BanStore(Path(settings.bans.path))))
        reputation = Reputation(folder, bans, row)
        stack.push_async_callback(reputation.aclose)
        candidate = _Candidate(live, folder, row, reputation, bans, audit)
        background = [reputation.follow(), candidate.stand()]
        if bans is not None:
            background.append(bans.follow())
        tasks = [asyncio.create_task(each) for each in background]
        stack.push_async_callback(_cancel, tasks)
        await _wait_or_fail(reputation, tasks)
        yield reputation


class _Candidate:
    """A worker that becomes the updater as soon as no other one is."""

    def __init__(
        self,
        live: ReloadableSettings[ReputationSettings],
        folder: Path,
        row: WorkerMetrics,
        reputation: Reputation,
        bans: BanStore | None,
        audit: AuditLog | None,
    ) -> None:
        self._live = live
        self._folder = folder
        self._row = row
        self._reputation = reputation
        self._bans = bans
        self._audit = audit
        self._longest_deadline = 0.0

    async def stand(self) -> None:
        """Be the updater whenever nobody else is, until cancelled.

        Raises:
            StartupError: the control socket cannot be had, and nobody is answered yet.
        """
        while True:
            try:
                with updater_lock(self._folder) as elected:
                    if elected:
                        await self._keep()
            except StartupError:
                raise
            except Exception:
                logger.exception("the updater of the sources failed; it is tried again")
                await asyncio.sleep(_RETRY_INTERVAL)
            await asyncio.sleep(_ELECTION_INTERVAL)

    async def _keep(self) -> None:
        """Keep the sources until cancelled.

        Raises:
            StartupError: see `stand`.
        """
        updater = Updater(self._folder, self._live.current, self._row, self._bans)
        settings = self._live.current
        self._warn_of_deadline(settings)

        def reconfigure(new: ReputationSettings) -> None:
            self._warn_of_deadline(new)
            updater.reconfigure(new)

        self._live.follow(reconfigure)
        commands = Commands(
            self._reputation, updater, self._bans, settings.bans, self._row, self._audit
        )
        if self._bans is not None and self._audit is not None:
            # Each worker sees the end of each ban; one of them notes it.
            self._bans.on_ended = self._audit.expire
        control = settings.control
        async with AsyncExitStack() as stack:
            if control.path is not None:
                try:
                    await stack.enter_async_context(serve_control(control, commands.handle))
                except StartupError as error:
                    if not self._reputation.is_ready and not control.is_default:
                        raise
                    logger.error("%s; the sources are kept, but nobody can ask for them", error)
            await updater.run()

    def _warn_of_deadline(self, settings: ReputationSettings) -> None:
        """Log how long HAProxy must wait, which only its own configuration can say."""
        longest = settings.longest_deadline
        if longest and longest != self._longest_deadline:
            logger.warning(
                "HAProxy's 'timeout processing' must be longer than %g ms, the longest deadline of "
                "the DNSBLs; a client whose answer comes later is let in without a score",
                longest * 1000,
            )
        self._longest_deadline = longest


async def _wait_or_fail(reputation: Reputation, tasks: list[asyncio.Task[None]]) -> None:
    """Wait for the first snapshot, or for the error of a task."""
    ready = asyncio.create_task(reputation.wait())
    try:
        done, _ = await asyncio.wait((ready, *tasks), return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        await _cancel([ready])


async def _cancel(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _new_folder() -> tuple[Path, int]:
    """Return a folder, and what holds the lock that says that it is in use.

    The lock is one on the folder itself, which systemd-tmpfiles respects as well. All workers
    inherit it.
    """
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
        # Before it is locked, one that starts at the same time may take it for abandoned.
        with suppress(OSError):
            descriptor = _open_folder(folder)
            if lock(descriptor) and folder.exists():
                return folder, descriptor
            os.close(descriptor)


def _open_folder(folder: Path) -> int:
    return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)


def _remove_abandoned(parent: Path) -> None:
    """Remove folders of ours that nobody has locked; in a folder of all users, trust no name."""
    for folder in parent.glob(f"{_PREFIX}*"):
        with suppress(OSError):
            descriptor = _open_folder(folder)
            try:
                if os.fstat(descriptor).st_uid == os.geteuid() and lock(descriptor):
                    shutil.rmtree(folder)
            finally:
                os.close(descriptor)
