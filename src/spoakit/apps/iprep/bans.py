"""Bans: addresses and networks with a score of their own, for a time.

They are kept in SQLite, which every worker has open, so that a ban that was answered survives a
restart and a killed process. Each worker has all of them in memory, looks at the file's version a
few times in a tenth of a second, and reads what others have changed since. Changes are numbered,
and a ban that was ended early stays in the file for a minute, so that all workers see its end.
"""

import asyncio
import logging
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Final, TypeAlias

from spoakit.agent.parameters import IPAddress
from spoakit.exceptions import SpoakitError, StartupError
from spoakit.logs import Throttle

IPNetwork: TypeAlias = IPv4Network | IPv6Network

MAX_REASON: Final = 200
"""The longest reason, in characters."""

MAX_SCORE: Final = 100

_LOOK_INTERVAL: Final = 0.04
# A worker that waits for the file answers nothing meanwhile.
_BUSY_TIMEOUT: Final = 0.5
_START_TIMEOUT: Final = 10.0  # while all workers make the file
_START_INTERVAL: Final = 0.01
_PRUNE_INTERVAL: Final = 1.0
_KEEP_ENDED: Final = 60.0

# A change of a ban is a new row in the place of its old one, and no number comes twice.
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS bans (
    change INTEGER PRIMARY KEY AUTOINCREMENT,
    network TEXT NOT NULL UNIQUE,
    score INTEGER NOT NULL,
    until REAL NOT NULL,
    reason TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS ends ON bans (until);
"""

throttle = Throttle(logging.getLogger("spoakit.iprep"))


class BanError(SpoakitError):
    """A ban that cannot be made or kept; the text says why."""


@dataclass(frozen=True, slots=True)
class Ban:
    """An address or network that has a score of its own for a time.

    Attributes:
        network: which addresses; a single one is a network of one.
        score: theirs, 0 to 100.
        until: when it ends, in seconds since the epoch.
        reason: for whoever reads the list, at most 200 characters.
    """

    network: IPNetwork
    score: int
    until: float
    reason: str = ""

    def __post_init__(self) -> None:
        if not 0 <= self.score <= MAX_SCORE:
            raise BanError(f"score: {self.score!r} is not in the range 0 to {MAX_SCORE}")
        if len(self.reason) > MAX_REASON:
            raise BanError(f"reason: it has {len(self.reason)} characters, over {MAX_REASON}")
        if not self.reason.isprintable():
            raise BanError("reason: it has characters that cannot be shown")

    @property
    def name(self) -> str:
        """The address, or the network with its prefix."""
        whole = self.network.prefixlen == self.network.max_prefixlen
        return str(self.network.network_address) if whole else str(self.network)


class BanList:
    """Bans in memory, found by an address.

    Of several networks with an address in them, the smallest counts.
    """

    def __init__(self) -> None:
        # By version and prefix length, the longest first; the networks by their first addresses.
        self._levels: dict[tuple[int, int], dict[int, Ban]] = {}
        self._count = 0
        self._first_end = float("inf")

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Ban]:
        for level in self._levels.values():
            yield from level.values()

    def add(self, ban: Ban) -> None:
        """Add a ban, or replace that of the same network."""
        network = ban.network
        key = network.version, network.prefixlen
        if key not in self._levels:
            self._levels[key] = {}
            self._levels = dict(sorted(self._levels.items(), reverse=True))
        level = self._levels[key]
        self._count += int(network.network_address) not in level
        level[int(network.network_address)] = ban
        self._first_end = min(self._first_end, ban.until)

    def get(self, network: IPNetwork) -> Ban | None:
        """Return the ban of just this network, ended or not."""
        level = self._levels.get((network.version, network.prefixlen), {})
        return level.get(int(network.network_address))

    def remove_ended(self, now: float) -> list[Ban]:
        """Remove those that have ended, and return them; this costs nothing as long as none has."""
        if now < self._first_end:
            return []
        left: list[Ban] = []
        ended: list[Ban] = []
        for ban in self:
            (left if ban.until > now else ended).append(ban)
        self._levels = {}
        self._count = 0
        self._first_end = float("inf")
        for ban in left:
            self.add(ban)
        return ended

    def find(self, address: IPAddress, now: float) -> Ban | None:
        """Return the ban of an address at a time, in seconds since the epoch."""
        number, version, size = int(address), address.version, address.max_prefixlen
        for (level_version, prefix), level in self._levels.items():
            if level_version == version:
                ban = level.get(number >> (size - prefix) << (size - prefix))
                if ban is not None and ban.until > now:
                    return ban
        return None


class BanStore:
    """The bans of all workers: kept in a file, and in memory here.

    Args:
        path: the SQLite file; it is made if need be, readable and writable for its owner alone.
        limit: how many bans there may be; when there are as many, a new one is refused.
        clock: seconds since the epoch.

    Raises:
        StartupError: the file cannot be used.
    """

    def __init__(
        self, path: Path, limit: int = 100_000, clock: Callable[[], float] = time.time
    ) -> None:
        self._path = path
        self._limit = limit
        self._clock = clock
        self.bans = BanList()
        """Those in memory; some may have just ended."""
        self.on_ended: Callable[[Ban], None] | None = None
        """Called for each ban that has ended, by its time or by a command."""
        self._version = -1
        self._change = 0
        self._read_at = 0.0
        try:
            path.touch(mode=0o600)
            self._db = sqlite3.connect(path, timeout=_BUSY_TIMEOUT, isolation_level=None)
            try:
                self._wait_and_prepare()
            except BaseException:
                self._db.close()
                raise
        except (OSError, sqlite3.Error) as error:
            raise StartupError(f"bans: {str(path)!r} cannot be used: {error}") from None

    def find(self, address: IPAddress) -> Ban | None:
        """Return the ban that an address is under now."""
        return self.bans.find(address, self._clock())

    def current(self) -> list[Ban]:
        """Return the bans that have not ended, the next to end first.

        Raises:
            BanError: the file cannot be read.
        """
        try:
            self.refresh()
        except sqlite3.Error as error:
            raise BanError(f"{str(self._path)!r} cannot be read: {error}") from None
        now = self._clock()
        return sorted((ban for ban in self.bans if ban.until > now), key=lambda ban: ban.until)

    def ban(self, ban: Ban) -> None:
        """Make a ban, or replace that of the same network; when this returns, it is kept.

        Raises:
            BanError: there are as many as may be, or the file cannot be written.
        """
        with self._writing():
            self.refresh()
            now = self._clock()
            if len(self.bans) >= self._limit:
                self._remove_ended(now)
            count = len(self.bans)
            if count >= self._limit and self.bans.get(ban.network) is None:
                raise BanError(f"there are {count} bans already, which is the limit")
            self._db.execute("DELETE FROM bans WHERE until <= ?", (now - _KEEP_ENDED,))
            change = self._write(ban)
        self._note(change, ban)

    def unban(self, *networks: IPNetwork) -> list[Ban]:
        """End the bans of just these networks, all at once; return those that there were.

        Raises:
            BanError: the file cannot be written.
        """
        ended = []
        with self._writing():
            self.refresh()
            now = self._clock()
            for network in networks:
                known = self.bans.get(network)
                if known is not None and known.until > now:
                    ban = replace(known, until=now)
                    ended.append((self._write(ban), ban))
        for change, ban in ended:
            self._note(change, ban)
        return [ban for _, ban in ended]

    def refresh(self) -> None:
        """Read what others have changed since the last time, if anything.

        Raises:
            sqlite3.Error: the file cannot be read.
        """
        now = self._clock()
        [version] = self._db.execute("PRAGMA data_version").fetchone()
        if version != self._version:
            # Who was held up for long may have missed the end of a ban.
            self._read(anew=not 0 <= now - self._read_at < _KEEP_ENDED / 2)
            self._version = version
        self._read_at = now

    async def follow(self) -> None:
        """Refresh again and again, so that each change is seen within 100 ms, until cancelled."""
        prune_at = 0.0
        while True:
            await asyncio.sleep(_LOOK_INTERVAL)
            try:
                self.refresh()
            except sqlite3.Error as error:
                throttle.error("refresh", "bans: %s cannot be read: %s", self._path, error)
            if time.monotonic() >= prune_at:
                prune_at = time.monotonic() + _PRUNE_INTERVAL
                self._remove_ended(self._clock())

    def _remove_ended(self, now: float) -> None:
        for ban in self.bans.remove_ended(now):
            if self.on_ended is not None:
                self.on_ended(ban)

    def close(self) -> None:
        """Close the file."""
        self._db.close()

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
        """Make the tables where there are none, and read what there is."""
        # A commit is in the kernel's hands when it returns: a system that crashes can lose it,
        # a process that is killed cannot.
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = NORMAL")
        self._db.executescript(_SCHEMA)
        self.refresh()

    def _read(self, *, anew: bool) -> None:
        """Read all bans, or those that have changed."""
        bans = BanList() if anew else self.bans
        since = 0 if anew else self._change
        rows = self._db.execute(
            "SELECT change, network, score, until, reason FROM bans WHERE change > ? "
            "ORDER BY change",
            (since,),
        )
        for change, network, score, until, reason in rows:
            self._change = change
            try:
                bans.add(Ban(ip_network(network), score, until, reason))
            except (BanError, ValueError, TypeError) as error:  # somebody else wrote it
                throttle.warning("row", "bans: %s has a wrong row: %s", self._path, error)
        self.bans = bans

    def _write(self, ban: Ban) -> int:
        """Put a ban into the file; return the number of the change."""
        row = (str(ban.network), ban.score, ban.until, ban.reason)
        written = self._db.execute(
            "INSERT OR REPLACE INTO bans (network, score, until, reason) VALUES (?, ?, ?, ?)", row
        )
        assert written.lastrowid is not None
        return written.lastrowid

    def _note(self, change: int, ban: Ban) -> None:
        """Have in memory what was written here."""
        self._change = change
        self.bans.add(ban)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Commit what is written within, or nothing of it."""
        try:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            raise BanError(f"{str(self._path)!r} cannot be written: {error}") from None
