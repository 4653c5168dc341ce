"""Settings of the service, its policy and its answers: a class for each table of the file.

An attribute is a key, described here or in `sources` alone. Times are in seconds, scores 0 (worst)
to 100. A value that is not allowed is a `ConfigurationError` that names the key, the value and the
range (docs/reference/iprep-configuration.md).
"""

import re
from pathlib import Path
from typing import Annotated, Final, Literal, TypeAlias, get_args

import msgspec

from spoakit.apps.checks import check_percent, check_range, check_text, choice
from spoakit.apps.iprep.config.sources import MAX_SCORE, SourceSettings
from spoakit.apps.iprep.config.units import (
    Name,
    parse_mode,
    parse_name,
    parse_nat64,
    parse_ranges,
)
from spoakit.apps.toml import NO_KEY, Notation, Seconds, Table
from spoakit.exceptions import ConfigurationError

Combine = Literal["lowest", "weighted"]
Answer = Literal["ip_score", "ip_list", "ip_asn", "ip_country", "ip_category"]
Scope = Literal["proc", "sess", "txn", "req", "res"]
ForwardedHeader = Literal["x-forwarded-for", "forwarded"]

Permissions: TypeAlias = Annotated[int, Notation(str, lambda text, _: parse_mode(text))]
SocketPath: TypeAlias = Annotated[
    str, Notation(str | bool, lambda value, folder: _parse_socket(value, folder))
]

MAX_SOURCES: Final = 64
_DAY: Final = 86_400.0
_YEAR: Final = 366 * _DAY
_NO_ARGUMENT: Final = re.compile(r"[\s=#\"'\\]")


class PolicySettings(Table, frozen=True):
    """Rules by which the results of the sources make a score.

    Attributes:
        allow: addresses, networks and ranges that get a score of 100 whatever else is known.
        block_private: whether sources may block addresses that are not of the public Internet.
        combine: "lowest" takes the lowest score; "weighted" takes from `unknown` what each source's
            score lacks to 100, times its weight.
        unknown: the score of an address that no source has.
        nat64: the prefixes of translators whose addresses are looked up by the IPv4 address in
            them, too.
    """

    allow: tuple[str, ...] = ()
    block_private: bool = False
    combine: Combine = "lowest"
    unknown: int = MAX_SCORE
    nat64: tuple[str, ...] = ("64:ff9b::/96",)

    def __post_init__(self) -> None:
        parse_ranges("policy.allow", self.allow)
        parse_nat64("policy.nat64", self.nat64)
        choice("policy.combine", self.combine, get_args(Combine))
        check_range("policy.unknown", self.unknown, 0, MAX_SCORE)


class AnswerSettings(Table, frozen=True):
    """Variables that are set.

    Attributes:
        variables: their names.
        scope: their scope.
    """

    variables: tuple[Answer, ...] = ("ip_score",)
    scope: Scope = "sess"

    def __post_init__(self) -> None:
        if not self.variables:
            raise ConfigurationError("answers.variables: there is none")
        for name in self.variables:
            choice("answers.variables", name, get_args(Answer))
        choice("answers.scope", self.scope, get_args(Scope))


class ForwardedSettings(Table, frozen=True):
    """The messages' arguments that name the client behind proxies.

    Attributes:
        argument: their name, as "xff"; None for none.
        trusted: addresses, networks and ranges of the proxies that are believed.
        header: the header that is in them, "x-forwarded-for" or "forwarded" (RFC 7239).
    """

    argument: str | None = None
    trusted: tuple[str, ...] = ()
    header: ForwardedHeader = "x-forwarded-for"

    def __post_init__(self) -> None:
        choice("forwarded.header", self.header, get_args(ForwardedHeader))
        if self.argument is not None:
            check_text("forwarded.argument", self.argument)
            if _NO_ARGUMENT.search(self.argument):
                raise ConfigurationError(
                    f"forwarded.argument: {self.argument!r} has a space or one of = # \" ' \\"
                )
            if not self.trusted:
                raise ConfigurationError(
                    "forwarded.trusted: it is empty, so that nobody would be believed"
                )
        parse_ranges("forwarded.trusted", self.trusted)


class BanSettings(Table, frozen=True):
    """Bans at run time.

    Attributes:
        path: the SQLite file they are kept in; None for no bans.
        max_time: the longest ban, a second to a year.
        message: whether HAProxy may ban with the message "ban-client-ip".
        ipv6_prefix: the length of the prefix that this bans of an IPv6 address, 48 to 128.
    """

    path: Name | None = None
    max_time: Seconds = 30 * _DAY
    message: bool = False
    ipv6_prefix: int = 64

    def __post_init__(self) -> None:
        check_range("bans.max-time", self.max_time, 1, _YEAR)
        check_range("bans.ipv6-prefix", self.ipv6_prefix, 48, 128)
        if self.message and self.path is None:
            raise ConfigurationError("bans.message: there is no bans.path to keep bans in")


