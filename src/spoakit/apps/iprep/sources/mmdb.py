"""A MaxMind DB as a source: one value of what it has of an address."""

import os
import shutil
import tarfile
import tempfile
from pathlib import Path
from typing import IO, Final

import maxminddb

from spoakit.agent.parameters import IPAddress
from spoakit.apps.iprep.config.settings import DatabaseSettings, SourceSettings
from spoakit.apps.iprep.exceptions import SourceError
from spoakit.apps.iprep.scoring.policy import Listing, SourceResult
from spoakit.apps.iprep.sources.chunks import unzipped

TRUE: Final = "true"
"""What stands for a boolean that is true; a false one is no value."""

_MAX_VALUE: Final = 255
_SUFFIX: Final = ".mmdb"


def copy_database(path: Path, copy: Path, max_size: int) -> None:
    """Copy a database, out of gzip and out of the tar archive that MaxMind ships it in.

    Args:
        path: the file, with or without either.
        copy: where the database goes; what there is is overwritten.
        max_size: the most bytes that the file may have, out of gzip.

    Raises:
        SourceError: it has more, its gzip or its archive is damaged, or has no database in it.
        OSError: it cannot be read, or the copy not be written.
    """
    with tempfile.TemporaryFile(dir=copy.parent) as whole, open(path, "rb") as file:
        whole.writelines(unzipped(file, max_size))
        with open(copy, "wb") as out:
            try:
                _take_out(whole, out, max_size)
            except (tarfile.TarError, ValueError, OverflowError) as error:
                raise SourceError(f"its tar archive is damaged: {error}") from None


def _take_out(whole: IO[bytes], out: IO[bytes], max_size: int) -> None:
    """Write the database in an archive to a file; all of what is no archive."""
    whole.seek(0)
    is_archive = tarfile.is_tarfile(whole)
    whole.seek(0)
    if not is_archive:
        shutil.copyfileobj(whole, out)
        return
    with tarfile.open(fileobj=whole, mode="r:") as archive:
        for member in archive:
            # One that is sparse may be larger than the archive.
            if member.isfile() and member.name.endswith(_SUFFIX) and member.size <= max_size:
                database = archive.extractfile(member)
                assert database is not None
                shutil.copyfileobj(database, out)
                return
    raise SourceError(f"it is a tar archive without a file whose name ends in {_SUFFIX}")


class Database:
    """A database, mapped into memory, which all processes that have it open share.

    Close it when it is no longer used. A new version must be put in the file's place by renaming:
    one that is written into it changes what is mapped. `copy_database` makes it of what is shipped.

    Args:
        source: what the database is, with its `database` settings.
        path: the file.

    Raises:
        SourceError: it cannot be read, or is no such database.
    """

    def __init__(self, source: SourceSettings, path: str | os.PathLike[str]) -> None:
        settings = source.database or DatabaseSettings("country.iso_code")
        self._source = source
        self._way = tuple(
            int(name) if name.isdecimal() else name for name in settings.field.split(".")
        )
        self._scored = frozenset(name for name, _ in source.scores)
        self._lists = bool(self._scored) or settings.provides is None
        self._absent = SourceResult(source, Listing.ABSENT)
        try:
            self._reader = maxminddb.open_database(path)
        except maxminddb.InvalidDatabaseError:  # which names the copy, and nothing else
            raise SourceError("it is no database in MaxMind's format, or damaged") from None
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise SourceError(f"it cannot be opened: {reason}") from None
        metadata = self._reader.metadata()
        self._families = 6 if metadata.ip_version == 6 else 4
        self.built: float = metadata.build_epoch
        """When it was made, in seconds since the epoch."""
        self.nodes: int = metadata.node_count
        """The size of its tree, which has no count of entries."""

    def value(self, address: IPAddress) -> str:
        """Return the value of an address as a text, at most 255 characters; "" without one.

        Raises:
            SourceError: the database is damaged.
        """
        if address.version == 6:
            address = address.ipv4_mapped or address
        if address.version > self._families:
            return ""
        try:
            found: object = self._reader.get(address)
        except (maxminddb.InvalidDatabaseError, ValueError) as error:
            raise SourceError(f"it is damaged: {error}") from None
        for step in self._way:
            if isinstance(found, dict):
                found = found.get(str(step))
            elif isinstance(found, list) and isinstance(step, int) and step < len(found):
                found = found[step]
            else:
                return ""
        return _text(found)

    def say(self, value: str) -> SourceResult:
        """Return what the database says of addresses that have a value."""
        if not self._lists or not value or (self._scored and value not in self._scored):
            return self._absent
        return SourceResult(self._source, Listing.LISTED, None, value if value != TRUE else "")

    def close(self) -> None:
        """Close the file."""
        self._reader.close()


def _text(value: object) -> str:
    if isinstance(value, bool):
        return TRUE if value else ""
    return str(value)[:_MAX_VALUE] if isinstance(value, str | int | float) else ""
