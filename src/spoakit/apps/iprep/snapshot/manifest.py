"""Snapshots: what all sources came to at one time, made by one process and used by all workers.

A snapshot is a table and a description, two files in a folder of the service's own. The
description is replaced at once, by renaming, and names the table that belongs to it: whoever reads
it has the settings, the sources and the table of one and the same time.

A snapshot outlives its service where there is a cache: the next one begins with it.
"""

import fcntl
import os
import zlib
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import BinaryIO, Final

import msgspec
from msgspec import structs

from spoakit import __version__
from spoakit.apps.iprep.config.schema import (
    AnswerSettings,
    BanSettings,
    ControlSettings,
    ReputationSettings,
)
from spoakit.apps.iprep.config.sources import FeedSettings, SourceSettings
from spoakit.apps.iprep.exceptions import SourceError
from spoakit.apps.iprep.sources.entries import Entries, Value
from spoakit.apps.iprep.table.builder import MAX_SOURCE
from spoakit.exceptions import ConfigurationError

ALLOWED: Final = MAX_SOURCE
"""The table's source that is `PolicySettings.allow`; the others are those of the settings."""

PRIVATE: Final = MAX_SOURCE - 1
"""The table's source that is the addresses which are not of the public Internet."""

_DESCRIPTION: Final = "snapshot.json"
_CHUNK_SIZE: Final = 1024 * 1024


