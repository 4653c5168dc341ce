"""A DNSBL as a source: asked by DNS (RFC 5782), and its answers kept."""

import asyncio
import logging
import time
from ipaddress import IPv4Address, IPv4Network
from typing import Final, NamedTuple

import aiodns
import pycares

from spoakit.agent.parameters import IPAddress
from spoakit.apps.iprep.addresses import address_of, number_of
from spoakit.apps.iprep.config.settings import SourceSettings
from spoakit.apps.iprep.metrics import (
    DNSBL_ANSWERS,
    DNSBL_FAILING,
    DNSBL_KEPT,
    DNSBL_LATE,
    DNSBL_LOOKUPS,
)
from spoakit.apps.iprep.scoring.policy import Listing, SourceResult, score_of
from spoakit.logs import Throttle
from spoakit.metrics.memory import WorkerMetrics

# What a resolver waits for one answer, and how often it asks; the deadline of who waits for the
# answer is another, shorter one.
_TIMEOUT: Final = 2.0
_TRIES: Final = 2
# After so many failures in a row nothing is asked for so many seconds.
_MAX_FAILURES: Final = 10
_PAUSE: Final = 1.0
_LISTED: Final = IPv4Network("127.0.0.0/8")
# 127.255.255.254 is a query by a public resolver, 127.255.255.255 are too many queries, and so on.
_ERRORS: Final = IPv4Network("127.255.255.0/24")
_NOT_LISTED: Final = (pycares.errno.ARES_ENOTFOUND, pycares.errno.ARES_ENODATA)

throttle = Throttle(logging.getLogger("spoakit.iprep"))


class _Kept(NamedTuple):
    say: SourceResult
    until: float


class Dnsbl:
    """Asks a DNSBL, each address once at a time, and keeps what it answers.

    Made within the event loop in which it is used. While the DNSBL does not answer, it is left
    alone for a second after each ten failures, so that nobody waits for it.

    Args:
        source: what the DNSBL is, with its `dnsbl` settings.
        row: the worker's counters.

    Attributes:
        error: why the last question had no usable answer; "" if it had.
        asked: how many questions were sent.
        failures: how many had no answer that can be used.
        refused: how many were not sent, since too many waited or the DNSBL failed.
        late: how often the deadline came before the answer.
    """

    def __init__(self, source: SourceSettings, row: WorkerMetrics) -> None:
        assert source.dnsbl is not None
        self._source = source
        self._row = row
        self._settings = source.dnsbl
        self._resolver = aiodns.DNSResolver(
            list(self._settings.nameservers) or None, timeout=_TIMEOUT, tries=_TRIES
        )
        self._kept: dict[tuple[int, int], _Kept] = {}
        self._pending: dict[tuple[int, int], asyncio.Task[SourceResult]] = {}
        self._failed = SourceResult(source, Listing.FAILED)
        self._absent = SourceResult(source, Listing.ABSENT)
        self._failures_in_a_row = 0
        self._paused_until = 0.0
        self.error = ""
        self.asked = self.failures = self.refused = self.late = 0
        self._zone = self._settings.zone
        row.on_publish(self._collect)

    def __len__(self) -> int:
        """Return the number of answers that are kept."""
        return len(self._kept)

    def known(self, address: IPAddress) -> SourceResult | None:
        """Return the answer that is kept of an address, if one is."""
        key = number_of(address)
        kept = self._kept.get(key)
        if kept is None:
            return None
        if kept.until > time.monotonic():
            self._row.add(DNSBL_LOOKUPS, 1, self._zone, "kept")
            return kept.say
        del self._kept[key]
        return None

    async def ask(self, address: IPAddress) -> SourceResult:
        """Return what the DNSBL says of an address, within the deadline.

        An answer that comes later is kept for the next time.
        """
        kept = self.known(address)
        if kept is not None:
            return kept
        key = number_of(address)
        task = self._pending.get(key)
        if task is None:
            if len(self._pending) >= self._settings.max_pending or self._is_paused():
                self.refused += 1
                self._row.add(DNSBL_LOOKUPS, 1, self._zone, "refused")
                return self._failed
            self._row.add(DNSBL_LOOKUPS, 1, self._zone, "asked")
            task = self._pending[key] = asyncio.create_task(self._answer(key))
        else:
            self._row.add(DNSBL_LOOKUPS, 1, self._zone, "joined")
        done, _ = await asyncio.wait((task,), timeout=self._settings.deadline)
        if task.cancelled():
            return self._failed  # a reload has removed it
        if done:
            return task.result()
        self.late += 1
        self._row.add(DNSBL_LATE, 1, self._zone)
        return self._failed

    async def close(self) -> None:
        """Give up what is asked."""
        self._row.forget(self._collect)
        self._row.set(DNSBL_KEPT, 0, self._zone)
        self._row.set(DNSBL_FAILING, 0, self._zone)
        tasks = tuple(self._pending.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._resolver.close()

    def _collect(self) -> None:
        self._row.set(DNSBL_KEPT, len(self._kept), self._zone)
        self._row.set(DNSBL_FAILING, bool(self.error), self._zone)

    def _is_paused(self) -> bool:
        return time.monotonic() < self._paused_until

    async def _answer(self, key: tuple[int, int]) -> SourceResult:
        self.asked += 1
        try:
            name = f"{reversed_name(*key)}.{self._settings.zone}"
            result = await self._resolver.query_dns(name, "A")
        except aiodns.error.DNSError as error:
            if error.args[0] in _NOT_LISTED:
                return self._keep(key, self._absent, 0)
            return self._fail(str(error.args[-1]))
        else:
            return self._read(key, result)
        finally:
            del self._pending[key]

    def _read(self, key: tuple[int, int], result: pycares.DNSResult) -> SourceResult:
        # CNAMEs may be among them, and are none.
        found = {
            IPv4Address(each.data.addr): each.ttl
            for each in result.answer
            if isinstance(each.data, pycares.ARecordData)
        }
        for code in found:
            if code in _ERRORS or code not in _LISTED:
                return self._fail(f"it answered {code}, which is an error")
        if not found:
            return self._keep(key, self._absent, 0)
        says = (SourceResult(self._source, Listing.LISTED, None, str(code)) for code in found)
        return self._keep(key, min(says, key=score_of), min(found.values()))

    def _keep(self, key: tuple[int, int], say: SourceResult, ttl: float) -> SourceResult:
        self._failures_in_a_row = 0
        self._row.add(DNSBL_ANSWERS, 1, self._zone, say.state.value)
        self.error = ""
        settings = self._settings
        if len(self._kept) >= settings.cache_size:
            del self._kept[next(iter(self._kept))]  # the oldest
        lifetime = min(max(ttl, settings.min_ttl), settings.max_ttl)
        self._kept[key] = _Kept(say, time.monotonic() + lifetime)
        return say

    def _fail(self, reason: str) -> SourceResult:
        self.failures += 1
        self._row.add(DNSBL_ANSWERS, 1, self._zone, Listing.FAILED.value)
        self.error = reason
        self._failures_in_a_row += 1
        if self._failures_in_a_row >= _MAX_FAILURES:
            self._failures_in_a_row = 0
            self._paused_until = time.monotonic() + _PAUSE
        throttle.warning(self._source.name, "source %s: %s", self._source.name, reason)
        return self._failed


def reversed_name(version: int, number: int) -> str:
    """Return what an address, 4 or 6 and its number, is called in a zone (RFC 5782, 2)."""
    pointer = address_of(version, number).reverse_pointer
    return pointer.removesuffix(".in-addr.arpa").removesuffix(".ip6.arpa")
