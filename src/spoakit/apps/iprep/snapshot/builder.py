"""Makes snapshots: reads what has changed, keeps what can still be used, builds the table.

It takes seconds of computing, and memory that is not given back: it is for a process of its own
(see `jobs`).
"""

import hashlib
import os
import pickle
import shutil
import time
from array import array
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from spoakit.apps.iprep.addresses import PRIVATE as PRIVATE_RANGES
from spoakit.apps.iprep.addresses import Range
from spoakit.apps.iprep.config.schema import ReputationSettings
from spoakit.apps.iprep.config.sources import SourceSettings
from spoakit.apps.iprep.config.units import parse_ranges
from spoakit.apps.iprep.exceptions import SourceError
from spoakit.apps.iprep.snapshot.manifest import ALLOWED, PRIVATE, Snapshot, SourceReport, publish
from spoakit.apps.iprep.sources.entries import Entries
from spoakit.apps.iprep.sources.feeds import refuse_shrunk
from spoakit.apps.iprep.sources.files import feed_of, file_of, read_entries, refuse_no_file
from spoakit.apps.iprep.sources.mmdb import Database, check_database, copy_database
from spoakit.apps.iprep.table.builder import Ranges, TableBuilder
from spoakit.apps.urls import shown_url
from spoakit.server import FileIdentity, identity_of

_NEW: Final = ".new"


class _Kept(NamedTuple):
    """What was read of a source, beside the table in the snapshot's folder."""

    identity: FileIdentity | None
    modified: float
    entries: Entries


def build_snapshot(
    folder: Path,
    settings: ReputationSettings,
    before: Snapshot | None,
    may_shrink: Collection[str] = (),
) -> Snapshot:
    """Make a snapshot of what the sources' files have now.

    Of a file that cannot be used, what was read of it before is used again. It may be killed at
    any time; only one process at a time may do it.

    Args:
        folder: where snapshots are.
        settings: the sources and the policy.
        before: the snapshot that is there.
        may_shrink: names of sources whose files may have lost more entries than `max-shrink`.

    Raises:
        TableError: the table cannot be built.
        OSError: the folder cannot be written.
    """
    _remove_rest(folder)
    builder = TableBuilder()
    copies = () if before is None else before.files
    reports = tuple(
        _Reading(folder, source, settings.cache, before, source.name in may_shrink).add_to(
            builder, number
        )
        for number, source in enumerate(settings.sources)
    )
    _add_ranges(builder, ALLOWED, parse_ranges("policy.allow", settings.policy.allow))
    _add_ranges(builder, PRIVATE, PRIVATE_RANGES)
    generation = 1 if before is None else before.generation + 1
    table = f"table-{generation}"
    built = time.time()
    stats = builder.build(folder / table)
    snapshot = Snapshot(
        generation=generation,
        settings=settings,
        reports=_with_asn_check(settings, reports),
        table=table,
        size=stats.size,
        built=built,
    )
    snapshot = publish(folder, snapshot)
    _remove_unused(folder, snapshot, copies)
    return snapshot


def _kept_name(source: SourceSettings, cache: str | None) -> str:
    """Return what the names of a source's files in the snapshot's folder begin with."""
    path = str(file_of(source, cache))
    reading = source.columns, source.select, source.limits, source.allow
    # What another version kept may have another form.
    return f"source-{_digest(Entries.__slots__, source.type, path, *reading)}"


def _digest(*what: object) -> str:
    return hashlib.sha256(repr(what).encode(errors="surrogateescape")).hexdigest()[:24]


