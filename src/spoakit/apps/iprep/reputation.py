"""What a worker knows of addresses: the edition in use, its databases and DNSBLs, and the bans."""

import asyncio
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final, TypeAlias

from spoakit.agent.handlers import Actions
from spoakit.agent.parameters import IPAddress
from spoakit.apps.iprep._table_cy import Table, TableError
from spoakit.apps.iprep.addresses import unmapped
from spoakit.apps.iprep.bans import Ban, BanStore
from spoakit.apps.iprep.dnsbl import Dnsbl
from spoakit.apps.iprep.edition import ALLOWED, PRIVATE, Edition, description_of, read_edition
from spoakit.apps.iprep.entries import Value
from spoakit.apps.iprep.exceptions import SourceError
from spoakit.apps.iprep.forwarded import Trusted
from spoakit.apps.iprep.lists import MAX_ASN
from spoakit.apps.iprep.mmdb import Database
from spoakit.apps.iprep.policy import Policy, Rule, Say, State, Verdict
from spoakit.apps.iprep.settings import Provides, SourceSettings
from spoakit.logs import Throttle
from spoakit.metrics.memory import WorkerMetrics
from spoakit.server.watch import FileIdentity, identity_of

logger = logging.getLogger("spoakit.iprep")
throttle = Throttle(logger)

# A table's combination, or that and the values of all databases.
Key: TypeAlias = int | tuple[int | str | None, ...]

_LOOK_INTERVAL: Final = 0.1
_RETRY_INTERVAL: Final = 1.0
# Bans that end so close to each other, in seconds, are one: HAProxy may ask for one a request.
_SAME_BAN: Final = 1.0
# Findings that are kept. With databases there can be as many as there are combinations of values.
_MAX_KEPT: Final = 100_000


class Finding:
    """What is known of an address.

    Attributes:
        verdict: its score and how it came about.
        asn: the number of its autonomous system; None if that is not known.
        country: its country; "" if that is not known.
        ban: the ban it is under.
        answer: the actions that come of it, once there are some.
        tally: counts its answers, see `metrics.AnswerTally`.
    """

    __slots__ = ("answer", "asn", "ban", "country", "tally", "verdict")

    def __init__(
        self, verdict: Verdict, asn: int | None, country: str, ban: Ban | None = None
    ) -> None:
        self.verdict = verdict
        self.asn = asn
        self.country = country
        self.ban = ban
        self.answer: Actions = None
        self.tally: list[int] = []


