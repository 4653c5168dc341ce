"""Reputation of addresses in a worker: the snapshot, its databases and DNSBLs, and the bans."""

import asyncio
import logging
from collections.abc import Iterable, Sequence
from contextlib import suppress
from ipaddress import IPv6Address
from pathlib import Path
from typing import Final, TypeAlias

from spoakit import Actions, IPAddress
from spoakit.apps.iprep.addresses import unmapped
from spoakit.apps.iprep.bans import Ban, BanError, BanStore, IPNetwork
from spoakit.apps.iprep.config.sources import Provides, SourceSettings
from spoakit.apps.iprep.exceptions import SourceError
from spoakit.apps.iprep.scoring.embedded import EmbeddedAddresses, severity
from spoakit.apps.iprep.scoring.forwarded import Trusted
from spoakit.apps.iprep.scoring.policy import Listing, Policy, Rule, SourceResult, Verdict
from spoakit.apps.iprep.snapshot.manifest import (
    ALLOWED,
    PRIVATE,
    Snapshot,
    manifest_of,
    read_snapshot,
)
from spoakit.apps.iprep.sources.dnsbl import Dnsbl
from spoakit.apps.iprep.sources.entries import Value
from spoakit.apps.iprep.sources.lists import MAX_ASN
from spoakit.apps.iprep.sources.mmdb import Database
from spoakit.apps.iprep.table._table_cy import Table, TableError
from spoakit.logs import Throttle
from spoakit.metrics import WorkerMetrics
from spoakit.server import FileIdentity, identity_of

logger = logging.getLogger("spoakit.iprep")
throttle = Throttle(logger)

# A table's combination, or that and the values of all databases.
Key: TypeAlias = int | tuple[int | str | None, ...]
# One result of each DNSBL.
Answers: TypeAlias = tuple[SourceResult, ...]

_LOOK_INTERVAL: Final = 0.1
_RETRY_INTERVAL: Final = 1.0
# Seconds that a snapshot waits for the first self-tests of its DNSBLs. Their questions would wait.
_TEST_PATIENCE: Final = 1.0
# Bans that end so close to each other, in seconds, are one: HAProxy may ask for one a request.
_SAME_BAN: Final = 1.0
# Findings that are kept. With databases there can be as many as there are combinations of values.
_MAX_KEPT: Final = 100_000


class LookupResult:
    """What is known of an address.

    Attributes:
        verdict: its score and how it came about.
        asn: the number of its autonomous system; None if that is not known.
        country: its country; "" if that is not known.
        ban: the ban it is under.
        is_decided: whether no DNSBL that was not asked can change the score.
        answer: the actions that come of it, once there are some.
        tally: counts its answers, see `metrics.AnswerTally`.
    """

    __slots__ = ("answer", "asn", "ban", "country", "is_decided", "tally", "verdict")

    def __init__(
        self,
        verdict: Verdict,
        asn: int | None,
        country: str,
        ban: Ban | None = None,
        *,
        is_decided: bool = True,
    ) -> None:
        self.verdict = verdict
        self.asn = asn
        self.country = country
        self.ban = ban
        self.is_decided = is_decided
        self.answer: Actions = None
        self.tally: list[int] = []


