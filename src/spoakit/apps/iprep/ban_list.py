"""Bans in memory: addresses and networks with a score of their own, for a time."""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from itertools import islice
from typing import Final, TypeAlias

from spoakit import IPAddress
from spoakit.exceptions import SpoakitError

IPNetwork: TypeAlias = IPv4Network | IPv6Network
# A network as the version, the length of the prefix and the number of its first address.
_Key: TypeAlias = tuple[int, int, int]
# A ban as its end, score and reason. The garbage collector leaves tuples of such values alone, and
# would stop the event loop for a quarter of a second to go through 100,000 objects.
_Entry: TypeAlias = tuple[float, int, str]

MAX_REASON: Final = 200
"""The longest reason, in characters."""

MAX_SCORE: Final = 100

MIN_KEPT: Final = 60.0
"""Shortest time, in seconds, that an ended ban is kept, so that all workers see its end."""

_MAX_KEPT: Final = 3600.0
# Bans that end within the same tick, a sixteenth of a second, are found together.
_TICKS: Final = 16
_PAST: Final = 0
# More seconds than these between two looks at the clock are not gone through tick by tick.
_MAX_STEP: Final = 60.0
# NTP may set the clock back by as much; a ban that ended in that time stays ended.
_MAX_BACK: Final = 1.0
# Bans that one call handles; the next call goes on.
_MAX_ENDS: Final = 500


class BanError(SpoakitError):
    """A ban that cannot be made or kept; the text says why."""


