"""Updater of the sources: scans them, has feeds downloaded and snapshots made, and reports faults.

Of all workers one is the updater: the one that holds a lock, which ends with its process, so that
another takes over. Everything that takes long is done in processes of their own (see `jobs`).
"""

import asyncio
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from spoakit.apps.iprep.bans import BanStore
from spoakit.apps.iprep.config.schema import ReputationSettings
from spoakit.apps.iprep.exceptions import SourceError
from spoakit.apps.iprep.metrics import BANS, TABLES
from spoakit.apps.iprep.snapshot import due, jobs
from spoakit.apps.iprep.snapshot.downloader import Downloader
from spoakit.apps.iprep.snapshot.due import BuildState
from spoakit.apps.iprep.snapshot.jobs import JobError
from spoakit.apps.iprep.snapshot.manifest import Snapshot, lock, read_snapshot
from spoakit.apps.iprep.snapshot.reporter import Reporter
from spoakit.apps.iprep.snapshot.scan import Scan, scan, snapshot_files
from spoakit.apps.iprep.sources.feeds import Outcome
from spoakit.exceptions import SpoakitError
from spoakit.metrics import WorkerMetrics

logger = logging.getLogger("spoakit.iprep")

_LOOK_INTERVAL: Final = 1.0
# The very first snapshot waits this many seconds for what has no copy yet.
_FIRST_PATIENCE: Final = 30.0


class UpdateError(SpoakitError):
    """A source that could not be updated at once; the text says why."""


class Failure(NamedTuple):
    """A snapshot that could not be made.

    Attributes:
        at: when that was, in seconds since the epoch.
        reason: why.
    """

    at: float
    reason: str


@contextmanager
def updater_lock(folder: Path, name: str = "updater.lock") -> Iterator[bool]:
    """Yield whether this process has a lock; it ends with the block, or the process."""
    with open(folder / name, "wb") as file:
        yield lock(file)