class _Reading:
    """Reads one source."""

    def __init__(
        self,
        folder: Path,
        source: SourceSettings,
        cache: str | None,
        before: Snapshot | None,
        may_shrink: bool,
    ) -> None:
        self._folder = folder
        # Of a feed, that was judged when it was downloaded.
        self._may_shrink = may_shrink or source.url is not None
        self._before = before
        self._source = source
        self._path = file_of(source, cache)
        self._feed = feed_of(source, cache)
        self._kept_path = folder / _kept_name(source, cache)

    def add_to(self, builder: TableBuilder, number: int) -> SourceReport:
        """Add the source's entries to a table, under its number; return what became of it."""
        if self._path is None:
            return SourceReport(loaded=True)  # a DNSBL is asked
        if self._source.type == "mmdb":
            return self._database(self._path)
        kept, error = self._entries(self._path)
        if kept is None:
            return SourceReport(error=error)
        entries = kept.entries
        _add_entries(builder, number, self._source, entries)
        return SourceReport(
            loaded=True,
            entries=len(entries),
            values=entries.values,
            asns=_networks(entries),
            modified=self._modified(kept.modified),
            failed_lines=entries.failed,
            masked=entries.masked,
            line_errors=tuple(map(str, entries.errors)),
            warning="; ".join(entries.warnings),
            error=error,
        )

    def _entries(self, path: Path) -> tuple[_Kept | None, str]:
        """Return what is to be used, and what is wrong with what there is now."""
        kept = self._kept()
        identity = identity_of(path)
        if kept is not None and identity is not None and kept.identity == identity:
            return kept, ""
        try:
            entries = read_entries(self._source, path)
            if kept is not None and not self._may_shrink:
                refuse_shrunk(len(kept.entries), len(entries), self._source.feed)
        except SourceError as error:
            return kept, self._problem(path, error, kept is not None)
        kept = _Kept(identity, _modified(path), entries)
        new = self._kept_path.with_suffix(_NEW)
        new.write_bytes(pickle.dumps(kept, pickle.HIGHEST_PROTOCOL))
        os.replace(new, self._kept_path)
        return kept, ""

    def _kept(self) -> _Kept | None:
        try:
            kept: _Kept = pickle.loads(self._kept_path.read_bytes())
        except Exception:  # whatever comes of a damaged one
            return None
        return kept

    def _database(self, path: Path) -> SourceReport:
        """Use a copy of a database, so that nobody writes into what the workers have mapped."""
        try:
            return self._report(*self._copy(path))
        except SourceError as problem:
            error = problem
        for name in () if self._before is None else self._before.files:
            if name.startswith(self._kept_path.name):
                with suppress(SourceError):
                    report = self._report(self._folder / name)
                    return msgspec.structs.replace(report, error=self._problem(path, error, True))
        return SourceReport(error=self._problem(path, error, False))

    def _copy(self, path: Path) -> tuple[Path, str]:
        """Return the copy of a database, and what is odd about it; each version has its own.

        Raises:
            SourceError: it cannot be copied.
        """
        identity = identity_of(path)
        copy = self._kept_path.with_name(f"{self._kept_path.name}-{_digest(identity)}")
        known = self._known(copy.name)
        if identity is not None and known is not None and self._is_good(copy):
            return copy, known.warning
        new = copy.with_suffix(_NEW)
        try:
            refuse_no_file(path)
            copy_database(path, new, self._source.feed.max_size)
            shutil.copystat(path, new)
            if identity_of(path) != identity:
                raise SourceError("it changed while it was read")
            warning = check_database(self._source, new)
            os.replace(new, copy)
        except OSError as error:
            raise SourceError(f"it cannot be read: {error.strerror or error}") from None
        finally:
            new.unlink(missing_ok=True)
        return copy, warning

    def _known(self, name: str) -> SourceReport | None:
        """Return the report of the snapshot before on a copy of a database, which was checked."""
        if self._before is None:
            return None
        pairs = zip(self._before.settings.sources, self._before.reports, strict=True)
        for source, report in pairs:
            if report.file == name and source.database == self._source.database:
                return report
        return None

    def _is_good(self, copy: Path) -> bool:
        try:
            Database(self._source, copy).close()
        except SourceError:
            return False
        return True

    def _report(self, copy: Path, warning: str = "") -> SourceReport:
        """Return the report on a copy of a database.

        Raises:
            SourceError: it cannot be used.
        """
        database = Database(self._source, copy)
        database.close()
        return SourceReport(
            loaded=True,
            entries=database.nodes,
            file=copy.name,
            modified=self._modified(_modified(copy)),
            warning=warning,
        )

    def _problem(self, path: Path, error: SourceError, kept: bool) -> str:
        """Return what is wrong with a file, or with the download that there should be."""
        where, what = str(path), str(error)
        if self._feed is not None and not path.exists():
            where = shown_url(self._source.url or "")
            what = self._feed.state().error or "it has not been downloaded yet"
        use = "what was read of it before stays in use" if kept else "nothing of it is in use"
        return f"{where}: {what}; {use}"

    def _modified(self, of_file: float) -> float:
        """Return when the source's data were new: of a download, when the server had no others."""
        return of_file if self._feed is None else self._feed.state().checked


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _add_ranges(builder: TableBuilder, number: int, ranges: tuple[Range, ...]) -> None:
    for version, first, last, _ in ranges:
        builder.add(number, 0, first, last, 4 if version == 4 else 6)