class OpenEdition:
    """An edition in use.

    Args:
        folder: where it is.
        edition: its description.
        dnsbls: those that are asked already, by their settings; new ones are added.

    Raises:
        TableError: the table cannot be used; another edition may have taken its place.
        SourceError: so with a database.
    """

    def __init__(self, folder: Path, edition: Edition, dnsbls: dict[SourceSettings, Dnsbl]) -> None:
        self.description = edition
        self._table = Table.open(folder / edition.table)
        self._lookup = self._table.lookup
        self.trusted = Trusted(edition.settings.forwarded.trusted)
        self._policy = Policy(edition.settings.policy)
        self._findings: dict[Key, Finding] = {}
        sources = edition.settings.sources
        self._databases = {
            number: Database(source, folder / report.file)
            for number, (source, report) in enumerate(zip(sources, edition.reports, strict=True))
            if report.file
        }
        self._dnsbls = {
            number: dnsbls[source]
            for number, source in enumerate(sources)
            if source.dnsbl is not None
        }
        # What sources say of any address that nothing else is known of.
        self._says = tuple(
            Say(source, State.ABSENT if report.loaded else State.FAILED)
            for source, report in zip(sources, edition.reports, strict=True)
        )
        self._providers = {
            source.database.provides: place
            for place, source in reversed(
                [(place, sources[number]) for place, number in enumerate(self._databases)]
            )
            if source.database is not None and source.database.provides is not None
        }
        self._networks: dict[int, list[tuple[int, int]]] = {}
        for number, report in enumerate(edition.reports):
            for asn, value in report.asns:
                self._networks.setdefault(asn, []).append((number, value))

    @property
    def asks(self) -> bool:
        """Whether there are DNSBLs."""
        return bool(self._dnsbls)

    def find(self, address: IPAddress) -> Finding:
        """Return what is known of an address without asking anybody."""
        key = self._key(address) if self._databases else self._lookup(address)
        return self._findings.get(key) or self._keep(key)

    async def ask(self, address: IPAddress) -> Finding:
        """Return what is known of an address and what DNSBLs say of it, within their deadlines."""
        key = self._key(address)
        finding = self._findings.get(key) or self._keep(key)
        if finding.verdict.rule in (Rule.ALLOW, Rule.PRIVATE):
            return finding
        answers = await asyncio.gather(*(dnsbl.ask(address) for dnsbl in self._dnsbls.values()))
        if all(say.state is State.ABSENT for say in answers):
            return finding
        return self._judge(key, dict(zip(self._dnsbls, answers, strict=True)))

    def close(self) -> None:
        """Close the databases."""
        for database in self._databases.values():
            database.close()

    def _key(self, address: IPAddress) -> Key:
        combination = self._lookup(address)
        return (combination, *self._values(address)) if self._databases else combination

    def _keep(self, key: Key) -> Finding:
        if len(self._findings) >= _MAX_KEPT:
            self._findings.clear()
        finding = self._findings[key] = self._judge(key, {})
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

    def _judge(self, key: Key, answers: dict[int, Say]) -> Finding:
        """Return the finding of what table, databases and DNSBLs have."""
        combination, values = (key, ()) if isinstance(key, int) else (key[0], key[1:])
        assert isinstance(combination, int)
        asn, country = self._provided("asn", values), self._provided("country", values)
        number = int(asn) if asn.isdecimal() and int(asn) <= MAX_ASN else None
        says = list(self._says)
        for source, (database, value) in zip(
            self._databases, zip(self._databases.values(), values, strict=True), strict=True
        ):
            assert not isinstance(value, int)
            says[source] = (
                Say(says[source].source, State.FAILED) if value is None else database.say(value)
            )
        for source, say in answers.items():
            says[source] = say
        if number is not None:
            for source, place in self._networks.get(number, ()):
                says[source] = self._listed(source, place)
        marks = dict(self._table.combination(combination))
        allowed = marks.pop(ALLOWED, None) is not None
        private = marks.pop(PRIVATE, None) is not None
        for source, place in marks.items():
            says[source] = self._listed(source, place)
        verdict = self._policy.judge(says, allowed=allowed, private=private)
        return Finding(verdict, number, country)

    def _provided(self, what: Provides, values: Sequence[int | str | None]) -> str:
        place = self._providers.get(what)
        return "" if place is None else str(values[place] or "")

    def _listed(self, source: int, place: int) -> Say:
        values = self.description.reports[source].values
        value = values[place] if values else Value()
        return Say(self._says[source].source, State.LISTED, value.score, value.category)