def _parse_socket(value: str | bool, folder: Path) -> str | None:
    if value is True:
        raise ConfigurationError("true is neither a path nor false")
    return None if value is False else parse_name(value, folder)


class ControlSettings(Table, frozen=True):
    """The control socket.

    Attributes:
        path: of the Unix socket; None for none.
        mode: its permissions.
        owner: name or number of the user that it belongs to; None for that of the process.
        group: name or number of its group; None for that of the process.
        is_default: whether nobody named the path: its folder is made, and the service goes on
            where it cannot be listened on.
    """

    path: SocketPath | None = None
    mode: Permissions = 0o600
    owner: str | None = None
    group: str | None = None
    is_default: Annotated[bool, NO_KEY] = False

    def __post_init__(self) -> None:
        if self.mode & ~0o777:
            raise ConfigurationError(f"control.mode: {self.mode:o} is not 0 to 777, in octal")
        for option, name in (("control.owner", self.owner), ("control.group", self.group)):
            if name is not None:
                check_text(option, name)


class AuditSettings(Table, frozen=True):
    """Audit log: JSON lines for bans, their ends, and low scores.

    Attributes:
        path: the file; None for none.
        threshold: verdicts with a lower score have a line, 0 (none) to 101 (all).
        sample: percent of these that have, 0 to 100.
    """

    path: Name | None = None
    threshold: int = 0
    sample: float = 100.0

    def __post_init__(self) -> None:
        check_range("audit.threshold", self.threshold, 0, MAX_SCORE + 1)
        check_percent("audit.sample", self.sample)
        if self.threshold and self.path is None:
            raise ConfigurationError("audit.threshold: there is no audit.path to write to")


class ReputationSettings(Table, frozen=True):
    """The whole service.

    Attributes:
        sources: up to 64, each with a name of its own.
        policy: the rules of the score.
        answers: the variables.
        forwarded: the clients behind proxies.
        bans: bans at run time.
        control: the control socket.
        cache: the folder in which downloads are kept; None if no source has a URL.
        audit: the audit log.
    """

    sources: tuple[SourceSettings, ...] = msgspec.field(default=(), name="source")
    policy: PolicySettings = PolicySettings()
    answers: AnswerSettings = AnswerSettings()
    forwarded: ForwardedSettings = ForwardedSettings()
    bans: BanSettings = BanSettings()
    control: ControlSettings = ControlSettings()
    cache: Name | None = None
    audit: AuditSettings = AuditSettings()

    @property
    def asks(self) -> bool:
        """Whether there are sources that are asked for each address: DNSBLs."""
        return any(source.dnsbl is not None for source in self.sources)

    @property
    def longest_deadline(self) -> float:
        """The longest time that an answer waits for a DNSBL, in seconds; 0 without any."""
        return max(
            (source.dnsbl.deadline for source in self.sources if source.dnsbl is not None),
            default=0.0,
        )

    def __post_init__(self) -> None:
        if len(self.sources) > MAX_SOURCES:
            raise ConfigurationError(
                f"source: there are {len(self.sources)}, more than {MAX_SOURCES}"
            )
        numbers: dict[str, int] = {}
        for number, source in enumerate(self.sources, 1):
            first = numbers.setdefault(source.name, number)
            if first != number:
                raise ConfigurationError(
                    f"source[{number}].name: {source.name!r} is that of source[{first}] too; "
                    "give each a name of its own"
                )
            if source.url is not None and self.cache is None:
                raise ConfigurationError(
                    f"cache: source[{number}] has a url, and needs a folder for what it downloads"
                )
        self._check_shared()

    def _check_shared(self) -> None:
        """Refuse to download what is one copy in two ways, of which either would judge it."""
        numbers: dict[object, int] = {}
        for number, source in enumerate(self.sources, 1):
            reading = source.url, source.type, source.columns, source.select
            other = self.sources[numbers.setdefault(reading, number) - 1]
            first = numbers[reading]
            if source.url is not None and (source.feed, source.limits) != (
                other.feed,
                other.limits,
            ):
                raise ConfigurationError(
                    f"source[{number}].url: it is that of source[{first}] too, which is downloaded "
                    "once for both; give both the same interval, timeout, max-size, max-shrink, "
                    "may-be-empty, allow-html, headers, min-prefix, max-share and tls.ca-file"
                )