class SourceReport(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a source.

    Attributes:
        loaded: whether there is anything of it, be it of an earlier time.
        entries: how many entries it has, of a MaxMind DB how many nodes.
        values: what is said of entries: the table's values are places in here.
        asns: numbers of autonomous systems, with places in `values`.
        file: the copy of a MaxMind DB, in the snapshot's folder; "" for none.
        modified: when what is used was new, in seconds since the epoch.
        failed_lines: how many lines did not parse.
        masked: how many networks had bits set behind their prefix.
        line_errors: the first ten lines that did not parse.
        warning: what else is wrong with what is used; "" for nothing.
        error: why what there is now could not be used; "" if it could.
    """

    loaded: bool = False
    entries: int = 0
    values: tuple[Value, ...] = ()
    asns: tuple[tuple[int, int], ...] = ()
    file: str = ""
    modified: float = 0.0
    failed_lines: int = 0
    masked: int = 0
    line_errors: tuple[str, ...] = ()
    error: str = ""
    warning: str = ""


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """The description.

    Attributes:
        generation: counts snapshots, from 1.
        settings: those it was made with.
        reports: one for each source of the settings.
        table: the name of the table's file, in the same folder.
        size: its size in bytes.
        built: when it was, in seconds since the epoch.
        checksums: CRC-32 of each of its files.
        version: that of what made it.
    """

    generation: int
    settings: ReputationSettings
    reports: tuple[SourceReport, ...]
    table: str
    size: int
    built: float
    checksums: tuple[int, ...] = ()
    version: str = ""

    @property
    def entries(self) -> int:
        """How many entries its sources have."""
        return sum(report.entries for report in self.reports)

    @property
    def files(self) -> tuple[str, ...]:
        """The names of the files that belong to it, beside the description."""
        return (self.table, *(report.file for report in self.reports if report.file))


_FIELDS: Final = (
    Snapshot.__struct_fields__,
    SourceReport.__struct_fields__,
    ReputationSettings.__struct_encode_fields__,
    SourceSettings.__struct_encode_fields__,
    tuple(field.name for field in fields(Entries)),
)
# Between two releases, too, another form is another version.
_VERSION: Final = f"{__version__}-{zlib.crc32(repr(_FIELDS).encode()):08x}"


class _Version(msgspec.Struct, frozen=True):
    """What the description of each version has."""

    version: str = ""


# Made here, under the import lock: msgspec describes a class to itself at its first use, and a
# second thread that decodes at that moment crashes.
SNAPSHOT_DECODER: Final = msgspec.json.Decoder(Snapshot)
_VERSION_DECODER: Final = msgspec.json.Decoder(_Version)


def encode(described: msgspec.Struct) -> bytes:
    """Return settings, and what has some, as JSON."""
    return msgspec.json.encode(described)


def manifest_of(folder: Path) -> Path:
    """Return the file that changes with each snapshot."""
    return folder / _DESCRIPTION


def read_snapshot(folder: Path) -> Snapshot | None:
    """Return the snapshot in a folder, None before the first.

    Raises:
        SourceError: it cannot be read, or is damaged.
    """
    try:
        return SNAPSHOT_DECODER.decode(manifest_of(folder).read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise SourceError(f"{manifest_of(folder)}: {error.strerror or error}") from None
    except (msgspec.DecodeError, ConfigurationError) as error:
        raise SourceError(f"{manifest_of(folder)} is damaged: {error}") from None


def publish(folder: Path, snapshot: Snapshot) -> Snapshot:
    """Put a snapshot, whose files have been written, in the place of the one before.

    Returns:
        The snapshot with the checksums of its files and the version.

    Raises:
        OSError: a file cannot be read, or the description cannot be written.
    """
    checksums = tuple(_checksum(folder / name) for name in snapshot.files)
    snapshot = structs.replace(snapshot, checksums=checksums, version=_VERSION)
    description = manifest_of(folder)
    new = description.with_suffix(".new")
    new.write_bytes(encode(snapshot))
    os.replace(new, description)
    return snapshot


class UnfitSnapshotError(SourceError):
    """The snapshot of an earlier service cannot be used; the text says why.

    Attributes:
        is_damaged: whether nothing in its folder can be trusted.
    """

    def __init__(self, reason: str, *, is_damaged: bool) -> None:
        super().__init__(reason)
        self.is_damaged = is_damaged


def check_fitness(folder: Path, settings: ReputationSettings) -> Snapshot | None:
    """Return the snapshot of an earlier service if it can be used as it is, None without one.

    Args:
        folder: where it is.
        settings: those that it must have been made with, but for what it does not depend on.

    Raises:
        UnfitSnapshotError: it cannot be used.
    """
    try:
        snapshot = read_snapshot(folder)
    except SourceError as error:
        version = _version_in(folder)
        reason = str(error) if version == _VERSION else f"it is of version {version!r}"
        raise UnfitSnapshotError(reason, is_damaged=True) from None
    if snapshot is None:
        return None
    if snapshot.version != _VERSION:
        raise UnfitSnapshotError(f"it is of version {snapshot.version!r}", is_damaged=True)
    try:
        checksums = tuple(_checksum(folder / name) for name in snapshot.files)
    except OSError as error:
        raise UnfitSnapshotError(f"{error.filename}: {error.strerror}", is_damaged=True) from None
    if checksums != snapshot.checksums:
        raise UnfitSnapshotError("its files are damaged", is_damaged=True)
    if _decisive(snapshot.settings) != _decisive(settings):
        raise UnfitSnapshotError("the configuration has changed since", is_damaged=False)
    return snapshot


def _version_in(folder: Path) -> str:
    with suppress(OSError, msgspec.DecodeError):
        return _VERSION_DECODER.decode(manifest_of(folder).read_bytes()).version
    return _VERSION


def _decisive(settings: ReputationSettings) -> ReputationSettings:
    """Return settings without what a snapshot does not depend on."""
    sources = tuple(structs.replace(source, feed=FeedSettings()) for source in settings.sources)
    return structs.replace(
        settings,
        sources=sources,
        answers=AnswerSettings(),
        bans=BanSettings(),
        control=ControlSettings(),
    )


def _checksum(path: Path) -> int:
    checksum = 0
    with open(path, "rb") as file:
        while data := file.read(_CHUNK_SIZE):
            checksum = zlib.crc32(data, checksum)
    return checksum


def lock(file: BinaryIO | int, *, wait: bool = False) -> bool:
    """Take a lock on an open file, which ends when it is closed, or its process ends.

    Args:
        file: which.
        wait: whether to wait for who has it; otherwise False is returned.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