class OpenSnapshot:
    """A snapshot in use.

    Args:
        folder: where it is.
        snapshot: its description.
        dnsbls: those that are asked already, by their settings; new ones are added.

    Raises:
        TableError: the table cannot be used; another snapshot may have taken its place.
        SourceError: so with a database.
    """

    def __init__(
        self, folder: Path, snapshot: Snapshot, dnsbls: dict[SourceSettings, Dnsbl]
    ) -> None:
        self.description = snapshot
        self._table = Table.open(folder / snapshot.table)
        self._lookup = self._table.lookup
        forwarded = snapshot.settings.forwarded
        self.trusted = Trusted(forwarded.trusted, forwarded.header)
        self.embedded = EmbeddedAddresses(snapshot.settings.policy.nat64)
        self._policy = Policy(snapshot.settings.policy)
        self._findings: dict[Key, LookupResult] = {}
        sources = snapshot.settings.sources
        self._databases = {
            number: Database(source, folder / report.file)
            for number, (source, report) in enumerate(zip(sources, snapshot.reports, strict=True))
            if report.file
        }
        self._dnsbls = {
            number: dnsbls[source]
            for number, source in enumerate(sources)
            if source.dnsbl is not None
        }
        self._not_asked: Answers = tuple(dnsbl.not_asked for dnsbl in self._dnsbls.values())
        self._answered: dict[tuple[Key, Answers], LookupResult] = {}
        # What sources say of any address that nothing else is known of.
        self._results = tuple(
            SourceResult(source, Listing.ABSENT if report.loaded else Listing.FAILED)
            for source, report in zip(sources, snapshot.reports, strict=True)
        )
        self._providers = {
            source.database.provides: place
            for place, source in reversed(
                [(place, sources[number]) for place, number in enumerate(self._databases)]
            )
            if source.database is not None and source.database.provides is not None
        }
        self._networks: dict[int, list[tuple[int, int]]] = {}
        for number, report in enumerate(snapshot.reports):
            for asn, value in report.asns:
                self._networks.setdefault(asn, []).append((number, value))

    def find(self, address: IPAddress) -> LookupResult:
        """Return what is known of an address without asking anybody."""
        key = self._key(address) if self._databases else self._lookup(address)
        return self._findings.get(key) or self._keep(key)

    async def ask(self, address: IPAddress) -> LookupResult:
        """Return what is known of an address and what DNSBLs say of it, within their deadlines.

        A DNSBL is not waited for if its answer is known, or cannot change the score.
        """
        key = self._key(address)
        dnsbls = tuple(self._dnsbls.values())
        answers = [dnsbl.known(address) or dnsbl.not_asked for dnsbl in dnsbls]
        finding = self._find_answered(key, tuple(answers))
        if finding.is_decided:
            return finding
        pending = [n for n, answer in enumerate(answers) if answer.state is Listing.NOT_ASKED]
        asked = await asyncio.gather(*(dnsbls[n].ask(address) for n in pending))
        for n, answer in zip(pending, asked, strict=True):
            answers[n] = answer
        return self._find_answered(key, tuple(answers))

    def close(self) -> None:
        """Close the databases."""
        for database in self._databases.values():
            database.close()

    def _key(self, address: IPAddress) -> Key:
        combination = self._lookup(address)
        return (combination, *self._values(address)) if self._databases else combination

    def _keep(self, key: Key) -> LookupResult:
        if len(self._findings) >= _MAX_KEPT:
            self._findings.clear()
        finding = self._findings[key] = self._judge(key, self._not_asked)
        return finding

    def _find_answered(self, key: Key, answers: Answers) -> LookupResult:
        finding = self._answered.get((key, answers))
        if finding is None:
            if len(self._answered) >= _MAX_KEPT:
                self._answered.clear()
            finding = self._answered[key, answers] = self._judge(key, answers)
        return finding

    def _values(self, address: IPAddress) -> list[str | None]:
        """Return the value that each database has of an address, None of one that is damaged."""
        values: list[str | None] = []
        for number, database in self._databases.items():
            try:
                values.append(database.value(address))
            except SourceError as error:
                name = self.description.settings.sources[number].name
                throttle.error(("database", name), "source %s: %s", name, error)
                values.append(None)
        return values

    def _judge(self, key: Key, answers: Answers) -> LookupResult:
        """Return the finding of what table, databases and DNSBLs have."""
        combination, values = (key, ()) if isinstance(key, int) else (key[0], key[1:])
        assert isinstance(combination, int)
        asn, country = self._provided("asn", values), self._provided("country", values)
        number = int(asn) if asn.isdecimal() and int(asn) <= MAX_ASN else None
        results = list(self._results)
        for source, (database, value) in zip(
            self._databases, zip(self._databases.values(), values, strict=True), strict=True
        ):
            assert not isinstance(value, int)
            results[source] = (
                SourceResult(results[source].source, Listing.FAILED)
                if value is None
                else database.say(value)
            )
        for source, answer in zip(self._dnsbls, answers, strict=True):
            results[source] = answer
        if number is not None:
            for source, place in self._networks.get(number, ()):
                results[source] = self._listed(source, place)
        marks = dict(self._table.combination(combination))
        allowed = marks.pop(ALLOWED, None) is not None
        private = marks.pop(PRIVATE, None) is not None
        for source, place in marks.items():
            results[source] = self._listed(source, place)
        verdict = self._policy.judge(results, allowed=allowed, private=private)
        pending = [
            dnsbl.worst
            for dnsbl, answer in zip(self._dnsbls.values(), answers, strict=True)
            if answer.state is Listing.NOT_ASKED
        ]
        return LookupResult(
            verdict, number, country, is_decided=self._policy.is_decided(verdict, pending)
        )

    def _provided(self, what: Provides, values: Sequence[int | str | None]) -> str:
        place = self._providers.get(what)
        return "" if place is None else str(values[place] or "")

    def _listed(self, source: int, place: int) -> SourceResult:
        values = self.description.reports[source].values
        value = values[place] if values else Value()
        return SourceResult(
            self._results[source].source, Listing.LISTED, value.score, value.category
        )


