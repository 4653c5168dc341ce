"""A MaxMind DB as a source: one value of what it has of an address.

The reader in C crashes on some damage that it does not notice when it opens a file. So a database
is used only after `check_database` has had all of it read by a process whose end costs nothing.
"""

import mmap
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import IO, Final

import maxminddb
import msgspec

from spoakit import IPAddress
from spoakit.apps.iprep.config.sources import DatabaseSettings, SourceSettings
from spoakit.apps.iprep.config.units import bare_asn
from spoakit.apps.iprep.exceptions import SourceError
from spoakit.apps.iprep.scoring.policy import Listing, SourceResult
from spoakit.apps.iprep.sources.chunks import unzipped

TRUE: Final = "true"
"""What stands for a boolean that is true; a false one is no value."""

CPU_LIMIT: Final = 300
"""Seconds of CPU time for reading all of a database; 4 million nodes take 14."""

_CHECKER: Final = "spoakit.apps.iprep.sources.mmdb_check"
_MAX_VALUE: Final = 255
_CONTROL: Final = re.compile("[\\x00-\\x1f\\x7f-\\x9f\\u2028\\u2029]")
_SUFFIX: Final = ".mmdb"


class Check(msgspec.Struct, frozen=True):
    """Read all of a database.

    Attributes:
        path: the file.
        database: what is to be looked up in it.
    """

    path: str
    database: DatabaseSettings


class Checked(msgspec.Struct, frozen=True):
    """What reading all of a database found.

    Attributes:
        error: why it cannot be used; "" if it can.
        warning: what is odd about the values that are looked up; "" for nothing.
    """

    error: str = ""
    warning: str = ""


# Made here, under the import lock: msgspec describes a class to itself at its first use, and a
# second thread that decodes at that moment crashes.
_CHECKED: Final = msgspec.json.Decoder(Checked)


def check_database(source: SourceSettings, path: Path) -> str:
    """Have all of a database read in a process of its own.

    Returns:
        What is odd about the values that are looked up; "" for nothing.

    Raises:
        SourceError: it is damaged.
        OSError: no process can be started.
    """
    check = Check(str(path), database_of(source))
    with subprocess.Popen(
        (sys.executable, "-P", "-m", _CHECKER),
        bufsize=0,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        with suppress(BrokenPipeError):  # its end says why
            process.stdin.write(msgspec.json.encode(check) + b"\n")
        # Its standard input stays open, by whose end it knows that nobody waits for it.
        output = process.stdout.read()
        code = process.wait()
    if code:
        raise SourceError(f"it is damaged: a process that read all of it {_end(code)}")
    checked = _CHECKED.decode(output)
    if checked.error:
        raise SourceError(checked.error)
    return checked.warning


def _end(code: int) -> str:
    """Return how a process ended."""
    if code == -signal.SIGXCPU:
        return f"took more than {CPU_LIMIT} s of CPU time"
    return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"


def database_of(source: SourceSettings) -> DatabaseSettings:
    """Return what is looked up in a source's database."""
    return source.database or DatabaseSettings("country.iso_code")


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
        settings = database_of(source)
        self._source = source
        self._way = tuple(
            int(name) if name.isdecimal() else name for name in settings.field.split(".")
        )
        self._scored = frozenset(name for name, _ in source.scores)
        self._lists = bool(self._scored) or settings.provides is None
        self._absent = SourceResult(source, Listing.ABSENT)
        self._is_asn = settings.provides == "asn"
        try:
            self._reader = maxminddb.open_database(path)
            metadata = self._reader.metadata()
            self._families = 6 if metadata.ip_version == 6 else 4
            self._record_size = int(metadata.record_size)
            self.built = float(metadata.build_epoch)
            """When it was made, in seconds since the epoch."""
            self.nodes = int(metadata.node_count)
            """The size of its tree, which has no count of entries."""
        except OSError as error:
            reason = error.strerror or str(error)
            raise SourceError(f"it cannot be opened: {reason}") from None
        except Exception:  # of damaged metadata comes anything; the reader's text names the copy
            raise SourceError("it is not a database in MaxMind's format, or damaged") from None

    def value(self, address: IPAddress) -> str:
        """Return the value of an address as a text, at most 255 characters; "" without one.

        Raises:
            SourceError: the database is damaged.
        """
        return self.text(self.find(address))

    def find(self, address: IPAddress) -> object:
        """Return what the database has in the field for an address; None for nothing.

        Raises:
            SourceError: the database is damaged.
        """
        if address.version == 6:
            address = address.ipv4_mapped or address
        if address.version > self._families:
            return None
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
                return None
        return found

    def text(self, value: object) -> str:
        """Return what was found as a text; "" for what is not used, as control characters."""
        if isinstance(value, bool):
            return TRUE if value else ""
        if not isinstance(value, str | int | float):
            return ""
        text = str(value)[:_MAX_VALUE]
        if _CONTROL.search(text) is not None:
            return ""
        return bare_asn(text) if self._is_asn else text

    def samples(self, path: Path) -> Iterator[IPAddress]:
        """Walk the whole tree; yield for each record that it leads to an address that has it.

        Raises:
            SourceError: the tree is damaged.
        """
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            if self.nodes * self._record_size // 4 >= len(data):
                raise SourceError("it is damaged: its tree is larger than the file")
            yield from self._walk(data)

    def _walk(self, data: mmap.mmap) -> Iterator[IPAddress]:
        kind = IPv6Address if self._families == 6 else IPv4Address
        nodes, size = self.nodes, self._record_size // 4
        seen = bytearray(nodes)
        known = bytearray(len(data) - nodes * size)  # records, by where they point to
        # Nodes with the address that leads to them, and how many bits of it are left. A part of the
        # tree may be there under several addresses: IPv4's is.
        stack = [(0, 0, 128 if self._families == 6 else 32)]
        while stack:
            node, address, left = stack.pop()
            if not left:
                raise SourceError("it is damaged: its tree is deeper than its addresses are long")
            left -= 1
            pair = _records(data[node * size : node * size + size])
            for bit, record in enumerate(pair):
                if record < nodes:
                    if not seen[record]:
                        seen[record] = 1
                        stack.append((record, address | bit << left, left))
                elif record - nodes >= len(known):
                    raise SourceError("it is damaged: its tree points behind the file's end")
                elif record > nodes and not known[record - nodes]:
                    known[record - nodes] = 1
                    yield kind(address | bit << left)

    def say(self, value: str) -> SourceResult:
        """Return what the database says of addresses that have a value."""
        if not self._lists or not value or (self._scored and value not in self._scored):
            return self._absent
        return SourceResult(self._source, Listing.LISTED, None, value if value != TRUE else "")

    def close(self) -> None:
        """Close the file."""
        self._reader.close()


def _records(node: bytes) -> tuple[int, int]:
    """Return the two records of a node, which have 24, 28 or 32 bits each."""
    if len(node) == 7:
        return (
            (node[3] >> 4) << 24 | int.from_bytes(node[:3], "big"),
            (node[3] & 15) << 24 | int.from_bytes(node[4:], "big"),
        )
    half = len(node) // 2
    return int.from_bytes(node[:half], "big"), int.from_bytes(node[half:], "big")
