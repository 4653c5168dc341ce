"""What the control socket can be asked: bans, and explanations."""

import time
from ipaddress import IPv4Network, IPv6Network
from typing import Any, Final, TypeVar

from spoakit.apps.iprep.addresses import address_of, parse_number, parse_range
from spoakit.apps.iprep.bans import Ban, BanError, BanStore, IPNetwork
from spoakit.apps.iprep.config.settings import BanSettings, SourceSettings
from spoakit.apps.iprep.control.socket import Answer, ControlError, Request
from spoakit.apps.iprep.scoring.policy import Listing, Rule, SourceResult, score_of
from spoakit.apps.iprep.scoring.reputation import Reputation
from spoakit.apps.iprep.snapshot.manifest import SourceReport
from spoakit.apps.iprep.snapshot.updater import Updater
from spoakit.apps.toml import Table, convert
from spoakit.apps.urls import shown_url

_DEFAULT_BAN: Final = 3600.0
_MAX_SHOWN: Final = 80


class _Request(Table, frozen=True):
    command: str


class _AddressRequest(_Request, frozen=True):
    address: str


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
    """

    def __init__(
        self,
        reputation: Reputation,
        updater: Updater,
        bans: BanStore | None,
        settings: BanSettings,
    ) -> None:
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
        return await command(request)

    async def _ban(self, request: Request) -> Answer:
        asked = _read(request, _BanRequest)
        network = _network(asked.address)
        ban = timed_ban(
            network, asked.seconds, self._settings, score=asked.score, reason=asked.reason
        )
        self._store().ban(ban)
        answer = _shown(ban)
        if self._reputation.find(network.network_address).verdict.rule is Rule.ALLOW:
            answer["note"] = "it is among those that are always allowed, so the ban has no effect"
        return answer

    async def _unban(self, request: Request) -> Answer:
        network = _network(_read(request, _AddressRequest).address)
        if not self._store().unban(network):
            raise BanError(f"{_name(network)} is not banned")
        return {"address": _name(network)}

    async def _list(self, request: Request) -> Answer:
        _read(request, _Request)
        return {"bans": [_shown(ban) for ban in self._store().current()]}

    async def _lookup(self, request: Request) -> Answer:
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
            "table": {"built": snapshot.built, "entries": snapshot.entries},
        }

    async def _sources(self, request: Request) -> Answer:
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
        dnsbl = self._reputation.dnsbls.get(source)
        feed = self._updater.reporter.feeds.get(source.name)
        error = ("" if feed is None else feed.error) or report.error
        if dnsbl is not None:
            error = dnsbl.error
        state = "failed" if not report.loaded or error else "ok"
        if self._updater.reporter.is_stale(source, report):
            state = "stale"
        zone = "" if source.dnsbl is None else source.dnsbl.zone
        return {
            "name": source.name,
            "type": source.type,
            "place": source.path or shown_url(source.url or "") or zone,
            "state": state,
            "entries": report.entries if dnsbl is None else None,
            "age": self._updater.reporter.age(source, report),
            "failed_lines": report.failed_lines,
            "line_errors": report.line_errors,
            "error": error,
            "asked": None if dnsbl is None else dnsbl.asked,
            "failures": None if dnsbl is None else dnsbl.failures,
        }

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
    }
