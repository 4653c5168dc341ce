"""Sources that are files: where they are, what reads them, and how many entries they have."""

import stat
from collections.abc import Callable
from pathlib import Path

from spoakit.apps.iprep.config.sources import SourceSettings
from spoakit.apps.iprep.exceptions import SourceError
from spoakit.apps.iprep.sources.entries import Entries
from spoakit.apps.iprep.sources.feeds import Feed
from spoakit.apps.iprep.sources.json_list import JsonReader
from spoakit.apps.iprep.sources.lists import Columns, CsvReader, DropReader, ListReader, PlainReader
from spoakit.apps.iprep.sources.mmdb import Database, check_database, copy_database


def feed_of(source: SourceSettings, cache: str | None) -> Feed | None:
    """Return the feed of a source that has a URL.

    Args:
        source: its settings.
        cache: the folder for downloads.
    """
    if source.url is None or cache is None:
        return None
    reading = repr((source.type, source.columns, source.select))
    return Feed(
        source.url,
        source.feed,
        Path(cache),
        _counter(source),
        reading,
        has_lines=source.type in ("list", "csv"),
    )


def file_of(source: SourceSettings, cache: str | None) -> Path | None:
    """Return where a source's file is, if it is one: its own, or the copy of a download."""
    feed = feed_of(source, cache)
    if feed is not None:
        return feed.path
    return None if source.path is None else Path(source.path)


def read_entries(source: SourceSettings, path: Path) -> Entries:
    """Read a list.

    A download with too many of the public addresses is refused. So is not what does not block
    them, and what somebody put on this machine: that is a warning.

    Raises:
        SourceError: nothing of it can be used.
    """
    try:
        refuse_no_file(path)
        with open(path, "rb") as file:
            entries = _reader(source).read(file, source.feed.max_size)
    except OSError as error:
        raise SourceError(f"it cannot be read: {error.strerror or error}") from None
    if not entries.lines:
        raise SourceError("it is empty; a list that is meant to be so needs a comment in it")
    excess = source.limits.excess(entries)
    if excess and source.url is not None and not source.allow:
        raise SourceError(excess)
    if excess:
        entries.warnings.append(excess)
    return entries


def refuse_no_file(path: Path) -> None:
    """Refuse what is there and is no file: a pipe, for instance, which would be waited for.

    Raises:
        SourceError: it is none.
        OSError: there is nothing.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise SourceError("it is not a regular file")


def _counter(source: SourceSettings) -> Callable[[Path], int]:
    def count(path: Path) -> int:
        if source.type != "mmdb":
            return len(read_entries(source, path))
        copy = path.with_suffix(".mmdb")
        try:
            copy_database(path, copy, source.feed.max_size)
            check_database(source, copy)
            database = Database(source, copy)
            database.close()
            return database.nodes
        finally:
            copy.unlink(missing_ok=True)

    return count


def _reader(source: SourceSettings) -> ListReader:
    if source.type == "drop":
        return DropReader(source.limits)
    if source.type == "csv":
        return CsvReader(source.columns or Columns(), source.limits)
    if source.type == "json":
        return JsonReader(source.select, source.limits)
    return PlainReader(source.limits)
