"""The agent: scores addresses by what a snapshot, DNSBLs and bans have of them."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final, TypeAlias

from spoakit import Actions, Agent, DataType, Event, IPAddress, Message, Variable
from spoakit.apps.iprep.audit import AuditLog
from spoakit.apps.iprep.bans import BanError
from spoakit.apps.iprep.config.schema import (
    Answer,
    AnswerSettings,
    BanSettings,
    ForwardedSettings,
    ReputationSettings,
)
from spoakit.apps.iprep.config.sources import MAX_DEADLINE
from spoakit.apps.iprep.control.commands import timed_ban
from spoakit.apps.iprep.metrics import AnswerTally
from spoakit.apps.iprep.scoring.forwarded import lines_of, parse_node
from spoakit.apps.iprep.scoring.policy import Rule
from spoakit.apps.iprep.scoring.reputation import LookupResult, Reputation
from spoakit.apps.iprep.service import open_reputation
from spoakit.exceptions import ConfigurationError
from spoakit.logs import Throttle
from spoakit.metrics import WorkerMetrics
from spoakit.server import ReloadableSettings

logger = logging.getLogger("spoakit.iprep")
throttle = Throttle(logger)

Check: TypeAlias = Callable[..., Actions]
Ask: TypeAlias = Callable[..., Coroutine[Any, Any, Actions]]

_TYPES: Final[dict[Answer, Any]] = {
    "ip_score": DataType.UINT32,
    "ip_list": DataType.STRING,
    "ip_asn": DataType.UINT32,
    "ip_country": DataType.STRING,
    "ip_category": DataType.STRING,
}
# DNSBLs have deadlines of their own, of up to 10 s, which a reload may change.
_TIMEOUT: Final = MAX_DEADLINE + 1.0


class ActionBuilder:
    """Makes actions of findings.

    Args:
        agent: gets the variables.
        settings: which, and their scope.

    Attributes:
        tally: counts the answers; there is one while the agent runs.
        audit: has a line for some of them; None for none.
        nothing: unsets the variables, where there is no address.
    """

    def __init__(self, agent: Agent, settings: AnswerSettings) -> None:
        self._variables: list[tuple[Answer, Variable[Any]]] = [
            (name, agent.variable(f"{settings.scope}.{name}", _TYPES[name]))
            for name in settings.variables
        ]
        self.tally: AnswerTally
        self.audit: AuditLog | None = None
        self.nothing: Actions = tuple(variable.set(None) for _, variable in self._variables)

    def of(self, finding: LookupResult, address: IPAddress) -> Actions:
        """Return what sets the variables, and unsets those of which nothing is known.

        It is kept in the finding, unless each answer of its kind may have a line in the audit log.
        The handler that sends it counts it by ``finding.tally``.
        """
        verdict = finding.verdict
        finding.tally = self.tally.of(
            verdict.source or verdict.rule.value, verdict.score, verdict.observed
        )
        actions = tuple(variable.set(_value(name, finding)) for name, variable in self._variables)
        answer = actions if len(actions) > 1 else actions[0]  # one is sent sooner
        if self.audit is not None and self.audit.has(verdict):
            self.audit.verdict(address, verdict, finding.asn, finding.country)
        else:
            finding.answer = answer
        return answer


def create_agent(
    live: ReloadableSettings[ReputationSettings], folder: Path, delay: float = 0.0
) -> Agent:
    """Return the agent that answers ``check-client-ip`` as the settings say.

    The message has an address, named or not, as an address or as text, and where the settings trust
    proxies the arguments with their header. ``ban-client-ip``, where the settings have it, has an
    address, a number of seconds, and the same header.

    Args:
        live: the settings.
        folder: for snapshots, of all workers together.
        delay: seconds that each check waits without holding up others.
    """
    settings = live.current
    agent = Agent("iprep")
    answers = ActionBuilder(agent, settings.answers)

    @agent.resource
    async def reputation(row: WorkerMetrics) -> AsyncIterator[Reputation]:
        with _open_audit(live, row) as answers.audit, closing(AnswerTally(row)) as answers.tally:
            async with open_reputation(live, folder, row, answers.audit) as reputation:
                yield reputation

    check, ask = (
        _handlers(answers, delay)
        if settings.forwarded.argument is None
        else _handlers_behind_proxies(answers, delay, settings.forwarded.argument)
    )
    event = _event(settings)
    if settings.asks or delay:
        agent.message("check-client-ip", event=event, timeout=delay + _TIMEOUT)(ask)
    else:
        agent.message("check-client-ip", event=event)(check)
    if settings.bans.message:
        _add_ban_message(agent, settings.bans, settings.forwarded, answers)
    return agent


@contextmanager
def _open_audit(
    live: ReloadableSettings[ReputationSettings], row: WorkerMetrics
) -> Iterator[AuditLog | None]:
    """Open the audit log of a worker, if there is to be one."""
    if live.current.audit.path is None:
        yield None
        return
    try:
        audit = AuditLog(live.current.audit, row)
    except ConfigurationError as error:
        # It could be opened at the start. A worker's successor answers without it, too.
        logger.error("%s; this worker has none until it is restarted", error)
        yield None
        return
    live.on_reopen(audit.reopen)
    try:
        yield audit
    finally:
        audit.close()


def _event(settings: ReputationSettings) -> Event:
    """Return the first event at which there is what is asked for, and variables can be set."""
    if settings.answers.scope == "res":
        return "on-http-response"
    if settings.forwarded.argument is None:
        return "on-client-session"
    return "on-frontend-http-request"


def _handlers(answers: ActionBuilder, delay: float) -> tuple[Check, Ask]:
    """Return what answers at once, and what asks or waits."""

    def check(src: IPAddress | str, /, reputation: Reputation) -> Actions:
        address = _parsed(src) if isinstance(src, str) else src
        if address is None:
            return answers.nothing
        finding = reputation.find(address)
        answer = finding.answer or answers.of(finding, address)
        finding.tally[0] += 1
        return answer

    async def ask(src: IPAddress | str, /, reputation: Reputation) -> Actions:
        if delay:
            await asyncio.sleep(delay)
        address = _parsed(src) if isinstance(src, str) else src
        if address is None:
            return answers.nothing
        finding = await reputation.ask(address)
        answer = finding.answer or answers.of(finding, address)
        finding.tally[0] += 1
        return answer

    return check, ask


def _handlers_behind_proxies(
    answers: ActionBuilder, delay: float, argument: str
) -> tuple[Check, Ask]:
    """Return the same where arguments may name the client behind a proxy."""

    def check(src: IPAddress | str, /, reputation: Reputation, message: Message) -> Actions:
        address = _client(src, message, argument, reputation)
        if address is None:
            return answers.nothing
        finding = reputation.find(address)
        answer = finding.answer or answers.of(finding, address)
        finding.tally[0] += 1
        return answer

    async def ask(src: IPAddress | str, /, reputation: Reputation, message: Message) -> Actions:
        if delay:
            await asyncio.sleep(delay)
        address = _client(src, message, argument, reputation)
        if address is None:
            return answers.nothing
        finding = await reputation.ask(address)
        answer = finding.answer or answers.of(finding, address)
        finding.tally[0] += 1
        return answer

    return check, ask


def _add_ban_message(
    agent: Agent, settings: BanSettings, forwarded: ForwardedSettings, answers: ActionBuilder
) -> None:
    """Let HAProxy's own rules ban."""

    @agent.message("ban-client-ip")
    def ban(
        src: IPAddress | str, seconds: int, /, *, reputation: Reputation, message: Message
    ) -> None:
        client = _client(src, message, forwarded.argument, reputation)
        if client is None:
            return
        try:
            network = reputation.network_of(client, settings.ipv6_prefix)
            new = timed_ban(network, seconds, settings, reason="HAProxy")
            if reputation.ban_soon(new) and answers.audit is not None:
                answers.audit.ban(new, "message")
        except BanError as error:
            throttle.warning("ban", "ban-client-ip for %s: %s", client, error)


def _client(
    src: IPAddress | str, message: Message, argument: str | None, reputation: Reputation
) -> IPAddress | None:
    """Return the client that a message is about; None where its address cannot be read."""
    address = _parsed(src) if isinstance(src, str) else src
    if address is None or argument is None:
        return address
    header = reputation.snapshot.trusted.header
    try:
        lines = lines_of(message, argument, header)
    except ValueError as error:
        throttle.warning("lines", "%s: argument %r: %s", message.name, argument, error)
        return address
    return reputation.client_of(address, lines)


def _parsed(text: str) -> IPAddress | None:
    try:
        return parse_node(text)
    except ValueError as error:
        throttle.warning("address", "a message has no address: %s", error)
        return None


def _value(name: Answer, finding: LookupResult) -> int | str | None:
    """Return a variable's value; None where nothing is known."""
    verdict = finding.verdict
    if name == "ip_score":
        return verdict.score
    if name == "ip_list":
        return (Rule.BAN.value if verdict.rule is Rule.BAN else verdict.source) or None
    if name == "ip_asn":
        return finding.asn
    if name == "ip_country":
        return finding.country or None
    return verdict.category or None
