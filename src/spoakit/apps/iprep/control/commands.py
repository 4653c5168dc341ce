"""Commands of the control socket: bans, lookups, sources, updates."""

import time
from ipaddress import IPv4Network, IPv6Network
from typing import Any, Final, TypeVar

from spoakit.apps.iprep.addresses import address_of, parse_number, parse_range
from spoakit.apps.iprep.audit import AuditLog
from spoakit.apps.iprep.bans import Ban, BanError, BanStore, IPNetwork
from spoakit.apps.iprep.config.schema import BanSettings
from spoakit.apps.iprep.config.sources import SourceSettings
from spoakit.apps.iprep.control.socket import Answer, ControlError, Request
from spoakit.apps.iprep.metrics import DNSBL_ANSWERS, DNSBL_FAILING, DNSBL_LOOKUPS
from spoakit.apps.iprep.scoring.policy import Listing, Rule, SourceResult, score_of
from spoakit.apps.iprep.scoring.reputation import Reputation
from spoakit.apps.iprep.snapshot.manifest import SourceReport
from spoakit.apps.iprep.snapshot.updater import Updater
from spoakit.apps.toml import Table, convert
from spoakit.apps.urls import shown_url
from spoakit.metrics import Counter, Gauge, WorkerMetrics

_DEFAULT_BAN: Final = 3600.0
_MAX_SHOWN: Final = 80
# Bans that are ended in one transaction, in which no frame is answered.
_UNBAN_CHUNK: Final = 500


class _Request(Table, frozen=True):
    command: str


class _AddressRequest(_Request, frozen=True):
    address: str


class _UnbanRequest(_Request, frozen=True):
    address: str = ""
    all: bool = False


class _UpdateRequest(_Request, frozen=True):
    source: str
    accept_shrink: bool = False


class _BanRequest(_AddressRequest, frozen=True):
    seconds: float = _DEFAULT_BAN
    score: int = 0
    reason: str = ""


R = TypeVar("R", bound=_Request)


class Commands:
    """Answers requests.

    Args:
        reputation: what is known of addresses.
        updater: who keeps the sources.
        bans: where bans are kept; None without.
        settings: how long bans may be.
        row: the worker's counters, through which those of all workers are seen.
        audit: the audit log; None for none.
    """

    def __init__(
        self,
        reputation: Reputation,
        updater: Updater,
        bans: BanStore | None,
        settings: BanSettings,
        row: WorkerMetrics,
        audit: AuditLog | None = None,
    ) -> None:
        self._row = row
        self._audit = audit
        self._reputation = reputation
        self._updater = updater
        self._bans = bans
        self._settings = settings
        self._commands = {
            "ban": self._ban,
            "unban": self._unban,
            "bans": self._list,
            "lookup": self._lookup,
            "sources": self._sources,
            "update": self._update,
        }

    async def handle(self, request: Request, user: int = -1) -> Answer:
        """Answer a request, an object with a "command", of a user by the user's number.

        Raises:
            SpoakitError: it cannot be done; the text says why.
        """
        name = str(request.get("command"))
        command = self._commands.get(name)
        if command is None:
            known = ", ".join(self._commands)
            raise ControlError(f"there is no command {name[:_MAX_SHOWN]!r}; there are {known}")
        if not self._reputation.is_ready:
            raise ControlError("the first table is being made; try again")
        return await command(request, user)

    async def _ban(self, request: Request, user: int) -> Answer:
        asked = _read(request, _BanRequest)
        network = _network(asked.address)
        ban = timed_ban(
            network, asked.seconds, self._settings, score=asked.score, reason=asked.reason
        )
        await self._store().ban(ban)
        if self._audit is not None:
            self._audit.ban(ban, "command", user)
        answer = _shown(ban)
        if self._reputation.find(network.network_address).verdict.rule is Rule.ALLOW:
            answer["note"] = "it is among those that are always allowed, so the ban has no effect"
        return answer

    async def _unban(self, request: Request, user: int) -> Answer:
        """End all bans, or those of addresses and networks that are within one."""
        asked = _read(request, _UnbanRequest)
        store = self._store()
        if asked.all == bool(asked.address):
            raise ControlError("unban: give either an address or 'all'")
        network = None if asked.all else _network(asked.address)
        banned = [
            ban.network
            for ban in await store.current()
            if network is None or _is_in(ban.network, network)
        ]
        if network is not None and not banned:
            raise BanError(self._not_banned(network))
        count = 0
        for chunk in (banned[at : at + _UNBAN_CHUNK] for at in range(0, len(banned), _UNBAN_CHUNK)):
            ended = await store.unban(*chunk)
            count += len(ended)
            if self._audit is not None:
                for ban in ended:
                    self._audit.unban(ban, user)
        return {"address": "" if network is None else _name(network), "count": count}

    def _not_banned(self, network: IPNetwork) -> str:
        around = self._store().find(network.network_address)
        if around is None:
            return f"{_name(network)} is not banned"
        return f"{_name(network)} has no ban of its own; it is within {around.name}, which has one"

    async def _update(self, request: Request, user: int) -> Answer:
        asked = _read(request, _UpdateRequest)
        outcome = await self._updater.update(asked.source, accepts_shrink=asked.accept_shrink)
        snapshot = self._updater.snapshot
        assert snapshot is not None
        for source, report in zip(snapshot.settings.sources, snapshot.reports, strict=True):
            if source.name == asked.source:
                return {
                    "source": asked.source,
                    "download": outcome,
                    "entries": report.entries,
                    "fault": report.error,
                }
        raise ControlError(f"source {asked.source}: a reload has removed it")

    async def _list(self, request: Request, user: int) -> Answer:
        _read(request, _Request)
        return {"bans": [_shown(ban) for ban in await self._store().current()]}

    async def _lookup(self, request: Request, user: int) -> Answer:
        text = _read(request, _AddressRequest).address
        try:
            address = address_of(*parse_number(text))
        except ValueError as error:
            raise ControlError(f"address: {error}") from None
        finding = await self._reputation.ask(address)
        verdict, snapshot = finding.verdict, self._reputation.snapshot.description
        return {
            "address": str(address),
            "score": verdict.score,
            "rule": verdict.rule.value,
            "source": verdict.source,
            "category": verdict.category,
            "asn": finding.asn,
            "country": finding.country,
            "ban": None if finding.ban is None else _shown(finding.ban),
            "says": [_say(say) for say in verdict.results],
            "observed": [{"source": name, "score": score} for name, score in verdict.observed],
            "table": {"built": snapshot.built, "entries": snapshot.entries},
        }

    async def _sources(self, request: Request, user: int) -> Answer:
        _read(request, _Request)
        snapshot = self._reputation.snapshot.description
        return {
            "sources": [
                self._source(source, report)
                for source, report in zip(snapshot.settings.sources, snapshot.reports, strict=True)
            ],
            "table": {
                "built": snapshot.built,
                "entries": snapshot.entries,
                "size": snapshot.size,
                "generation": snapshot.generation,
                **self._failure(),
            },
        }

    def _failure(self) -> Answer:
        """Return why there is not a newer table, if there should be one."""
        failure = self._updater.failure
        return {} if failure is None else {"failed": failure.at, "error": failure.reason}

    def _source(self, source: SourceSettings, report: SourceReport) -> Answer:
        feed = self._updater.reporter.feeds.get(source.name)
        error = ("" if feed is None else feed.error) or report.error
        zone = "" if source.dnsbl is None else source.dnsbl.zone
        if source.dnsbl is not None:
            error = self._dnsbl_error(source, zone)
        state = "failed" if not report.loaded or error else "ok"
        if self._updater.reporter.is_stale(source, report):
            state = "stale"
        return {
            "name": source.name,
            "type": source.type,
            "mode": source.mode,
            "place": source.path or shown_url(source.url or "") or zone,
            "state": state,
            "entries": None if zone else report.entries,
            "age": self._updater.reporter.age(source, report),
            "failed_lines": report.failed_lines,
            "masked": report.masked,
            "warning": report.warning,
            "line_errors": report.line_errors,
            "error": error,
            "asked": self._count(DNSBL_LOOKUPS, zone, "asked") if zone else None,
            "failures": self._count(DNSBL_ANSWERS, zone, "failed") if zone else None,
        }

    def _dnsbl_error(self, source: SourceSettings, zone: str) -> str:
        """Return why a DNSBL has no usable answers, here or in other workers; "" if it has."""
        dnsbl = self._reputation.dnsbls.get(source)
        error = "" if dnsbl is None else dnsbl.error
        failing = self._count(DNSBL_FAILING, zone)
        if error:
            return error if failing < 2 else f"{error} (no usable answer in {failing} workers)"
        return f"no usable answer in {failing} of the other workers" if failing else ""

    def _count(self, family: Counter | Gauge, *values: str) -> int:
        """Return a figure of all workers together."""
        return round(self._row.totals(family).get(values, 0.0))

    def _store(self) -> BanStore:
        if self._bans is None:
            raise ControlError("there are no bans: the configuration has no bans.path")
        return self._bans