class Reputation:
    """Finds what is known of addresses; one for a worker, made within its event loop.

    Args:
        folder: where editions appear.
        bans: those of addresses; None without.
        row: the worker's counters.
    """

    def __init__(self, folder: Path, bans: BanStore | None, row: WorkerMetrics) -> None:
        self._row = row
        self._folder = folder
        self._bans = bans
        self._seen: FileIdentity | None = None
        self._complaint = ""
        self._edition: OpenEdition | None = None
        self._dnsbls: dict[SourceSettings, Dnsbl] = {}
        self._ready = asyncio.Event()

    @property
    def is_ready(self) -> bool:
        """Whether there is an edition in use."""
        return self._edition is not None

    @property
    def edition(self) -> OpenEdition:
        """The edition in use; there is one once `wait` has returned."""
        assert self._edition is not None
        return self._edition

    @property
    def dnsbls(self) -> dict[SourceSettings, Dnsbl]:
        """The DNSBLs that are asked."""
        return self._dnsbls

    def find(self, address: IPAddress) -> Finding:
        """Return what is known of an address without asking anybody."""
        assert self._edition is not None
        finding = self._edition.find(address)
        return finding if self._bans is None else self._with_ban(address, finding)

    async def ask(self, address: IPAddress) -> Finding:
        """Return what is known of an address and what DNSBLs say of it, within their deadlines."""
        finding = await self.edition.ask(address)
        return finding if self._bans is None else self._with_ban(address, finding)

    def client_of(self, source: IPAddress, header: str) -> IPAddress:
        """Return who is behind a proxy, if it is trusted: see `Trusted.client_of`."""
        return self.edition.trusted.client_of(unmapped(source), header)

    def ban(self, ban: Ban) -> None:
        """Make a ban, unless one is in force that is as good.

        Raises:
            BanError: it cannot be kept.
        """
        assert self._bans is not None
        known = self._bans.find(ban.network.network_address)
        if known is None or known.score > ban.score or known.until < ban.until - _SAME_BAN:
            self._bans.ban(ban)

    async def wait(self) -> None:
        """Wait for the first edition."""
        await self._ready.wait()

    async def follow(self) -> None:
        """Use each new edition, at most 100 ms after it appeared; until cancelled."""
        while True:
            try:
                await self._look()
                await asyncio.sleep(_LOOK_INTERVAL)
            except (OSError, TableError, SourceError) as error:
                # Perhaps yet another edition has taken its place in the meantime. The keeper makes
                # a new one of what is damaged.
                self._complain(str(error))
                await asyncio.sleep(_RETRY_INTERVAL)
            except Exception:
                logger.exception("an edition cannot be used")
                await asyncio.sleep(_RETRY_INTERVAL)

    async def aclose(self) -> None:
        """Close what is open."""
        if self._edition is not None:
            self._edition.close()
        await _close(self._dnsbls.values())

    def _with_ban(self, address: IPAddress, finding: Finding) -> Finding:
        """Return what a ban makes of a finding, if there is one and the address is not allowed."""
        assert self._bans is not None
        if not self._bans.bans:
            return finding
        ban = self._bans.find(unmapped(address))
        if ban is None or finding.verdict.rule is Rule.ALLOW:
            return finding
        verdict = Verdict(ban.score, Rule.BAN, says=finding.verdict.says)
        return Finding(verdict, finding.asn, finding.country, ban)

    def _complain(self, reason: str) -> None:
        """Log why an edition cannot be used, once."""
        if reason != self._complaint:
            logger.warning("an edition cannot be used: %s", reason)
        self._complaint = reason

    async def _look(self) -> None:
        seen = identity_of(description_of(self._folder))
        if seen is None or seen == self._seen:
            return
        description = await asyncio.to_thread(read_edition, self._folder)
        if description is not None:
            await self._use(description)
            self._seen = seen
            self._complaint = ""

    async def _use(self, description: Edition) -> None:
        dnsbls = self._dnsbls
        wanted = {source for source in description.settings.sources if source.dnsbl is not None}
        new = {source: dnsbls.get(source) or Dnsbl(source, self._row) for source in wanted}
        try:
            edition = await asyncio.to_thread(OpenEdition, self._folder, description, new)
        except BaseException:
            await _close(new[source] for source in new.keys() - dnsbls.keys())
            raise
        before, self._edition, self._dnsbls = self._edition, edition, new
        self._ready.set()
        logger.debug("edition %d is in use", description.generation)
        if before is not None:
            before.close()
        await _close(dnsbls[source] for source in dnsbls.keys() - wanted)


async def _close(dnsbls: Iterable[Dnsbl]) -> None:
    await asyncio.gather(*(dnsbl.close() for dnsbl in dnsbls), return_exceptions=True)