class Updater:
    """Updates of the sources of one service.

    Args:
        folder: where snapshots go.
        settings: the sources.
        row: the worker's counters.
        bans: those to count; None without.
        patience: how long the very first snapshot waits for feeds that have no copy, in seconds.

    Attributes:
        reporter: what is known of the sources' feeds and ages.
        snapshot: the last one that was made; None before.
        failure: the last attempt to make one, if it failed; else None.
    """

    def __init__(
        self,
        folder: Path,
        settings: ReputationSettings,
        row: WorkerMetrics,
        bans: BanStore | None = None,
        patience: float = _FIRST_PATIENCE,
    ) -> None:
        self._folder = folder
        self._settings = settings
        self._row = row
        self._bans = bans
        now = time.monotonic()
        self._state = BuildState(patient_until=now + patience, quiet_at=now)
        self._downloader = Downloader(row, self._on_attempt)
        self._woken = asyncio.Event()
        # Of those that wait for the next snapshot: the reason why it failed, "" if it did not.
        self._waiting: list[asyncio.Future[str]] = []
        # Names of the sources whose files may have shrunk by any number for the next snapshot.
        self._may_shrink: frozenset[str] = frozenset()
        self.reporter = Reporter(row)
        self.snapshot: Snapshot | None = None
        self.failure: Failure | None = None

    def reconfigure(self, settings: ReputationSettings) -> None:
        """Make a snapshot with other settings, or the same and all files read anew."""
        self._settings = settings
        self._downloader.keep_only(settings)
        self._force()

    async def run(self) -> None:
        """Update the sources until cancelled."""
        try:
            self.snapshot = await asyncio.to_thread(read_snapshot, self._folder)
        except SourceError as error:
            logger.error("there will be a new table: %s", error)
        has_snapshot = self.snapshot is not None
        self._state = msgspec.structs.replace(self._state, has_snapshot=has_snapshot)
        try:
            while True:
                self._woken.clear()
                await self._turn()
                try:
                    async with asyncio.timeout(_LOOK_INTERVAL):
                        await self._woken.wait()
                except TimeoutError:
                    pass
        finally:
            await self._downloader.close()
            self._end_waiting(self._waiting, "the updater has ended; try again")

    async def update(self, name: str, *, accepts_shrink: bool = False) -> str:
        """Download a source now, if it has a URL, and make a snapshot.

        Args:
            name: the source's.
            accepts_shrink: whether a list that lost more entries than `max-shrink` is taken.

        Returns:
            The outcome of the download: "new" or "unchanged"; "" for a source without a URL.

        Raises:
            UpdateError: there is no such source, or that failed.
        """
        source = next((each for each in self._settings.sources if each.name == name), None)
        if source is None:
            raise UpdateError(f"there is no source {name[:80]!r}")
        if source.dnsbl is not None:
            raise UpdateError(f"source {name}: a DNSBL is asked, and has nothing to download")
        outcome: Outcome | None = None
        if source.url is None and accepts_shrink:
            self._may_shrink |= {name}
        if source.url is not None:
            outcome, error = await self._downloader.download_now(
                source, self._settings.cache or "", accepts_shrink=accepts_shrink
            )
            if outcome is Outcome.BUSY:
                error = "another process is downloading it"
            if outcome not in (Outcome.NEW, Outcome.UNCHANGED):
                raise UpdateError(f"source {name}: {error}")
        waiting = asyncio.get_running_loop().create_future()
        self._waiting.append(waiting)
        self._force()
        if reason := await waiting:
            raise UpdateError(f"source {name}: no new table: {reason}")
        return outcome.value if outcome is not None else ""

    def _force(self) -> None:
        self._state = due.forced(self._state)
        self._woken.set()

    def _on_attempt(self, name: str) -> None:
        self._state = msgspec.structs.replace(self._state, tried=self._state.tried | {name})
        self._woken.set()

    async def _turn(self) -> None:
        found = await asyncio.to_thread(scan, self._settings, self._folder, self.snapshot)
        self.reporter.feeds = found.feeds
        self._downloader.start_due(self._settings, found.feeds)
        if due.is_due(found, self._state, time.monotonic(), time.time()):
            await self._build(found)
        self._state = due.after_scan(found, self._state, time.monotonic())
        if self.snapshot is not None:
            self.reporter.report_ages(self.snapshot)
        if self._bans is not None:
            self._row.set(BANS, len(self._bans.bans))

    async def _build(self, found: Scan) -> None:
        # What is forced meanwhile is for the snapshot behind this one.
        self._state = msgspec.structs.replace(self._state, is_forced=False)
        waiting, self._waiting = self._waiting, []
        may_shrink, self._may_shrink = self._may_shrink, frozenset()
        start = time.monotonic()
        reason = "the updater has ended; try again"
        try:
            snapshot = await jobs.build(jobs.Build(str(self._folder), self._settings, may_shrink))
            reason = ""
        except JobError as error:
            reason = str(error)
            self._fail(reason)
            return
        finally:
            if reason:
                self._end_waiting(waiting, reason)
        made = await asyncio.to_thread(snapshot_files, self._folder, snapshot)
        self._state = due.after_build(found, made, self._state, time.monotonic())
        self.snapshot = snapshot
        self.failure = None
        self._row.add(TABLES, 1, "built")
        logger.info(
            "table %d: %d entries of %d sources, %.1f MB, made in %.1f s",
            snapshot.generation,
            snapshot.entries,
            len(snapshot.reports),
            snapshot.size / 1e6,
            time.monotonic() - start,
        )
        self.reporter.report_faults(snapshot)
        self._end_waiting(waiting, "")

    def _fail(self, reason: str) -> None:
        self._state = due.after_failure(self._state, time.monotonic())
        self.failure = Failure(time.time(), reason)
        self._row.add(TABLES, 1, "failed")
        logger.error("no new table, going on as before: %s", reason)

    def _end_waiting(self, waiting: list[asyncio.Future[str]], reason: str) -> None:
        for future in waiting:
            if not future.done():
                future.set_result(reason)
