"""Keeps the sources: has feeds downloaded and snapshots made, and tells of what grows stale.

Of all workers one is the updater: whoever holds a lock, which ends with its process, so that
another takes over. Everything that takes long is done in processes of their own (see `jobs`).
"""

import asyncio
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final

import msgspec

from spoakit.apps.iprep.bans import BanStore
from spoakit.apps.iprep.config.settings import MIN_INTERVAL, ReputationSettings, SourceSettings
from spoakit.apps.iprep.exceptions import SourceError
from spoakit.apps.iprep.metrics import (
    AGE,
    BANS,
    DOWNLOADS,
    ENTRIES,
    FAILED,
    MASKED_LINES,
    REFUSED_LINES,
    STALE,
    TABLES,
    clear_sources,
)
from spoakit.apps.iprep.snapshot import jobs
from spoakit.apps.iprep.snapshot.jobs import JobError
from spoakit.apps.iprep.snapshot.manifest import (
    Snapshot,
    SourceReport,
    lock,
    manifest_of,
    read_snapshot,
)
from spoakit.apps.iprep.sources.feeds import FeedState, Outcome
from spoakit.apps.iprep.sources.files import feed_of, file_of
from spoakit.apps.urls import shown_url
from spoakit.metrics.memory import WorkerMetrics
from spoakit.server.watch import FileIdentity, identity_of

logger = logging.getLogger("spoakit.iprep")

_RESULTS: Final = {Outcome.NEW: "new", Outcome.UNCHANGED: "unchanged"}


_LOOK_INTERVAL: Final = 1.0
_RETRY_INTERVAL: Final = 10.0
_MAX_FETCHES: Final = 4
# A file that changes is let be until it has not for one turn, as it may be half written; but one
# that changes all the time is read after so many seconds.
_MAX_UNREST: Final = 10.0
# The very first snapshot waits so many seconds for what has no copy yet.
_FIRST_PATIENCE: Final = 30.0

Identities = dict[str, FileIdentity | None]


@contextmanager
def updater_lock(folder: Path, name: str = "updater.lock") -> Iterator[bool]:
    """Say whether this process has a lock; it ends with the block, or the process."""
    with open(folder / name, "wb") as file:
        yield lock(file)


class _Look(msgspec.Struct, frozen=True):
    """What there is at a time.

    Attributes:
        files: what each source's file is known by, by the sources' names.
        feeds: what is known of each feed.
        snapshot: what the files of the snapshot are known by.
    """

    files: Identities
    feeds: dict[str, FeedState]
    snapshot: tuple[FileIdentity | None, ...]


