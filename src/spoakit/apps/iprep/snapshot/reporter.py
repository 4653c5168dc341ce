"""Reporter: logs and gauges of what is wrong with the sources of a snapshot, and of their age."""

import logging
import time

from spoakit.apps.iprep.config.sources import SourceSettings
from spoakit.apps.iprep.metrics import (
    AGE,
    ENTRIES,
    FAILED,
    MASKED_LINES,
    REFUSED_LINES,
    STALE,
    clear_sources,
)
from spoakit.apps.iprep.snapshot.manifest import Snapshot, SourceReport
from spoakit.apps.iprep.sources.feeds import FeedState
from spoakit.metrics import WorkerMetrics

logger = logging.getLogger("spoakit.iprep")


class Reporter:
    """Reports of one service's sources; each fault is logged once, and once when it has ended.

    Args:
        row: the worker's counters.

    Attributes:
        feeds: what is known of the feeds, by the names of their sources.
    """

    def __init__(self, row: WorkerMetrics) -> None:
        self._row = row
        self._faults: dict[str, str] = {}
        self._stale: set[str] = set()
        self._shown: set[str] = set()
        self.feeds: dict[str, FeedState] = {}

    def age(self, source: SourceSettings, report: SourceReport) -> float | None:
        """Return the age of what is used of a source, in seconds; None without an age."""
        feed = self.feeds.get(source.name)
        modified = report.modified if feed is None else max(feed.checked, report.modified)
        return max(0.0, time.time() - modified) if modified else None

    def is_stale(self, source: SourceSettings, report: SourceReport) -> bool:
        """Return whether what is used of a source is older than it may be."""
        age = self.age(source, report)
        return source.max_age is not None and age is not None and age > source.max_age

    def report_faults(self, snapshot: Snapshot) -> None:
        """Log what is wrong with the sources of a new snapshot, and what is not any more."""
        faults: dict[str, str] = {}
        for source, report in zip(snapshot.settings.sources, snapshot.reports, strict=True):
            name, level, text = source.name, logging.ERROR, report.error
            if not text:
                level, text = logging.WARNING, _warning(report)
            before = self._faults.get(name, "")
            if text and text != before:
                logger.log(level, "source %s: %s", name, text)
            elif before and not text:
                logger.info("source %s: there is nothing wrong with it any more", name)
            faults[name] = text
        self._faults = faults

    def report_ages(self, snapshot: Snapshot) -> None:
        """Log what has become stale, or is not any more, and set the gauges of the sources."""
        sources = snapshot.settings.sources
        stale = {
            source.name
            for source, report in zip(sources, snapshot.reports, strict=True)
            if self.is_stale(source, report)
        }
        for name in sorted(stale - self._stale):
            logger.warning("source %s: it is stale, older than its max-age", name)
        for name in sorted(self._stale - stale):
            logger.info("source %s: it is not stale any more", name)
        self._stale = stale
        self._set_gauges(snapshot)

    def _set_gauges(self, snapshot: Snapshot) -> None:
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


def _warning(report: SourceReport) -> str:
    """Return what is wrong with a source that is in use nevertheless, "" for nothing."""
    lines = ""
    if report.failed_lines:
        lines = f"{report.failed_lines} lines are refused: {'; '.join(report.line_errors)}"
    return "; ".join(filter(None, (report.warning, lines)))
