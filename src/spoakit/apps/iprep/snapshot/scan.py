"""Scan: what there is at a time of the sources' files, of their feeds and of the snapshot."""

from pathlib import Path
from typing import TypeAlias

import msgspec

from spoakit.apps.iprep.config.schema import ReputationSettings
from spoakit.apps.iprep.snapshot.manifest import Snapshot, manifest_of
from spoakit.apps.iprep.sources.feeds import FeedState
from spoakit.apps.iprep.sources.files import feed_of, file_of
from spoakit.server import FileIdentity, identity_of

Identities: TypeAlias = dict[str, FileIdentity | None]
"""Identities of the sources' files, by the sources' names; None for a file that is not there."""

SnapshotFiles: TypeAlias = tuple[FileIdentity | None, ...]
"""Identities of the files of a snapshot."""


class Scan(msgspec.Struct, frozen=True):
    """What there is at a time.

    Attributes:
        files: the identities of the sources' files.
        feeds: what is known of each feed, by the names of the sources.
        snapshot: the identities of the snapshot's files.
    """

    files: Identities
    feeds: dict[str, FeedState]
    snapshot: SnapshotFiles


def scan(settings: ReputationSettings, folder: Path, snapshot: Snapshot | None) -> Scan:
    """Look at the files; this is for a thread.

    Args:
        settings: the sources.
        folder: where snapshots are.
        snapshot: the last one; None for none.
    """
    files: Identities = {}
    feeds: dict[str, FeedState] = {}
    for source in settings.sources:
        path = file_of(source, settings.cache)
        if path is not None:
            files[source.name] = identity_of(path)
        feed = feed_of(source, settings.cache)
        if feed is not None:
            feeds[source.name] = feed.state()
    return Scan(files, feeds, snapshot_files(folder, snapshot))


def snapshot_files(folder: Path, snapshot: Snapshot | None) -> SnapshotFiles:
    """Return the identities of a snapshot's files as they are now."""
    names = () if snapshot is None else snapshot.files
    return tuple(map(identity_of, (manifest_of(folder), *map(folder.joinpath, names))))
