"""A DNSBL as a source: asked by DNS (RFC 5782), and its answers kept."""

import asyncio
import logging
import time
from ipaddress import IPv4Address, ip_address
from typing import Final, NamedTuple

import aiodns
import pycares

from spoakit import IPAddress
from spoakit.apps.iprep.addresses import address_of, number_of
from spoakit.apps.iprep.config.sources import SourceSettings
from spoakit.apps.iprep.config.units import ERROR_CODES, NEVER_LISTED
from spoakit.apps.iprep.exceptions import SourceError
from spoakit.apps.iprep.metrics import (
    DNSBL_ANSWERS,
    DNSBL_FAILING,
    DNSBL_KEPT,
    DNSBL_LATE,
    DNSBL_LOOKUPS,
    DNSBL_OUT,
    DNSBL_TESTS,
)
from spoakit.apps.iprep.scoring.policy import Listing, SourceResult
from spoakit.apps.iprep.sources.dnsbl_codes import CodeReader, is_listing
from spoakit.logs import Throttle
from spoakit.metrics import WorkerMetrics

# What a resolver waits for one answer, and how often it asks; the deadline of who waits for the
# answer is another, shorter one.
_TIMEOUT: Final = 2.0
_TRIES: Final = 2
# After so many failures in a row nothing is asked for so many seconds.
_MAX_FAILURES: Final = 10
_PAUSE: Final = 1.0
# Seconds between self-tests, and until the next one after one that was not passed.
_TEST_INTERVAL: Final = 3600.0
_RETEST_INTERVAL: Final = 60.0
_NOT_LISTED: Final = (pycares.errno.ARES_ENOTFOUND, pycares.errno.ARES_ENODATA)

logger = logging.getLogger("spoakit.iprep")
throttle = Throttle(logger)


class _Kept(NamedTuple):
    result: SourceResult
    until: float


