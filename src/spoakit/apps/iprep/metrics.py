"""Metrics of spoa-iprep: answers, sources, bans, DNSBLs."""

from collections import Counter as Tally
from collections.abc import Iterable
from typing import Final, NamedTuple

from spoakit.apps.iprep.config.schema import MAX_SOURCES
from spoakit.metrics import CarriedCounts, Counter, WorkerMetrics, counter, gauge

# As many sources as there may be, and one series for what there is no room for.
_SOURCES: Final = MAX_SOURCES + 1
_BANDS: Final = ("0-19", "20-39", "40-59", "60-79", "80-100")
# Answers that no source decides: ban, allow, private, unknown.
_RULES: Final = 4
_ZONES: Final = 16

ANSWERS = counter(
    "spoakit_iprep_answers_total",
    "Answers, by the source that decided (or ban, allow, private, unknown, where none did), and by "
    "the score.",
    labels=("source", "score"),
    limit=len(_BANDS) * (_SOURCES + _RULES),
)
OBSERVED = counter(
    "spoakit_iprep_observed_total",
    'Answers whose score would have been of another band if a source with mode "observe" had '
    "counted, by the source and by the score that there would have been.",
    labels=("source", "score"),
    limit=len(_BANDS) * _SOURCES,
)
AUDIT_LOST = counter(
    "spoakit_iprep_audit_lost_total", "Lines of the audit log that could not be written."
)
TABLES = counter(
    "spoakit_iprep_tables_total",
    "Tables of all sources, by result: built, failed.",
    labels=("result",),
    limit=3,
)
DOWNLOADS = counter(
    "spoakit_iprep_downloads_total",
    "Downloads of sources, by result: new, unchanged, failed, other.",
    labels=("source", "result"),
    limit=3 * _SOURCES,
)
ENTRIES = gauge("spoakit_iprep_entries", "Entries of a source.", labels=("source",), limit=_SOURCES)
AGE = gauge(
    "spoakit_iprep_source_age_seconds",
    "Time since what is used of a source was new, or was found to be.",
    labels=("source",),
    limit=_SOURCES,
)
FAILED = gauge(
    "spoakit_iprep_source_failed",
    "1 if what there is of a source now cannot be used.",
    labels=("source",),
    limit=_SOURCES,
)
STALE = gauge(
    "spoakit_iprep_source_stale",
    "1 if a source is older than its max-age.",
    labels=("source",),
    limit=_SOURCES,
)
REFUSED_LINES = gauge(
    "spoakit_iprep_refused_lines",
    "Lines of a source that are refused or do not parse.",
    labels=("source",),
    limit=_SOURCES,
)
MASKED_LINES = gauge(
    "spoakit_iprep_masked_lines",
    "Networks of a source that have bits set behind their prefix, which are passed over.",
    labels=("source",),
    limit=_SOURCES,
)
BANS = gauge("spoakit_iprep_bans", "Bans in force.")
DNSBL_ANSWERS = counter(
    "spoakit_iprep_dnsbl_answers_total",
    "Answers of a DNSBL, by result: listed, absent, failed.",
    labels=("zone", "result"),
    limit=3 * _ZONES + 1,
)
DNSBL_LOOKUPS = counter(
    "spoakit_iprep_dnsbl_lookups_total",
    "Addresses looked up in a DNSBL, by how: kept (an answer was), asked, joined (another question "
    "was under way), refused (too many wait, or it fails), out (its self-test failed).",
    labels=("zone", "how"),
    limit=5 * _ZONES + 1,
)
DNSBL_LATE = counter(
    "spoakit_iprep_dnsbl_late_total",
    "Answers of a DNSBL that missed the deadline.",
    labels=("zone",),
    limit=_ZONES,
)
DNSBL_FAILING = gauge(
    "spoakit_iprep_dnsbl_failing",
    "Workers whose last question to a DNSBL had no usable answer.",
    labels=("zone",),
    limit=_ZONES,
)
DNSBL_KEPT = gauge(
    "spoakit_iprep_dnsbl_kept",
    "Answers of a DNSBL that are kept.",
    labels=("zone",),
    limit=_ZONES,
)
DNSBL_TESTS = counter(
    "spoakit_iprep_dnsbl_tests_total",
    "Self-tests of a DNSBL, by result: passed, failed, unclear (it did not answer).",
    labels=("zone", "result"),
    limit=3 * _ZONES + 1,
)
DNSBL_OUT = gauge(
    "spoakit_iprep_dnsbl_out",
    "1 if a DNSBL is out because its self-test failed.",
    labels=("zone",),
    limit=_ZONES,
    merge="max",
)

SOURCE_GAUGES: Final = (ENTRIES, AGE, FAILED, STALE, REFUSED_LINES, MASKED_LINES)


def band_of(score: int) -> str:
    """Return the range of scores that one is in, as counters name it: "20-39"."""
    return _BANDS[min(score // 20, len(_BANDS) - 1)]


class _Kind(NamedTuple):
    """Kind of answers that are counted together.

    Attributes:
        source: what decided.
        band: the range of their scores.
        observed: the sources that do not count, with the bands that there would have been.
    """

    source: str
    band: str
    observed: tuple[tuple[str, str], ...]


class AnswerTally:
    """Counts of answers by what decided and the score, until they are published.

    Each answer of one kind has the same list of one number, which costs less to count by than any
    call does.

    Args:
        metrics: the worker's.
    """

    __slots__ = ("_carried", "_metrics", "_tallies")

    def __init__(self, metrics: WorkerMetrics) -> None:
        self._metrics = metrics
        self._carried = CarriedCounts(metrics)
        self._tallies: dict[_Kind, list[int]] = {}
        metrics.on_publish(self._collect)

    def close(self) -> None:
        """Be published no more."""
        self._metrics.forget(self._collect)

    def of(self, source: str, score: int, observed: tuple[tuple[str, int], ...] = ()) -> list[int]:
        """Return the list whose number counts answers of one kind.

        Args:
            source: what decided.
            score: the score.
            observed: the sources that do not count, with the scores that there would have been.
        """
        band = band_of(score)
        others = tuple((name, band_of(would_be)) for name, would_be in observed)
        kind = _Kind(source, band, tuple(each for each in others if each[1] != band))
        return self._tallies.setdefault(kind, [0])

    def _collect(self) -> None:
        """Count what has come since the last time."""
        counts: Tally[tuple[Counter, str, str]] = Tally()
        for kind, [count] in self._tallies.items():
            counts[ANSWERS, kind.source, kind.band] += count
            for source, band in kind.observed:
                counts[OBSERVED, source, band] += count
        for (family, source, band), count in counts.items():
            self._carried.raise_to(family, count, source, band)


def clear_sources(metrics: WorkerMetrics, sources: Iterable[str]) -> None:
    """Clear the gauges of sources that are there no more."""
    for source in sources:
        for family in SOURCE_GAUGES:
            metrics.set(family, 0, source)