def timed_ban(
    network: IPNetwork,
    seconds: float,
    settings: BanSettings,
    *,
    score: int = 0,
    reason: str = "",
) -> Ban:
    """Return a ban that begins now.

    Raises:
        BanError: it is longer than the settings allow, or wrong in another way.
    """
    if not 0 < seconds <= settings.max_time:
        raise BanError(
            f"{seconds:.10g} s is not a time above 0 and up to {settings.max_time:.10g} s "
            "(bans.max-time)"
        )
    return Ban(network, score, time.time() + seconds, reason)


def _read(request: Request, kind: type[R]) -> R:
    """Return a request as one of a kind.

    Raises:
        ConfigurationError: it has a key too many, one too few, or a value of another type.
    """
    return convert(request, kind, "")


def _network(text: str) -> IPNetwork:
    try:
        version, first, last, masked = parse_range(text)
    except ValueError as error:
        raise ControlError(f"address: {error}") from None
    if masked or "-" in text:
        raise ControlError(
            f"address: {text[:_MAX_SHOWN]!r} is neither an address nor a network without host bits"
        )
    prefix = address_of(version, first).max_prefixlen - (last - first).bit_length()
    return IPv4Network((first, prefix)) if version == 4 else IPv6Network((first, prefix))


def _is_in(network: IPNetwork, other: IPNetwork) -> bool:
    if isinstance(network, IPv4Network):
        return isinstance(other, IPv4Network) and network.subnet_of(other)
    return isinstance(other, IPv6Network) and network.subnet_of(other)


def _name(network: IPNetwork) -> str:
    whole = network.prefixlen == network.max_prefixlen
    return str(network.network_address) if whole else str(network)


def _shown(ban: Ban) -> dict[str, Any]:
    return {"address": ban.name, "score": ban.score, "until": ban.until, "reason": ban.reason}


def _say(say: SourceResult) -> dict[str, Any]:
    listed = say.state is Listing.LISTED
    return {
        "source": say.source.name,
        "state": say.state.value,
        "score": score_of(say) if listed and not say.source.allow else None,
        "category": (say.category or say.source.category) if listed else "",
        **({"mode": say.source.mode} if say.source.mode != "enforce" else {}),
    }