class Reputation:
    """Finds what is known of addresses; one for a worker, made within its event loop.

    Args:
        folder: where snapshots appear.
        bans: those of addresses; None without.
        row: the worker's counters.
    """

    def __init__(self, folder: Path, bans: BanStore | None, row: WorkerMetrics) -> None:
        self._row = row
        self._folder = folder
        self._bans = bans
        self._seen: FileIdentity | None = None
        self._complaint = ""
        self._snapshot: OpenSnapshot | None = None
        self._dnsbls: dict[SourceSettings, Dnsbl] = {}
        self._ready = asyncio.Event()

    @property
    def is_ready(self) -> bool:
        """Whether there is a snapshot in use."""
        return self._snapshot is not None

    @property
    def snapshot(self) -> OpenSnapshot:
        """The snapshot in use; there is one once `wait` has returned."""
        assert self._snapshot is not None
        return self._snapshot

    @property
    def dnsbls(self) -> dict[SourceSettings, Dnsbl]:
        """The DNSBLs that are asked."""
        return self._dnsbls

    def find(self, address: IPAddress) -> LookupResult:
        """Return what is known of an address without asking anybody."""
        assert self._snapshot is not None
        if isinstance(address, IPv6Address):
            ipv4 = self._snapshot.embedded.ipv4_of(address)
            if ipv4 is not None:
                return min(self._find(ipv4), self._find(address), key=_severity)
        # As `_find`: a call less is 4 % of an answer.
        finding = self._snapshot.find(address)
        return finding if self._bans is None else self._with_ban(address, finding)

    async def ask(self, address: IPAddress) -> LookupResult:
        """Return what is known of an address and what DNSBLs say of it, within their deadlines.

        Does not wait if the score is decided, by a ban for instance.
        """
        ipv4 = self.snapshot.embedded.ipv4_of(address) if isinstance(address, IPv6Address) else None
        if ipv4 is None:
            return await self._ask(address)
        findings = self._find(ipv4), self._find(address)
        if not all(finding.is_decided for finding in findings):
            findings = await asyncio.gather(self._ask(ipv4), self._ask(address))
        return min(findings, key=_severity)

    def client_of(self, source: IPAddress, lines: Sequence[str]) -> IPAddress:
        """Return the client behind trusted proxies: see `Trusted.client_of`."""
        return self.snapshot.trusted.client_of(unmapped(source), lines)

    def network_of(self, client: IPAddress, ipv6_prefix: int) -> IPNetwork:
        """Return the network to ban for a client.

        Raises:
            BanError: it is a trusted proxy; a ban would lock out everybody behind it.
        """
        snapshot = self.snapshot
        if client in snapshot.trusted:
            raise BanError("it is a trusted proxy, whose clients would all be banned")
        return snapshot.embedded.network_of(client, ipv6_prefix)

    def ban_soon(self, ban: Ban) -> bool:
        """Make a ban that HAProxy asks for, unless one is as good; return whether it was made.

        Raises:
            BanError: it cannot be made.
        """
        assert self._bans is not None
        known = self._bans.find(ban.network.network_address)
        if known is None or known.score > ban.score or known.until < ban.until - _SAME_BAN:
            self._bans.ban_soon(ban)
            return True
        return False

    async def wait(self) -> None:
        """Wait for the first snapshot."""
        await self._ready.wait()

    async def follow(self) -> None:
        """Use each new snapshot, at most 100 ms after it appeared; until cancelled."""
        while True:
            try:
                await self._look()
                await asyncio.sleep(_LOOK_INTERVAL)
            except (OSError, TableError, SourceError) as error:
                # Perhaps yet another snapshot has taken its place in the meantime. The updater
                # makes a new one of what is damaged.
                self._complain(str(error))
                await asyncio.sleep(_RETRY_INTERVAL)
            except Exception:
                logger.exception("a snapshot cannot be used")
                await asyncio.sleep(_RETRY_INTERVAL)

    async def aclose(self) -> None:
        """Close what is open."""
        if self._snapshot is not None:
            self._snapshot.close()
        await _close(self._dnsbls.values())

    def _find(self, address: IPAddress) -> LookupResult:
        """Return what is known of just this address without asking anybody."""
        assert self._snapshot is not None
        finding = self._snapshot.find(address)
        return finding if self._bans is None else self._with_ban(address, finding)

    async def _ask(self, address: IPAddress) -> LookupResult:
        """Return what is known of just this address, and what DNSBLs say of it."""
        finding = self._find(address)
        if finding.is_decided:
            return finding
        finding = await self.snapshot.ask(address)
        return finding if self._bans is None else self._with_ban(address, finding)

    def _with_ban(self, address: IPAddress, finding: LookupResult) -> LookupResult:
        """Return what a ban makes of a finding, if there is one and the address is not allowed."""
        assert self._bans is not None
        if not self._bans.bans:
            return finding
        ban = self._bans.find(unmapped(address))
        if ban is None or finding.verdict.rule is Rule.ALLOW:
            return finding
        verdict = Verdict(ban.score, Rule.BAN, results=finding.verdict.results)
        return LookupResult(verdict, finding.asn, finding.country, ban)

    def _complain(self, reason: str) -> None:
        """Log why a snapshot cannot be used, once."""
        if reason != self._complaint:
            logger.warning("a snapshot cannot be used: %s", reason)
        self._complaint = reason

    async def _look(self) -> None:
        seen = identity_of(manifest_of(self._folder))
        if seen is None or seen == self._seen:
            return
        description = await asyncio.to_thread(read_snapshot, self._folder)
        if description is not None:
            await self._use(description)
            self._seen = seen
            self._complaint = ""

    async def _use(self, description: Snapshot) -> None:
        dnsbls = self._dnsbls
        wanted = {source for source in description.settings.sources if source.dnsbl is not None}
        new = {source: dnsbls.get(source) or Dnsbl(source, self._row) for source in wanted}
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(_TEST_PATIENCE):
                    await asyncio.gather(*(dnsbl.wait_for_test() for dnsbl in new.values()))
            snapshot = await asyncio.to_thread(OpenSnapshot, self._folder, description, new)
        except BaseException:
            await _close(new[source] for source in new.keys() - dnsbls.keys())
            raise
        before, self._snapshot, self._dnsbls = self._snapshot, snapshot, new
        self._ready.set()
        logger.debug("snapshot %d is in use", description.generation)
        if before is not None:
            before.close()
        await _close(dnsbls[source] for source in dnsbls.keys() - wanted)


def _severity(finding: LookupResult) -> tuple[bool, bool, int]:
    return severity(finding.verdict)


async def _close(dnsbls: Iterable[Dnsbl]) -> None:
    await asyncio.gather(*(dnsbl.close() for dnsbl in dnsbls), return_exceptions=True)
