"""The SQLite file of the bans, which all workers have open.

Everything here may wait for the disk or for another process, so it is called in a thread of its
own. Changes are numbered, so that each worker reads those of others and nothing else.
"""

import fcntl
import logging
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from ipaddress import ip_network
from pathlib import Path
from typing import Any, Final, TypeVar

from spoakit.apps.iprep.ban_list import Ban, BanError
from spoakit.exceptions import StartupError
from spoakit.logs import Throttle
from spoakit.server import identity_of

MAX_BATCH: Final = 200
"""Number of changes read at once."""

_BUSY_TIMEOUT: Final = 0.5
_START_TIMEOUT: Final = 10.0  # while all workers make the file
_START_INTERVAL: Final = 0.01
_ATTEMPTS: Final = 5
_NONE_IN_USE: Final = ()  # the number of no file
_DAMAGED: Final = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)

# A change of a ban is a new row in the place of its old one, and no number comes twice.
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS bans (
    change INTEGER PRIMARY KEY AUTOINCREMENT,
    network TEXT NOT NULL UNIQUE,
    score INTEGER NOT NULL,
    until REAL NOT NULL,
    reason TEXT NOT NULL
);
"""
# Python's lock goes to and fro for each statement, so that one is for many rows; older versions of
# SQLite take 999 values.
_MAX_ROWS: Final = 200

T = TypeVar("T")

logger = logging.getLogger("spoakit.iprep")
throttle = Throttle(logger)


class BanFile:
    """The bans on the disk.

    Args:
        path: the SQLite file; it is made if need be, readable and writable for its owner alone.
        known: returns the bans in memory, for a new file in the place of this one.

    Raises:
        StartupError: the file cannot be used.
    """

    def __init__(self, path: Path, known: Callable[[], Sequence[Ban]]) -> None:
        self._path = path
        self._known = known
        self.restart()
        try:
            self._db = self._open()
            try:
                self._wait_and_prepare()
            except BaseException:
                self._db.close()
                raise
        except (OSError, sqlite3.Error) as error:
            raise StartupError(f"bans: {str(path)!r} cannot be used: {error}") from None
        self._inode: tuple[int, ...] | None = self._inode_there()

    def restart(self) -> None:
        """Have all bans be changes again."""
        self._version = -1
        self._change = 0

    def changes(self) -> tuple[list[Ban], bool]:
        """Return bans that have changed since the last call, and whether there are more.

        Raises:
            BanError: the file cannot be read.
        """
        return self._run("read", self._read)

    def write(self, bans: Sequence[Ban]) -> None:
        """Write bans, all or none; when this returns, they are on the disk.

        Raises:
            BanError: they cannot be written.
        """
        self._run("written", lambda: self._write(bans))

    def remove(self, bans: Sequence[Ban]) -> None:
        """Remove bans that have ended, unless their networks have been banned again.

        Raises:
            BanError: the file cannot be written.
        """
        self._run("written", lambda: self._remove(bans))

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def _read(self) -> tuple[list[Ban], bool]:
        [version] = self._db.execute("PRAGMA data_version").fetchone()
        if version == self._version:
            return [], False
        rows = self._db.execute(
            "SELECT change, network, score, until, reason FROM bans WHERE change > ? "
            f"ORDER BY change LIMIT {MAX_BATCH}",
            (self._change,),
        ).fetchall()
        if rows:
            self._change = rows[-1][0]
        more = len(rows) == MAX_BATCH
        if not more:
            self._version = version
        return list(self._bans(rows)), more

    def _write(self, bans: Sequence[Ban]) -> None:
        with self._transaction():
            [last] = self._db.execute("SELECT max(change) FROM bans").fetchone()
            number = self._insert(bans)
        # Else others have written as well, and what was written here is read with theirs.
        if (last or 0) <= self._change:
            self._change = number

    def _remove(self, bans: Sequence[Ban]) -> None:
        with self._transaction():
            for group in _groups(bans):
                values = [value for ban in group for value in (str(ban.network), ban.until)]
                rows = ", ".join(["(?, ?)"] * len(group))
                self._db.execute(
                    f"DELETE FROM bans WHERE (network, until) IN (VALUES {rows})", values
                )

    def _run(self, what: str, operation: Callable[[], T]) -> T:
        """Run an operation, again where the file is found removed, replaced or damaged.

        Raises:
            BanError: it fails.
        """
        try:
            for _ in range(_ATTEMPTS):
                inode = self._inode_there()
                try:
                    if inode != self._inode:
                        self._use_other_file()
                    result = operation()
                except sqlite3.DatabaseError as error:
                    if error.sqlite_errorcode & 0xFF not in _DAMAGED:
                        raise
                    self._put_aside(inode, error)
                else:
                    if self._inode_there() == self._inode:
                        return result
        except (OSError, sqlite3.Error) as error:
            raise BanError(f"{str(self._path)!r} cannot be {what}: {error}") from None
        raise BanError(f"{str(self._path)!r} cannot be {what}: it is replaced again and again")

    def _use_other_file(self) -> None:
        """Use the file that is there now, or a new one, and write the bans in memory to it.

        The first worker here overwrites what is in it, since what is in memory is newer.
        """
        with self._locked() as in_use:
            self._db.close()
            # A new file may get the number of one that is not open any more.
            self._inode = _NONE_IN_USE
            is_first = in_use.read_text() != str(self._inode_there())
            if is_first:
                in_use.write_text("")
                # What belongs to the old file would damage the new one.
                for suffix in ("-wal", "-shm"):
                    Path(f"{self._path}{suffix}").unlink(missing_ok=True)
            self._db = self._open()
            self._prepare()
            with self._transaction():
                self._insert(self._known(), "REPLACE" if is_first else "IGNORE")
            self._inode = self._inode_there()
            in_use.write_text(str(self._inode))
        self.restart()
        logger.warning(
            "bans: %s was removed or replaced; the bans in memory are written to it", self._path
        )

    def _put_aside(self, inode: tuple[int, ...] | None, error: sqlite3.Error) -> None:
        """Rename a damaged file, so that a new one is written in its place."""
        with self._locked():
            if self._inode_there() == inode:
                kept = self._path.rename(f"{self._path}.damaged")
                logger.error("bans: %s is damaged: %s; it is kept as %s", self._path, error, kept)

    def _open(self) -> sqlite3.Connection:
        self._path.touch(mode=0o600)
        # One thread at a time uses it, but not always the same one.
        return sqlite3.connect(
            self._path, timeout=_BUSY_TIMEOUT, isolation_level=None, check_same_thread=False
        )

    def _wait_and_prepare(self) -> None:
        """Prepare the file, as soon as other workers that do so have done."""
        give_up_at = time.monotonic() + _START_TIMEOUT
        while True:
            try:
                return self._prepare()
            except sqlite3.OperationalError as error:
                # Where two would wait for each other, SQLite tells one at once, after no timeout.
                busy = error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY
                if not busy or time.monotonic() >= give_up_at:
                    raise
            time.sleep(_START_INTERVAL)

    def _prepare(self) -> None:
        self._db.execute("PRAGMA journal_mode = WAL")
        # A commit is on the disk when it returns, so that a system that crashes cannot lose it.
        self._db.execute("PRAGMA synchronous = FULL")
        self._db.executescript(_SCHEMA)

    def _bans(self, rows: Iterable[tuple[Any, ...]]) -> Iterator[Ban]:
        for _, network, score, until, reason in rows:
            try:
                yield Ban(ip_network(network), score, until, reason)
            except (BanError, ValueError, TypeError) as error:  # somebody else wrote it
                throttle.warning("row", "bans: %s has a wrong row: %s", self._path, error)

    def _insert(self, bans: Sequence[Ban], conflict: str = "REPLACE") -> int:
        """Insert bans; return the number of the last change."""
        number = 0
        for group in _groups(bans):
            values = [
                value
                for ban in group
                for value in (str(ban.network), ban.score, ban.until, ban.reason)
            ]
            rows = ", ".join(["(?, ?, ?, ?)"] * len(group))
            inserted = self._db.execute(
                f"INSERT OR {conflict} INTO bans (network, score, until, reason) VALUES {rows}",
                values,
            )
            number = inserted.lastrowid or 0
        return number

    def _inode_there(self) -> tuple[int, ...] | None:
        identity = identity_of(self._path)
        return None if identity is None else identity[:2]

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """Commit what is written within, or nothing of it."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    @contextmanager
    def _locked(self) -> Iterator[Path]:
        """Keep other workers from replacing the file; the path given says which one they use."""
        path = Path(f"{self._path}-lock")
        path.touch(mode=0o600)
        with path.open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield path


def _groups(bans: Sequence[Ban]) -> Iterator[Sequence[Ban]]:
    for start in range(0, len(bans), _MAX_ROWS):
        yield bans[start : start + _MAX_ROWS]