def _add_entries(
    builder: TableBuilder, number: int, source: SourceSettings, entries: Entries
) -> None:
    ipv4 = Ranges(entries.first4, entries.last4, _values(entries.values4, len(entries.first4)))
    ipv6 = Ranges(
        _interleaved(entries.first6),
        _interleaved(entries.last6),
        _values(entries.values6, len(entries.first6[0])),
    )
    scores = [source.score_of(value.score, value.category) for value in entries.values]
    builder.extend(number, 4, _worst_last(ipv4, scores))
    builder.extend(number, 6, _worst_last(ipv6, scores))


def _worst_last(ranges: Ranges, scores: Sequence[int]) -> Ranges:
    """Return ranges in an order in which the worst of equal ones holds: the table uses the last."""
    if len(set(scores)) < 2:
        return ranges
    values = ranges.values
    order = sorted(range(len(values)), key=lambda place: scores[values[place]], reverse=True)
    words = len(ranges.firsts) // (len(values) or 1)

    def ordered(column: "array[int]") -> "array[int]":
        moved = array(column.typecode, bytes(column.itemsize * len(column)))
        for word in range(words):
            moved[word::words] = array(column.typecode, map(column[word::words].__getitem__, order))
        return moved

    return Ranges(
        ordered(ranges.firsts),
        ordered(ranges.lasts),
        array(values.typecode, map(values.__getitem__, order)),
    )


def _networks(entries: Entries) -> tuple[tuple[int, int], ...]:
    values = entries.asn_values or [0] * len(entries.asns)
    return tuple(zip(entries.asns, values, strict=True))


def _values(places: "array[int]", count: int) -> "array[int]":
    return array("I", places) if places else array("I", bytes(4 * count))


def _interleaved(halves: "tuple[array[int], array[int]]") -> "array[int]":
    upper, lower = halves
    words = array("Q", bytes(16 * len(upper)))
    words[0::2] = upper
    words[1::2] = lower
    return words


def _with_asn_check(
    settings: ReputationSettings, reports: tuple[SourceReport, ...]
) -> tuple[SourceReport, ...]:
    """Say of sources with numbers of networks that nobody knows whose addresses they are."""
    if any(source.database and source.database.provides == "asn" for source in settings.sources):
        return reports
    return tuple(
        msgspec.structs.replace(
            report,
            error=report.error
            or f"its {len(report.asns)} numbers of networks are of no use without a source of the "
            "type 'mmdb' that provides 'asn'",
        )
        if report.asns
        else report
        for report in reports
    )


def _remove_unused(folder: Path, snapshot: Snapshot, before: Sequence[str]) -> None:
    """Remove what belongs neither to a snapshot nor to the one before.

    A worker may just have read the description of that one; what is mapped stays anyway.
    """
    cache = snapshot.settings.cache
    used = {_kept_name(source, cache) for source in snapshot.settings.sources}
    used.update(snapshot.files, before)
    for file in (*folder.glob("source-*"), *folder.glob("table-*")):
        if file.name not in used:
            file.unlink(missing_ok=True)


def _remove_rest(folder: Path) -> None:
    """Remove what one that was killed was writing: it may be what fills the disk."""
    for file in (*folder.glob(f"*{_NEW}"), *folder.glob("*.part")):
        file.unlink(missing_ok=True)
