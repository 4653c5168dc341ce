"""The bans of a worker, in its memory and in a file that all workers share.

A ban that was answered survives a restart and a killed process, since it is in the file. Each
worker has all bans in memory too, and reads what others have changed a few times in a tenth of a
second. The file is read and written in a thread, a few hundred bans at once, so that the event loop
waits neither for the disk nor for other processes.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final, ParamSpec, TypeAlias, TypeVar

from spoakit import IPAddress
from spoakit.apps.iprep.ban_file import BanFile
from spoakit.apps.iprep.ban_list import (
    MAX_REASON,
    MAX_SCORE,
    MIN_KEPT,
    Ban,
    BanError,
    BanList,
    IPNetwork,
)
from spoakit.logs import Throttle

__all__ = ["MAX_REASON", "MAX_SCORE", "Ban", "BanError", "BanList", "BanStore", "IPNetwork"]

P = ParamSpec("P")
T = TypeVar("T")
# A ban to be written, and the command that waits for it; None for a message's.
_Pending: TypeAlias = tuple[Ban, asyncio.Future[None] | None]

_LOOK_INTERVAL: Final = 0.04
_REMOVE_INTERVAL: Final = 1.0
_MAX_REMOVED: Final = 5000
# Bans written in one transaction: enough for its wait for the disk to cost each one little.
_MAX_GROUP: Final = 500
_MAX_PENDING: Final = 10_000

throttle = Throttle(logging.getLogger("spoakit.iprep"))


class BanStore:
    """The bans of all workers, as one of them has them.

    Args:
        path: the SQLite file; it is made if need be, readable and writable for its owner alone.
        limit: how many bans there may be; a tenth of them only commands can make. Each worker
            counts the bans it knows, so that workers that ban at the same moment may make a few
            more.
        clock: seconds since the epoch, by which bans end.
        monotonic: a clock that cannot jump, in seconds.

    Raises:
        StartupError: the file cannot be used.
    """

    def __init__(
        self,
        path: Path,
        limit: int = 100_000,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path = path
        self._limit = limit
        self._clock = clock
        self._monotonic = monotonic
        self.on_ended: Callable[[Ban], None] | None = None
        """Called for each ban that has ended, by its time or by a command."""
        self.bans = self._new_list()
        """Those in memory; some may have just ended."""
        self._added: list[Ban] | None = None
        self._file = BanFile(path, lambda: self.bans.copy())
        self._read_at = monotonic()
        self._read_all()
        self._thread = ThreadPoolExecutor(1, "bans")
        self._reading = asyncio.Lock()
        self._pending: list[_Pending] = []
        self._promised = 0
        self._writer: asyncio.Task[None] | None = None
        self._forgotten: list[Ban] = []

    def find(self, address: IPAddress) -> Ban | None:
        """Return the ban that an address is under now."""
        return self.bans.find(address, self._clock())

    async def current(self) -> list[Ban]:
        """Return the bans that have not ended, the next to end first.

        Raises:
            BanError: the file cannot be read.
        """
        await self.refresh()
        return await self._in_thread(_in_force, self.bans, self._clock())

    async def ban(self, ban: Ban) -> None:
        """Make a ban, or replace that of the same network; when this returns, it is on the disk.

        Raises:
            BanError: there are as many as may be, or the file cannot be written.
        """
        self._check_room(ban.network, self._limit)
        await self._write(ban)

    def ban_soon(self, ban: Ban) -> None:
        """Make a ban that nobody waits for: it holds at once, and is on the disk soon after.

        Raises:
            BanError: there are as many as may be without a command, or too many that are not
                written yet.
        """
        self._check_room(ban.network, self._limit - self._limit // 10)
        if len(self._pending) >= _MAX_PENDING:
            raise BanError(f"{len(self._pending)} bans wait to be written to {str(self._path)!r}")
        self._add(ban)
        self._submit(ban, None)

    async def unban(self, *networks: IPNetwork) -> list[Ban]:
        """End the bans of just these networks; return those that there were.

        Raises:
            BanError: the file cannot be read or written.
        """
        await self.refresh()
        known = [self.bans.get(network) for network in networks]
        now = self._clock()
        # Not the time of now: a clock that is set back must not revive them.
        ended = [replace(ban, until=0.0) for ban in known if ban is not None and ban.until > now]
        await asyncio.gather(*map(self._write, ended))
        return ended

    async def refresh(self) -> None:
        """Read what others have changed since the last time, if anything.

        Raises:
            BanError: the file cannot be read.
        """
        async with self._reading:
            now = self._monotonic()
            # A worker that was held up for long may have missed the end of a ban.
            if now - self._read_at > MIN_KEPT / 2:
                await self._read_anew()
            else:
                await self._read_changes(self.bans)
            self._read_at = now

    async def follow(self) -> None:
        """Refresh again and again, so that each change is seen within 100 ms, until cancelled."""
        remove_at = 0.0
        while True:
            await asyncio.sleep(_LOOK_INTERVAL)
            self._follow_clock()
            try:
                await self.refresh()
                if self._forgotten and self._monotonic() >= remove_at:
                    remove_at = self._monotonic() + _REMOVE_INTERVAL
                    await self._remove(self._forgotten[:_MAX_REMOVED])
            except BanError as error:
                throttle.error("refresh", "bans: %s", error)

    def close(self) -> None:
        """Write what is not written yet, and close the file."""
        self._thread.shutdown()
        pending, self._pending = self._pending, []
        if pending:
            try:
                self._file.write([ban for ban, _ in pending])
            except BanError as error:
                throttle.error("close", "bans: %d are lost: %s", len(pending), error)
        self._file.close()

    def _new_list(self) -> BanList:
        return BanList(self._limit, self._monotonic, self._end)

    def _end(self, ban: Ban) -> None:
        if self.on_ended is not None:
            self.on_ended(ban)

    def _read_all(self) -> None:
        more = True
        while more:
            changed, more = self._file.changes()
            for ban in changed:
                self.bans.add(ban)
        self.bans.follow_clock(self._clock())

    async def _read_changes(self, bans: BanList) -> None:
        more = True
        while more:
            changed, more = await self._in_thread(self._file.changes)
            for ban in changed:
                bans.add(ban)

    async def _read_anew(self) -> None:
        """Read all bans into a new list, beside which those that come meanwhile are noted."""
        self._added = [ban for ban, command in self._pending if command is None]
        try:
            bans = self._new_list()
            await self._in_thread(self._file.restart)
            await self._read_changes(bans)
            for ban in self._added:
                bans.add(ban)
            self.bans = bans
        finally:
            self._added = None

    def _add(self, ban: Ban) -> None:
        self.bans.add(ban)
        if self._added is not None:
            self._added.append(ban)

    def _follow_clock(self) -> None:
        self._forgotten += self.bans.follow_clock(self._clock())

    def _check_room(self, network: IPNetwork, limit: int) -> None:
        """Refuse another ban where there are as many as may be, or too many have just ended."""
        if self.bans.get(network) is not None:
            return
        if len(self.bans) + self._promised >= limit:
            self._follow_clock()
        count = len(self.bans) + self._promised
        if count >= limit:
            raise BanError(f"there are {count} bans already, which is the limit")
        if count + self.bans.ended >= 2 * self._limit:
            raise BanError(f"{self.bans.ended} bans have just ended, which is the limit")

    async def _write(self, ban: Ban) -> None:
        written = asyncio.get_running_loop().create_future()
        self._promised += 1
        try:
            self._submit(ban, written)
            await written
        finally:
            self._promised -= 1

    def _submit(self, ban: Ban, command: asyncio.Future[None] | None) -> None:
        self._pending.append((ban, command))
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write_pending())

    async def _write_pending(self) -> None:
        """Write bans in groups: all that came while the last group was written."""
        while self._pending:
            group = self._pending[:_MAX_GROUP]
            del self._pending[:_MAX_GROUP]
            try:
                await self._in_thread(self._file.write, [ban for ban, _ in group])
            except BanError as error:
                self._fail(group, error)
                continue
            for ban, command in group:
                if command is not None:
                    self._add(ban)
                    if not command.done():
                        command.set_result(None)

    @staticmethod
    def _fail(group: list[_Pending], error: BanError) -> None:
        for _, command in group:
            if command is None:
                throttle.error("write", "bans: one is in memory only: %s", error)
            elif not command.done():
                command.set_exception(BanError(str(error)))

    async def _remove(self, bans: list[Ban]) -> None:
        await self._in_thread(self._file.remove, bans)
        del self._forgotten[: len(bans)]

    async def _in_thread(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, partial(call, *args, **kwargs))


def _in_force(bans: BanList, now: float) -> list[Ban]:
    return sorted((ban for ban in bans.copy() if ban.until > now), key=lambda ban: ban.until)
