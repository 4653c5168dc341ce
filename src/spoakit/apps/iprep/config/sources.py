"""Settings of sources: the table `[[source]]` of the configuration file.

Its keys are those of several classes, and not of one: a feed, limits and a DNSBL are used by
themselves, and no type of source has all of them. `loader` parts the keys by class.

Times are in seconds, sizes in bytes, scores 0 (worst) to 100. A value that is not allowed is a
`ConfigurationError` that names the key, the value and the range
(docs/reference/iprep-configuration.md).
"""

import re
from collections.abc import Mapping
from typing import Annotated, Final, Literal, TypeAlias, get_args

from msgspec.structs import force_setattr

from spoakit.apps.checks import check_range, check_text, choice
from spoakit.apps.iprep.config import validators
from spoakit.apps.iprep.config.units import (
    Name,
    bare_asn,
    parse_codes,
    parse_secrets,
)
from spoakit.apps.iprep.sources.limits import ListLimits
from spoakit.apps.iprep.sources.lists import Columns
from spoakit.apps.toml import NO_KEY, Notation, Seconds, Size, Table
from spoakit.apps.values import parse_nameserver
from spoakit.exceptions import ConfigurationError

SourceType = Literal["list", "drop", "csv", "json", "mmdb", "dnsbl"]
Failed = Literal["open", "closed"]
Mode = Literal["enforce", "observe"]
Provides = Literal["asn", "country"]

Headers: TypeAlias = Annotated[tuple[tuple[str, str], ...], Notation(dict[str, str], parse_secrets)]
Scores: TypeAlias = Annotated[
    tuple[tuple[str, int], ...],
    Notation(dict[str, int], lambda table, _: tuple(table.items())),
]
Test: TypeAlias = Annotated[str, Notation(str | bool, lambda value, _: _parse_test(value))]

MAX_SCORE: Final = 100
MIN_INTERVAL: Final = 60.0
"""The shortest time between two downloads of a feed, in seconds: its server is not ours."""
MAX_DEADLINE: Final = 10.0
"""The longest time that an answer of a DNSBL is waited for, in seconds."""

_DAY: Final = 86_400.0
_YEAR: Final = 366 * _DAY
_MIB: Final = 1024**2
_MAX_WEIGHT: Final = 100.0
_MAX_CACHE: Final = 10_000_000
# RFC 1035, 2.3.4, less the longest reversed address (that of IPv6) and its dot.
_MAX_ZONE: Final = 253 - 64
_LABEL: Final = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
_ZONE: Final = re.compile(r"(?:[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?\.)*[A-Za-z0-9-]+")
# The way to the value of a database, where only what it provides is known.
_FIELDS: Final[Mapping[Provides, str]] = {
    "asn": "autonomous_system_number",
    "country": "country.iso_code",
}


class FeedTls(Table, frozen=True):
    """TLS to the server of a feed.

    Attributes:
        ca_file: certificates, in PEM, of the authorities to trust; None for the system's.
    """

    ca_file: Name | None = None


class FeedSettings(Table, frozen=True):
    """Download of a source with a URL.

    Attributes:
        interval: how often, 60 s to a year; up to a tenth is added by chance.
        timeout: for the whole of a download, 0.1 s to an hour.
        max_size: the most bytes, as they come and out of gzip, 1 KiB to 1 GiB.
        max_shrink: percent of its entries that a list may lose from one download to the next,
            0 to 100; one that loses more is refused.
            A list of under 100 entries may lose any of them.
        may_be_empty: whether a list without entries is taken.
        allow_html: whether a list is taken that its server calls text/html.
        headers: names and values of headers for its server; values may be secrets.
        tls: TLS to its server.
    """

    interval: Seconds = 3600.0
    timeout: Seconds = 60.0
    max_size: Size = 256 * _MIB
    max_shrink: float = 50.0
    may_be_empty: bool = False
    allow_html: bool = False
    headers: Headers = ()
    tls: FeedTls = FeedTls()

    def __post_init__(self) -> None:
        check_range("interval", self.interval, MIN_INTERVAL, _YEAR)
        check_range("timeout", self.timeout, 0.1, 3600)
        check_range("max-size", self.max_size, 1024, 1024 * _MIB)
        check_range("max-shrink", self.max_shrink, 0, 100)
        validators.check_headers(self.headers)

    def __repr__(self) -> str:
        return f"FeedSettings(interval={self.interval}, timeout={self.timeout})"  # no secrets