@dataclass(frozen=True, slots=True)
class Ban:
    """An address or network that has a score of its own for a time.

    Attributes:
        network: which addresses; a single one is a network of one.
        score: theirs, 0 to 100.
        until: when it ends, in seconds since the epoch; 0 for one that was ended by a command.
        reason: for the readers of the list, at most 200 characters.
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
    """Bans found by an address; of several networks with it in them, the smallest counts.

    Bans end by the wall clock, which an administrator or NTP may set. So one that has ended is
    kept apart for an hour, by a clock that cannot jump, and counts again if its time comes back.
    Of ended ones beyond `limit` the oldest are kept for a minute only.

    Args:
        limit: how many ended ones are kept for longer than a minute.
        monotonic: the clock that cannot jump, in seconds.
        on_ended: called for each ban when it is noticed that it has ended.
    """

    def __init__(
        self,
        limit: int = 100_000,
        monotonic: Callable[[], float] = time.monotonic,
        on_ended: Callable[[Ban], None] | None = None,
    ) -> None:
        self._on_ended = on_ended
        self._limit = limit
        self._monotonic = monotonic
        # By version and prefix length, the longest first; the networks by their first addresses.
        self._levels: dict[tuple[int, int], dict[int, _Entry]] = {}
        self._count = 0
        # When bans end: the networks by the tick, and the ticks that have come.
        self._ends: dict[int, set[_Key]] = {}
        self._due: deque[int] = deque()
        self._tick = 0
        self._latest = 0.0
        # Ended bans and when that was noticed, the oldest first.
        self._ended: dict[_Key, tuple[float, _Entry]] = {}

    def __len__(self) -> int:
        return self._count

    @property
    def ended(self) -> int:
        """Number of ended bans that are kept."""
        return len(self._ended)

    def copy(self) -> list[Ban]:
        """Return those that count and those that have ended; other threads may call this."""
        in_force = [
            _ban((*kind, number), entry)
            for kind, level in list(self._levels.items())
            for number, entry in list(level.items())
        ]
        return in_force + [_ban(key, entry) for key, (_, entry) in list(self._ended.items())]

    def add(self, ban: Ban) -> None:
        """Add a ban, or replace that of the same network."""
        self._add(_key_of(ban.network), (ban.until, ban.score, ban.reason))

    def get(self, network: IPNetwork) -> Ban | None:
        """Return the ban of just this network; it may have just ended."""
        key = _key_of(network)
        entry = self._levels.get(key[:2], {}).get(key[2])
        return None if entry is None else _ban(key, entry)

    def find(self, address: IPAddress, now: float) -> Ban | None:
        """Return the ban of an address at a time, in seconds since the epoch."""
        number, version, size = int(address), address.version, address.max_prefixlen
        for (level_version, prefix), level in self._levels.items():
            if level_version == version:
                first = number >> (size - prefix) << (size - prefix)
                entry = level.get(first)
                if entry is not None and entry[0] > now:
                    return _ban((version, prefix, first), entry)
        return None

    def follow_clock(self, now: float) -> list[Ban]:
        """Set apart bans that have ended, and return those that need no longer be kept.

        A call handles a few hundred at most, at the cost of each of these alone.

        Args:
            now: the wall clock, in seconds since the epoch.
        """
        if now < self._latest - _MAX_BACK:
            self._restore(now)
        self._latest = max(self._latest, now)
        self._find_due(int(now * _TICKS))
        self._set_ended_apart(now)
        return self._forget_ended()

    def _find_due(self, tick: int) -> None:
        """Note which ticks have come since the last time."""
        if tick - self._tick > _MAX_STEP * _TICKS:
            self._due = deque(sorted(each for each in self._ends if each <= tick))
        else:
            ticks = range(self._tick + 1, tick + 1)
            self._due.extend(each for each in ticks if each in self._ends)
            if _PAST in self._ends:
                self._due.appendleft(_PAST)
        self._tick = tick

    def _set_ended_apart(self, now: float) -> None:
        noticed = self._monotonic()
        left = _MAX_ENDS
        while self._due and left:
            keys = self._ends.get(self._due[0])
            if not keys:
                self._due.popleft()
                continue
            for key in tuple(islice(keys, left)):
                left -= 1
                entry = self._levels[key[:2]][key[2]]
                if entry[0] > now:  # the clock was set back meanwhile
                    self._add(key, entry)
                else:
                    self._remove(key)
                    self._ended[key] = noticed, entry
                    if self._on_ended is not None:
                        self._on_ended(_ban(key, entry))

    def _forget_ended(self) -> list[Ban]:
        now = self._monotonic()
        forgotten: list[_Key] = []
        for key, (noticed, _) in islice(self._ended.items(), _MAX_ENDS):
            crowded = len(self._ended) - len(forgotten) > self._limit
            if now - noticed < (MIN_KEPT if crowded else _MAX_KEPT):
                break
            forgotten.append(key)
        return [_ban(key, self._ended.pop(key)[1]) for key in forgotten]

    def _restore(self, now: float) -> None:
        """Have bans count again that had ended by a clock that has been set back."""
        self._latest = now
        self._tick = int(now * _TICKS)
        self._due = deque(each for each in self._ends if each <= self._tick)
        for key, (_, entry) in list(self._ended.items()):
            if entry[0] > now:
                self._add(key, entry)

    def _add(self, key: _Key, entry: _Entry) -> None:
        self._remove(key)
        self._ended.pop(key, None)
        level = self._levels.get(key[:2])
        if level is None:
            level = self._levels[key[:2]] = {}
            self._levels = dict(sorted(self._levels.items(), reverse=True))
        level[key[2]] = entry
        self._count += 1
        tick = _end_tick(entry)
        self._ends.setdefault(tick if tick > self._tick else _PAST, set()).add(key)

    def _remove(self, key: _Key) -> None:
        """Remove the ban of a network, if there is one."""
        level = self._levels.get(key[:2], {})
        entry = level.pop(key[2], None)
        if entry is None:
            return
        self._count -= 1
        if not level:
            del self._levels[key[:2]]
        tick = _end_tick(entry)
        if key not in self._ends.get(tick, ()):
            tick = _PAST
        keys = self._ends[tick]
        keys.remove(key)
        if not keys:
            del self._ends[tick]


def _key_of(network: IPNetwork) -> _Key:
    return network.version, network.prefixlen, int(network.network_address)


def _ban(key: _Key, entry: _Entry) -> Ban:
    version, prefix, number = key
    until, score, reason = entry
    network = IPv4Network if version == 4 else IPv6Network
    return Ban(network((number, prefix)), score, until, reason)


def _end_tick(entry: _Entry) -> int:
    """Return the first tick at which a ban has ended."""
    return int(entry[0] * _TICKS) + 1
