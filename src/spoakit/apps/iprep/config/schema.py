"""The tables of the configuration file, and the settings that they are.

What they do not name is an error; what the values may be, the settings say.
docs/reference/iprep-configuration.md describes the file.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from spoakit.apps.checks import check_range, check_text, choice
from spoakit.apps.iprep.config.settings import (
    ANSWERS,
    COMBINE,
    FAILED,
    FORWARDED_HEADERS,
    MODES,
    PROVIDES,
    SCOPES,
    AnswerSettings,
    AuditSettings,
    BanSettings,
    ControlSettings,
    DatabaseSettings,
    DnsblSettings,
    FeedSettings,
    ForwardedSettings,
    PolicySettings,
    ReputationSettings,
    SourceSettings,
    SourceType,
    bare_asn,
)
from spoakit.apps.iprep.sources.limits import ListLimits
from spoakit.apps.iprep.sources.lists import Columns
from spoakit.apps.toml import Seconds, Size, Table, readable_file
from spoakit.exceptions import ConfigurationError

_FEED: Final = FeedSettings()
_LIMITS: Final = ListLimits()
_DNSBL: Final = DnsblSettings("localhost")
_POLICY: Final = PolicySettings()
_ANSWERS: Final = AnswerSettings()
_FORWARDED: Final = ForwardedSettings()
_BANS: Final = BanSettings()
_MAX_SECRET: Final = 16 * 1024
_AUDIT: Final = AuditSettings()
# What a database is asked for, where only what it provides is said.
_FIELDS: Final = {"asn": "autonomous_system_number", "country": "country.iso_code"}


class Source(Table, frozen=True, kw_only=True):
    """What every source can be told."""

    name: str
    type: str
    score: int = 0
    weight: float = 1.0
    category: str = ""
    allow: bool = False
    failed: str = "open"
    mode: str = "enforce"

    def settings(self, folder: Path) -> SourceSettings:
        """Return the settings of the source; names of files are relative to the folder."""
        # A struct of msgspec's cannot be abstract.
        raise NotImplementedError(f"{type(self).__name__} is no type of source")

    def common(self, kind: SourceType, **more: Any) -> SourceSettings:
        """Return settings with what every source has."""
        return SourceSettings(
            name=self.name,
            type=kind,
            score=self.score,
            weight=self.weight,
            category=self.category,
            allow=self.allow,
            failed=choice("failed", self.failed, FAILED),
            mode=choice("mode", self.mode, MODES),
            **more,
        )


class _Tls(Table, frozen=True):
    ca_file: str | None = None


class _FileSource(Source, frozen=True, kw_only=True):
    path: str | None = None
    url: str | None = None
    max_age: Seconds | None = None
    interval: Seconds = _FEED.interval
    timeout: Seconds = _FEED.timeout
    max_size: Size = _FEED.max_size
    max_shrink: float = _FEED.max_shrink
    may_be_empty: bool = _FEED.may_be_empty
    allow_html: bool = _FEED.allow_html
    headers: dict[str, str] = msgspec.field(default_factory=dict)
    tls: _Tls = _Tls()

    def place(self, folder: Path) -> dict[str, Any]:
        return {
            "path": _within("path", self.path, folder),
            "url": self.url,
            "max_age": self.max_age,
            "feed": FeedSettings(
                interval=self.interval,
                timeout=self.timeout,
                max_size=self.max_size,
                max_shrink=self.max_shrink,
                may_be_empty=self.may_be_empty,
                allow_html=self.allow_html,
                headers=tuple(
                    (name, _secret(f"headers.{name[:80]}", value, folder))
                    for name, value in self.headers.items()
                ),
                ca_file=_within("tls.ca-file", self.tls.ca_file, folder),
            ),
        }


class _MinPrefix(Table, frozen=True):
    ipv4: int = _LIMITS.prefix4
    ipv6: int = _LIMITS.prefix6


class _ListSource(_FileSource, frozen=True, kw_only=True):
    min_prefix: int | _MinPrefix = _LIMITS.prefix4
    max_share: float = _LIMITS.max_share

    def place(self, folder: Path) -> dict[str, Any]:
        least = self.min_prefix
        if isinstance(least, int):
            check_range("min-prefix", least, 0, 32)
            # IPv4's /24 is given out to whom IPv6's /48 is.
            least = _MinPrefix(least, 2 * least)
        limits = ListLimits(least.ipv4, least.ipv6, self.max_share)
        return super().place(folder) | {"limits": limits}


class _List(_ListSource, frozen=True, kw_only=True):
    def settings(self, folder: Path) -> SourceSettings:
        return self.common("list", **self.place(folder))


class _Drop(_ListSource, frozen=True, kw_only=True):
    def settings(self, folder: Path) -> SourceSettings:
        return self.common("drop", **self.place(folder))


class _Columns(Table, frozen=True, kw_only=True):
    address: str | int = 1
    last: str | int | None = None
    score: str | int | None = None
    category: str | int | None = None


class _Csv(_ListSource, frozen=True, kw_only=True):
    columns: _Columns = _Columns()
    best: float = 100.0
    worst: float = 0.0
    delimiter: str = ","
    filter: dict[str, tuple[str, ...]] = msgspec.field(default_factory=dict)
    scores: dict[str, int] = msgspec.field(default_factory=dict)

    def settings(self, folder: Path) -> SourceSettings:
        at = self.columns
        columns = Columns(
            at.address,
            at.last,
            at.score,
            at.category,
            self.best,
            self.worst,
            self.delimiter,
            tuple((_column(name), values) for name, values in self.filter.items()),
        )
        scores = tuple(self.scores.items())
        return self.common("csv", columns=columns, scores=scores, **self.place(folder))


class _Json(_ListSource, frozen=True, kw_only=True):
    select: tuple[str, ...]

    def settings(self, folder: Path) -> SourceSettings:
        return self.common("json", select=self.select, **self.place(folder))


class _Database(_FileSource, frozen=True, kw_only=True):
    field: str | None = None
    provides: str | None = None
    scores: dict[str, int] = msgspec.field(default_factory=dict)

    def settings(self, folder: Path) -> SourceSettings:
        provides = None if self.provides is None else choice("provides", self.provides, PROVIDES)
        field = self.field or _FIELDS.get(provides or "")
        if field is None:
            raise ConfigurationError("field: the key is missing, and so is 'provides'")
        scores = tuple(
            (bare_asn(value) if provides == "asn" else value, score)
            for value, score in self.scores.items()
        )
        database = DatabaseSettings(field, provides)
        return self.common("mmdb", database=database, scores=scores, **self.place(folder))


class _Dnsbl(Source, frozen=True, kw_only=True):
    zone: str
    deadline: Seconds = _DNSBL.deadline
    nameservers: tuple[str, ...] = ()
    cache_size: int = _DNSBL.cache_size
    min_ttl: Seconds = _DNSBL.min_ttl
    max_ttl: Seconds = _DNSBL.max_ttl
    max_pending: int = _DNSBL.max_pending
    scores: dict[str, int] = msgspec.field(default_factory=dict)
    key: str | None = None
    octet: int | None = None
    best: float = _DNSBL.best
    worst: float = _DNSBL.worst
    test: str | bool = _DNSBL.test or False

    def settings(self, folder: Path) -> SourceSettings:
        if self.test is True:
            raise ConfigurationError("test: true is neither an address nor false")
        dnsbl = DnsblSettings(
            self.zone,
            self.deadline,
            self.nameservers,
            self.cache_size,
            self.min_ttl,
            self.max_ttl,
            self.max_pending,
            self.key,
            self.octet,
            self.best,
            self.worst,
            self.test if isinstance(self.test, str) else None,
        )
        return self.common("dnsbl", dnsbl=dnsbl, scores=tuple(self.scores.items()))


SOURCES: Final[Mapping[SourceType, type[Source]]] = {
    "list": _List,
    "drop": _Drop,
    "csv": _Csv,
    "json": _Json,
    "mmdb": _Database,
    "dnsbl": _Dnsbl,
}


class _Policy(Table, frozen=True):
    allow: tuple[str, ...] = ()
    block_private: bool = _POLICY.block_private
    combine: str = _POLICY.combine
    unknown: int = _POLICY.unknown
    nat64: tuple[str, ...] = _POLICY.nat64

    def settings(self) -> PolicySettings:
        combine = choice("policy.combine", self.combine, COMBINE)
        return PolicySettings(self.allow, self.block_private, combine, self.unknown, self.nat64)


class _Answers(Table, frozen=True):
    variables: tuple[str, ...] = _ANSWERS.variables
    scope: str = _ANSWERS.scope

    def settings(self) -> AnswerSettings:
        names = tuple(choice("answers.variables", name, ANSWERS) for name in self.variables)
        return AnswerSettings(names, choice("answers.scope", self.scope, SCOPES))


class _Forwarded(Table, frozen=True):
    argument: str | None = None
    trusted: tuple[str, ...] = ()
    header: str = _FORWARDED.header

    def settings(self) -> ForwardedSettings:
        header = choice("forwarded.header", self.header, FORWARDED_HEADERS)
        return ForwardedSettings(self.argument, self.trusted, header)


class _Bans(Table, frozen=True):
    path: str | None = None
    max_time: Seconds = _BANS.max_time
    message: bool = _BANS.message
    ipv6_prefix: int = _BANS.ipv6_prefix


class _Control(Table, frozen=True):
    path: str | bool | None = None
    mode: str = "600"
    owner: str | None = None
    group: str | None = None

    def settings(self, folder: Path) -> ControlSettings:
        if self.path is True:
            raise ConfigurationError("control.path: true is neither a path nor false")
        path = None if self.path is False else _within("control.path", self.path, folder)
        for option, name in (("control.owner", self.owner), ("control.group", self.group)):
            if name is not None:
                check_text(option, name)
        return ControlSettings(
            path, _mode(self.mode), self.owner, self.group, is_default=self.path is None
        )


class _Audit(Table, frozen=True):
    path: str | None = None
    threshold: int = _AUDIT.threshold
    sample: float = _AUDIT.sample

    def settings(self, folder: Path) -> AuditSettings:
        return AuditSettings(_within("audit.path", self.path, folder), self.threshold, self.sample)


class File(Table, frozen=True):
    """The whole file. The sources are looked at one by one, each as its type says."""

    cache: str | None = None
    policy: _Policy = _Policy()
    answers: _Answers = _Answers()
    forwarded: _Forwarded = _Forwarded()
    bans: _Bans = _Bans()
    control: _Control = _Control()
    audit: _Audit = _Audit()
    source: tuple[dict[str, Any], ...] = ()

    def settings(self, sources: tuple[SourceSettings, ...], folder: Path) -> ReputationSettings:
        """Return the settings of the service; names of files are relative to the folder."""
        bans = self.bans
        return ReputationSettings(
            sources,
            self.policy.settings(),
            self.answers.settings(),
            self.forwarded.settings(),
            BanSettings(
                _within("bans.path", bans.path, folder),
                bans.max_time,
                bans.message,
                bans.ipv6_prefix,
            ),
            self.control.settings(folder),
            _within("cache", self.cache, folder),
            self.audit.settings(folder),
        )


def _secret(option: str, text: str, folder: Path) -> str:
    """Return a value, or that in a file for "@FILE", without the end of its line."""
    if not text.startswith("@"):
        return text
    path = readable_file(option, text[1:], folder)
    assert path is not None
    with open(path, "rb") as file:
        content = file.read(_MAX_SECRET + 1)
    if len(content) > _MAX_SECRET:
        raise ConfigurationError(f"{option}: {path!r} is larger than {_MAX_SECRET} bytes")
    return content.decode("ascii", "replace").rstrip("\r\n")


def _column(name: str) -> str | int:
    """Return the column of a key, which is always a text; one of digits is the column's number."""
    return int(name) if name.isascii() and name.isdecimal() and len(name) < 10 else name


def _within(option: str, name: str | None, folder: Path) -> str | None:
    if name is None:
        return None
    if not name or "\0" in name:
        raise ConfigurationError(f"{option}: {name[:80]!r} is not a name")
    return str(folder / name)


def _mode(text: str) -> int:
    if re.fullmatch("0?[0-7]{3}", text) is None:
        raise ConfigurationError(f'control.mode: {text[:80]!r} is not a text such as "660"')
    return int(text, 8)