class Dnsbl:
    """Asks a DNSBL, each address once at a time, and keeps what it answers.

    Made within the event loop in which it is used. While the DNSBL does not answer, it is left
    alone for a second after each ten failures, so that nobody waits for it.

    The zone is tested before the first question is sent, and then each hour: it must list one
    address and must not list another one (RFC 5782, 5). One that answers otherwise, as a zone that
    was given up and now lists everybody, is out until it passes: it lists nobody and is not asked.
    Only a clear answer counts; without one, the zone is what it was before.

    Args:
        source: what the DNSBL is, with its `dnsbl` settings.
        row: the worker's counters.

    Attributes:
        fault: why the zone is out; "" if it is not.
        not_asked: the result of the DNSBL for an address that it was not asked about.
        worst: the result with the lowest score that it can have.
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
        self._codes = CodeReader(source)
        self._failed = SourceResult(source, Listing.FAILED)
        self._out = SourceResult(source, Listing.OUT)
        self.not_asked = SourceResult(source, Listing.NOT_ASKED)
        self.worst = self._codes.worst
        self._failures_in_a_row = 0
        self._paused_until = 0.0
        self._last_error = ""
        self.fault = ""
        self.asked = self.failures = self.refused = self.late = 0
        self._zone = self._settings.zone
        row.on_publish(self._collect)
        self._tested = asyncio.Event()
        self._tester: asyncio.Task[None] | None = None
        if self._settings.test is None:
            self._tested.set()
        else:
            self._tester = asyncio.create_task(self._keep_testing(self._settings.test))

    def __len__(self) -> int:
        """Return the number of answers that are kept."""
        return len(self._kept)

    @property
    def error(self) -> str:
        """The reason why the zone is out, or the last question had no usable answer; or ""."""
        return self.fault or self._last_error

    def known(self, address: IPAddress) -> SourceResult | None:
        """Return what is known of an address without asking, None for nothing."""
        if self.fault:
            self._row.add(DNSBL_LOOKUPS, 1, self._zone, "out")
            return self._out
        key = number_of(address)
        kept = self._kept.get(key)
        if kept is None:
            return None
        if kept.until > time.monotonic():
            self._row.add(DNSBL_LOOKUPS, 1, self._zone, "kept")
            return kept.result
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

    async def wait_for_test(self) -> None:
        """Wait for the end of the first self-test, whatever its result."""
        await self._tested.wait()

    async def close(self) -> None:
        """Give up what is asked."""
        self._row.forget(self._collect)
        self._row.set(DNSBL_KEPT, 0, self._zone)
        self._row.set(DNSBL_FAILING, 0, self._zone)
        self._row.set(DNSBL_OUT, 0, self._zone)
        tasks: list[asyncio.Task[SourceResult] | asyncio.Task[None]] = [*self._pending.values()]
        if self._tester is not None:
            tasks.append(self._tester)
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
        try:
            await self._tested.wait()
            if self.fault:
                return self._out
            self.asked += 1
            codes = await self._query(*key)
            result = self._codes.read(codes)
        except SourceError as error:
            return self._fail(str(error))
        finally:
            del self._pending[key]
        if self.fault:  # which has been found meanwhile
            return self._out
        return self._keep(key, result, min(codes.values(), default=0))

    async def _query(self, version: int, number: int) -> dict[IPv4Address, int]:
        """Ask the DNSBL; return the addresses in its answer with their times to live.

        Raises:
            SourceError: it has not answered.
        """
        name = f"{reversed_name(version, number)}.{self._settings.zone}"
        if self._settings.key is not None:
            name = f"{self._settings.key}.{name}"
        try:
            result = await self._resolver.query_dns(name, "A")
        except aiodns.error.DNSError as error:
            if error.args[0] in _NOT_LISTED:
                return {}
            raise SourceError(str(error.args[-1])) from None
        # CNAMEs may be among the records.
        return {
            IPv4Address(each.data.addr): each.ttl
            for each in result.answer
            if isinstance(each.data, pycares.ARecordData)
        }

    async def _keep_testing(self, listed: str) -> None:
        """Test the zone until cancelled."""
        while True:
            passed = False
            try:
                passed = await self._test(listed)
            except Exception:
                logger.exception("source %s: the self-test cannot be made", self._source.name)
            self._tested.set()
            await asyncio.sleep(_TEST_INTERVAL if passed else _RETEST_INTERVAL)

    async def _test(self, listed: str) -> bool:
        """Test the zone once; return whether it passed.

        Args:
            listed: the address that it must list. Its kind decides which it must not.
        """
        version = 6 if ":" in listed else 4
        unlisted = f"::ffff:{NEVER_LISTED}" if version == 6 else str(NEVER_LISTED)
        has_listed, has_unlisted = await asyncio.gather(
            self._lists(version, int(ip_address(listed))),
            self._lists(version, int(ip_address(unlisted))),
        )
        fault = ""
        if has_unlisted:
            fault = f"it lists {unlisted}, which no DNSBL may (RFC 5782, 5)"
        elif has_listed is False:
            fault = (
                f"it does not list {listed}; if the zone is right, set 'test' to an address that "
                "it always lists, or to false"
            )
        is_clear = fault != "" or None not in (has_listed, has_unlisted)
        if is_clear:
            self._set_fault(fault)
        result = "failed" if fault else "passed" if is_clear else "unclear"
        self._row.add(DNSBL_TESTS, 1, self._zone, result)
        return result == "passed"

    async def _lists(self, version: int, number: int) -> bool | None:
        """Return whether the zone lists an address, None without a clear answer."""
        try:
            codes = await self._query(version, number)
        except SourceError:
            return None
        if any(code in ERROR_CODES for code in codes):  # it refuses whatever it is asked now
            return None
        return any(map(is_listing, codes))

    def _set_fault(self, fault: str) -> None:
        name = self._source.name
        if fault and not self.fault:
            logger.error(
                "source %s: it fails its self-test and lists nobody until it passes: %s",
                name,
                fault,
            )
            self._kept.clear()
        elif self.fault and not fault:
            logger.warning("source %s: it passes its self-test again and is in use", name)
        self.fault = fault
        self._row.set(DNSBL_OUT, bool(fault), self._zone)

    def _keep(self, key: tuple[int, int], result: SourceResult, ttl: float) -> SourceResult:
        self._failures_in_a_row = 0
        self._row.add(DNSBL_ANSWERS, 1, self._zone, result.state.value)
        self._last_error = ""
        settings = self._settings
        if len(self._kept) >= settings.cache_size:
            del self._kept[next(iter(self._kept))]  # the oldest
        lifetime = min(max(ttl, settings.min_ttl), settings.max_ttl)
        self._kept[key] = _Kept(result, time.monotonic() + lifetime)
        return result

    def _fail(self, reason: str) -> SourceResult:
        self.failures += 1
        self._row.add(DNSBL_ANSWERS, 1, self._zone, Listing.FAILED.value)
        self._last_error = reason
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