class Updater:
    """Keeps the sources of one service.

    Args:
        folder: where snapshots go.
        settings: what there is to keep.
        row: the worker's counters.
        bans: those to count; None without.
        patience: how long the very first snapshot waits for feeds that have no copy, in seconds.
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
        self._patient_until = time.monotonic() + patience
        self._fetches: dict[SourceSettings, asyncio.Task[None]] = {}
        self._slots = asyncio.Semaphore(_MAX_FETCHES)
        self._woken = asyncio.Event()
        self._forced = True
        self._tried: set[str] = set()
        self._built: Identities = {}
        self._made: tuple[FileIdentity | None, ...] = ()
        self._retry_at = 0.0
        self._before: _Look | None = None
        self._quiet_at = time.monotonic()
        self._stale: set[str] = set()
        self._shown: set[str] = set()
        self._told: dict[str, str] = {}
        self.snapshot: Snapshot | None = None
        """The last one that was made."""
        self.feeds: dict[str, FeedState] = {}
        """What is known of the feeds, by the names of their sources."""

    def reconfigure(self, settings: ReputationSettings) -> None:
        """Make a snapshot with other settings, or the same and all files read anew."""
        self._settings = settings
        self._forced = True
        self._retry_at = 0.0
        for source, task in self._fetches.items():
            if source not in settings.sources:
                task.cancel()
        self._woken.set()

    async def run(self) -> None:
        """Keep the sources until cancelled."""
        try:
            self.snapshot = await asyncio.to_thread(read_snapshot, self._folder)
        except SourceError as error:
            logger.error("there will be a new table: %s", error)
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
            tasks = tuple(self._fetches.values())
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def is_stale(self, source: SourceSettings, report: SourceReport) -> bool:
        """Whether what is used of a source is older than it may be."""
        age = self.age(source, report)
        return source.max_age is not None and age is not None and age > source.max_age

    def age(self, source: SourceSettings, report: SourceReport) -> float | None:
        """Return how old what is used of a source is, in seconds; None without an age."""
        feed = self.feeds.get(source.name)
        modified = report.modified if feed is None else max(feed.checked, report.modified)
        return max(0.0, time.time() - modified) if modified else None

    # --- a turn ------------------------------------------------------------------------

    async def _turn(self) -> None:
        look = await asyncio.to_thread(self._look)
        self.feeds = look.feeds
        self._start_fetches(look)
        if self._is_due(look):
            await self._build(look)
        self._before = look
        self._tell_stale()
        if self._bans is not None:
            self._row.set(BANS, len(self._bans.bans))

    def _look(self) -> _Look:
        files: Identities = {}
        feeds: dict[str, FeedState] = {}
        settings = self._settings
        for source in settings.sources:
            path = file_of(source, settings.cache)
            if path is not None:
                files[source.name] = identity_of(path)
            feed = feed_of(source, settings.cache)
            if feed is not None:
                feeds[source.name] = feed.state()
        return _Look(files, feeds, self._look_at(self.snapshot))

    def _look_at(self, snapshot: Snapshot | None) -> tuple[FileIdentity | None, ...]:
        names = () if snapshot is None else snapshot.files
        return tuple(
            map(identity_of, (manifest_of(self._folder), *map(self._folder.joinpath, names)))
        )

    def _is_due(self, look: _Look) -> bool:
        """Whether there is something to make a snapshot of."""
        now = time.monotonic()
        if now < self._retry_at:
            return False
        if self._forced:
            return self.snapshot is not None or now >= self._patient_until or self._has_tried(look)
        if look.files == self._built:
            self._quiet_at = now
            # Somebody may have removed or damaged it.
            return look.snapshot != self._made or None in look.snapshot
        is_quiet = self._before is not None and self._before.files == look.files
        return is_quiet or now - self._quiet_at >= _MAX_UNREST

    def _has_tried(self, look: _Look) -> bool:
        """Whether each feed has a copy, or has been asked for once, be it by another process."""
        now = time.time()
        return all(
            look.files[name] is not None or name in self._tried or feed.due > now
            for name, feed in look.feeds.items()
        )

    async def _build(self, look: _Look) -> None:
        self._forced = False
        start = time.monotonic()
        try:
            snapshot = await jobs.build(jobs.Build(str(self._folder), self._settings))
        except JobError as error:
            self._forced = True
            self._row.add(TABLES, 1, "failed")
            self._retry_at = time.monotonic() + _RETRY_INTERVAL
            logger.error("no new table, going on as before: %s", error)
            return
        self._built = look.files
        self._quiet_at = time.monotonic()
        self._made = await asyncio.to_thread(self._look_at, snapshot)
        self.snapshot = snapshot
        self._row.add(TABLES, 1, "built")
        logger.info(
            "table %d: %d entries of %d sources, %.1f MB, made in %.1f s",
            snapshot.generation,
            snapshot.entries,
            len(snapshot.reports),
            snapshot.size / 1e6,
            time.monotonic() - start,
        )
        self._tell(snapshot)

    def _tell(self, snapshot: Snapshot) -> None:
        """Log what is wrong with sources, and what is not any more, unless it is known already."""
        told: dict[str, str] = {}
        for source, report in zip(snapshot.settings.sources, snapshot.reports, strict=True):
            name, level, text = source.name, logging.ERROR, report.error
            if report.failed_lines and not text:
                lines = "; ".join(report.line_errors)
                level, text = logging.WARNING, f"{report.failed_lines} lines do not parse: {lines}"
            elif report.warning and not text:
                level, text = logging.WARNING, report.warning
            before = self._told.get(name, "")
            if text and text != before:
                logger.log(level, "source %s: %s", name, text)
            elif before and not text:
                logger.info("source %s: there is nothing wrong with it any more", name)
            told[name] = text
        self._told = told

    def _tell_stale(self) -> None:
        if self.snapshot is None:
            return
        sources, reports = self.snapshot.settings.sources, self.snapshot.reports
        stale = {
            source.name
            for source, report in zip(sources, reports, strict=True)
            if self.is_stale(source, report)
        }
        for name in sorted(stale - self._stale):
            logger.warning("source %s: it is stale, older than its max-age", name)
        for name in sorted(self._stale - stale):
            logger.info("source %s: it is not stale any more", name)
        self._stale = stale
        self._show_sources(self.snapshot)

    def _show_sources(self, snapshot: Snapshot) -> None:
        """Set the gauges of the sources."""
        names = {source.name for source in snapshot.settings.sources}
        clear_sources(self._row, self._shown - names)
        self._shown = names
        for source, report in zip(snapshot.settings.sources, snapshot.reports, strict=True):
            name = source.name
            self._row.set(ENTRIES, report.entries, name)
            self._row.set(AGE, self.age(source, report) or 0.0, name)
            self._row.set(FAILED, bool(report.error), name)
            self._row.set(STALE, name in self._stale, name)
            self._row.set(REFUSED_LINES, report.failed_lines, name)
            self._row.set(MASKED_LINES, report.masked, name)

    # --- downloads ---------------------------------------------------------------------

    def _start_fetches(self, look: _Look) -> None:
        now = time.time()
        for source in self._settings.sources:
            feed = look.feeds.get(source.name)
            if feed is not None and feed.due <= now and source not in self._fetches:
                task = self._fetches[source] = asyncio.create_task(self._fetch(source))
                task.add_done_callback(partial(self._forget_fetch, source))

    def _forget_fetch(self, source: SourceSettings, _: object) -> None:
        del self._fetches[source]

    async def _fetch(self, source: SourceSettings) -> None:
        async with self._slots:
            outcome = await self._attempt(source)
        self._tried.add(source.name)
        self._woken.set()
        if outcome is None:
            # The feed says itself when to ask again, but not if the disk is full.
            await asyncio.sleep(MIN_INTERVAL)
        elif outcome not in (Outcome.NEW, Outcome.UNCHANGED):
            await asyncio.sleep(_RETRY_INTERVAL)

    async def _attempt(self, source: SourceSettings) -> Outcome | None:
        """Have a source downloaded; return what became of it, None for a failure."""
        try:
            fetched = await jobs.fetch(jobs.Fetch(source, self._settings.cache or ""))
            outcome, error = fetched.outcome, fetched.error
        except JobError as failure:
            outcome, error = None, str(failure)
        where = shown_url(source.url or "")
        result = "failed" if outcome is None else _RESULTS.get(outcome, "other")
        self._row.add(DOWNLOADS, 1, source.name, result)
        if outcome is None:
            logger.error("source %s: %s: %s", source.name, where, error)
        elif outcome is Outcome.NEW:
            logger.info("source %s: %s was downloaded", source.name, where)
        return outcome