def _parse_test(value: str | bool) -> str | None:
    if value is True:
        raise ConfigurationError("true is neither an address nor false")
    return None if value is False else value


class DnsblSettings(Table, frozen=True):
    """Questions to a DNSBL, and the meaning of its answers.

    Attributes:
        zone: what goes behind the reversed address: "zen.spamhaus.org".
        deadline: how long an answer is waited for, 0.001 to 10 s.
        nameservers: the addresses to ask, with a port or not ("127.0.0.1:5353", "[::1]:5353");
            none for the system's.
        cache_size: the most addresses of which the answer is kept, 1 to 10,000,000.
        min_ttl: how long an answer is kept at least, 0 s to a day, whatever its TTL is.
        max_ttl: how long it is kept at most, no less than `min_ttl`.
        max_pending: the most questions that wait for an answer; further ones are failures.
        key: the label before the reversed address, as http:BL's access key; None for none. It is
            not shown.
        octet: the octet of an answer that is a number, 2 to 4, from which the score comes; None
            for none.
        best: the number in `octet` that is a score of 100.
        worst: the number that is a score of 0. Numbers between them are between.
        test: an address that the zone must list, or it is not used; None for no self-test.
    """

    zone: str
    deadline: Seconds = 0.05
    nameservers: tuple[str, ...] = ()
    cache_size: int = 100_000
    min_ttl: Seconds = 60.0
    max_ttl: Seconds = 3600.0
    max_pending: int = 1000
    key: str | None = None
    octet: int | None = None
    best: float = 100.0
    worst: float = 0.0
    test: Test | None = "127.0.0.2"

    def __post_init__(self) -> None:
        if self.key is not None and _LABEL.fullmatch(self.key) is None:
            raise ConfigurationError(
                'key: it is not 1 to 63 letters, digits, "-" and "_", as in a domain'
            )
        longest = _MAX_ZONE - (0 if self.key is None else len(self.key) + 1)
        if len(self.zone) > longest or _ZONE.fullmatch(self.zone) is None:
            raise ConfigurationError(
                f"zone: {self.zone[:80]!r} is not a domain of at most {longest} characters"
            )
        check_range("deadline", self.deadline, 0.001, MAX_DEADLINE)
        for server in self.nameservers:
            parse_nameserver(server)
        check_range("cache-size", self.cache_size, 1, _MAX_CACHE)
        check_range("min-ttl", self.min_ttl, 0, _DAY)
        check_range("max-ttl", self.max_ttl, self.min_ttl, _DAY)
        check_range("max-pending", self.max_pending, 1, 100_000)
        if self.octet is not None:
            check_range("octet", self.octet, 2, 4)
        validators.check_scale(self.best, self.worst)
        if self.test is not None:
            validators.check_test(self.test)

    def __repr__(self) -> str:
        return f"DnsblSettings(zone={self.zone!r})"  # the key is a secret


class DatabaseSettings(Table, frozen=True):
    """Value that is looked up in a MaxMind DB.

    Attributes:
        field: the way to the value, as "country.iso_code" or "traits.is_anonymous_proxy"; numbers
            are places in lists, from 0. Where it is "", `provides` names the way.
        provides: what the value is for `ip_asn` and `ip_country`; None for neither.
    """

    field: str = ""
    provides: Provides | None = None

    def __post_init__(self) -> None:
        if not self.field:
            if self.provides is None:
                raise ConfigurationError("field: the key is missing, and so is 'provides'")
            force_setattr(self, "field", _FIELDS[self.provides])
        check_text("field", self.field)
        if not all(self.field.split(".")):
            raise ConfigurationError(f"field: {self.field!r} has an empty name between its dots")


