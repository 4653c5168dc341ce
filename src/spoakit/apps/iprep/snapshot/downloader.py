"""Downloader: has feeds downloaded when they are due, a few at a time, by jobs."""

import asyncio
import logging
import time
from collections.abc import Callable
from functools import partial
from typing import Final

from spoakit.apps.iprep.config.schema import ReputationSettings
from spoakit.apps.iprep.config.sources import MIN_INTERVAL, SourceSettings
from spoakit.apps.iprep.metrics import DOWNLOADS
from spoakit.apps.iprep.snapshot import jobs
from spoakit.apps.iprep.snapshot.jobs import JobError
from spoakit.apps.iprep.sources.feeds import FeedState, Outcome
from spoakit.apps.urls import shown_url
from spoakit.metrics import WorkerMetrics

logger = logging.getLogger("spoakit.iprep")

_RESULTS: Final = {Outcome.NEW: "new", Outcome.UNCHANGED: "unchanged"}
_MAX_DOWNLOADS: Final = 4
_RETRY_INTERVAL: Final = 10.0
_BUSY_INTERVAL: Final = 0.2


class Downloader:
    """Downloads of the sources of one service.

    Args:
        row: the worker's counters.
        on_attempt: called with a source's name after each attempt.
    """

    def __init__(self, row: WorkerMetrics, on_attempt: Callable[[str], None]) -> None:
        self._row = row
        self._on_attempt = on_attempt
        self._tasks: dict[SourceSettings, asyncio.Task[None]] = {}
        self._slots = asyncio.Semaphore(_MAX_DOWNLOADS)

    def start_due(self, settings: ReputationSettings, feeds: dict[str, FeedState]) -> None:
        """Start what is due by the feeds' states and is not under way."""
        now = time.time()
        for source in settings.sources:
            feed = feeds.get(source.name)
            if feed is not None and feed.due <= now and source not in self._tasks:
                job = jobs.Fetch(source, settings.cache or "")
                task = self._tasks[source] = asyncio.create_task(self._download(job))
                task.add_done_callback(partial(self._forget, source))

    def keep_only(self, settings: ReputationSettings) -> None:
        """Cancel downloads of what is not among the sources of these settings."""
        for source, task in self._tasks.items():
            if source not in settings.sources:
                task.cancel()

    async def download_now(
        self, source: SourceSettings, cache: str, *, accepts_shrink: bool = False
    ) -> tuple[Outcome | None, str]:
        """Download a source, due or not; return the outcome, None for a failure, and its reason.

        Where it is being downloaded already, by any process, that is waited for first.
        """
        job = jobs.Fetch(source, cache, is_forced=True, accepts_shrink=accepts_shrink)
        give_up_at = time.monotonic() + source.feed.timeout
        while True:
            outcome, error = await self._attempt(job)
            if outcome is not Outcome.BUSY or time.monotonic() >= give_up_at:
                self._on_attempt(source.name)
                return outcome, error
            await asyncio.sleep(_BUSY_INTERVAL)

    async def close(self) -> None:
        """Cancel all downloads."""
        tasks = tuple(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _forget(self, source: SourceSettings, _: object) -> None:
        del self._tasks[source]

    async def _download(self, job: jobs.Fetch) -> None:
        async with self._slots:
            outcome, _ = await self._attempt(job)
        self._on_attempt(job.source.name)
        if outcome is None:
            # The feed itself notes when to ask again, but cannot where the disk is full.
            await asyncio.sleep(MIN_INTERVAL)
        elif outcome not in (Outcome.NEW, Outcome.UNCHANGED):
            await asyncio.sleep(_RETRY_INTERVAL)

    async def _attempt(self, job: jobs.Fetch) -> tuple[Outcome | None, str]:
        try:
            fetched = await jobs.fetch(job)
            outcome, error = fetched.outcome, fetched.error
        except JobError as failure:
            outcome, error = None, str(failure)
        name, where = job.source.name, shown_url(job.source.url or "")
        result = "failed" if outcome is None else _RESULTS.get(outcome, "other")
        self._row.add(DOWNLOADS, 1, name, result)
        if outcome is None:
            logger.error("source %s: %s: %s", name, where, error)
        elif outcome is Outcome.NEW:
            logger.info("source %s: %s was downloaded", name, where)
        return outcome, error