class SourceSettings(Table, frozen=True):
    """A source of entries.

    Attributes:
        name: for `ip_list`, logs and counters, up to 255 printable characters.
        type: what it is.
        path: the file of a list or database that has no URL, and else None.
        url: where the file comes from, http:// or https://, perhaps with a user and a password;
            and else None.
        score: of an entry that has no score of its own.
        weight: of its score, where weights are summed up, 0 to 100.
        category: of an entry that has none of its own.
        scores: what scores categories have, by their names: those in a list's column, values of a
            database, addresses that a DNSBL answers with (see `parse_codes`).
        allow: its entries are never blocked; it has neither score nor weight.
        failed: its result when it cannot be asked or was never loaded: "open" for none, "closed"
            for one that lists every address.
        mode: "enforce", or "observe": it does not count, and what it would change is counted.
        max_age: the time after which its file is stale, a second to a year; None for never.
        columns: those of a CSV, and else None.
        select: the paths to the addresses in a JSON document, and else empty.
        database: of a MaxMind DB, and else None.
        dnsbl: of a DNSBL, and else None.
        feed: how it is downloaded, if it has a URL.
        limits: what the ranges of a list may be.
    """

    name: str
    type: SourceType
    path: Name | None = None
    url: str | None = None
    score: int = 0
    weight: float = 1.0
    category: str = ""
    scores: Scores = ()
    allow: bool = False
    failed: Failed = "open"
    mode: Mode = "enforce"
    max_age: Seconds | None = None
    columns: Annotated[Columns, NO_KEY] | None = None
    select: tuple[str, ...] = ()
    database: Annotated[DatabaseSettings, NO_KEY] | None = None
    dnsbl: Annotated[DnsblSettings, NO_KEY] | None = None
    feed: Annotated[FeedSettings, NO_KEY] = FeedSettings()
    limits: Annotated[ListLimits, NO_KEY] = ListLimits()

    def __post_init__(self) -> None:
        check_text("name", self.name)
        choice("type", self.type, get_args(SourceType))
        if self.database is not None and self.database.provides == "asn":
            named = tuple((bare_asn(name), score) for name, score in self.scores)
            force_setattr(self, "scores", named)
        check_range("score", self.score, 0, MAX_SCORE)
        check_range("weight", self.weight, 0, _MAX_WEIGHT)
        if self.category:
            check_text("category", self.category)
        for name, score in self.scores:
            check_range(f"scores.{name[:80]}", score, 0, MAX_SCORE)
            if self.dnsbl is not None:
                parse_codes(name)
        choice("failed", self.failed, get_args(Failed))
        choice("mode", self.mode, get_args(Mode))
        if self.max_age is not None:
            check_range("max-age", self.max_age, 1, _YEAR)
        if self.columns is not None:
            validators.check_columns(self.columns)
        if self.type == "json":
            validators.check_select(self.select)
        self._check_place()
        if self.scores and self.dnsbl is not None and self.dnsbl.octet is not None:
            raise ConfigurationError("octet: scores come from it or from 'scores'; leave out one")
        if self.allow and self.failed == "closed":
            raise ConfigurationError("failed: a source of those to allow cannot fail closed")

    def score_of(self, score: int | None, category: str) -> int:
        """Return the score of an entry: its own, its category's, or the source's."""
        if score is not None:
            return score
        return next((known for name, known in self.scores if name == category), self.score)

    def _check_place(self) -> None:
        places = (self.path, self.url, self.dnsbl)
        if sum(place is not None for place in places) != 1:
            raise ConfigurationError("path: there must be either a path or a url")
        if self.url is not None:
            validators.check_url(self.url, self.feed.headers)
