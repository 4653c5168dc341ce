"""What spoa-iprep can be told, checked as soon as it is said.

Times are in seconds, sizes in bytes, scores 0 (worst) to 100. A value out of its range is a
`ConfigurationError` that names the option, the value and the range. Options have the names of the
configuration file's keys (docs/reference/iprep-configuration.md).
"""

import re
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Network
from typing import Final, Literal
from urllib.parse import urlsplit

from spoakit.apps.checks import check_percent, check_range, check_text, choice
from spoakit.apps.iprep.addresses import Range, number_of, parse_number, parse_range
from spoakit.apps.iprep.sources.json_list import JsonPath
from spoakit.apps.iprep.sources.limits import ListLimits
from spoakit.apps.iprep.sources.lists import Columns
from spoakit.apps.urls import shown_text
from spoakit.apps.values import parse_nameserver
from spoakit.exceptions import ConfigurationError

SourceType = Literal["list", "drop", "csv", "json", "mmdb", "dnsbl"]
Failed = Literal["open", "closed"]
Combine = Literal["lowest", "weighted"]
Mode = Literal["enforce", "observe"]
Provides = Literal["asn", "country"]
Answer = Literal["ip_score", "ip_list", "ip_asn", "ip_country", "ip_category"]
Scope = Literal["proc", "sess", "txn", "req", "res"]
ForwardedHeader = Literal["x-forwarded-for", "forwarded"]

SOURCE_TYPES: Final[tuple[SourceType, ...]] = ("list", "drop", "csv", "json", "mmdb", "dnsbl")
FAILED: Final[tuple[Failed, ...]] = ("open", "closed")
MODES: Final[tuple[Mode, ...]] = ("enforce", "observe")
COMBINE: Final[tuple[Combine, ...]] = ("lowest", "weighted")
PROVIDES: Final[tuple[Provides, ...]] = ("asn", "country")
ANSWERS: Final[tuple[Answer, ...]] = (
    "ip_score",
    "ip_list",
    "ip_asn",
    "ip_country",
    "ip_category",
)
SCOPES: Final[tuple[Scope, ...]] = ("proc", "sess", "txn", "req", "res")
FORWARDED_HEADERS: Final[tuple[ForwardedHeader, ...]] = ("x-forwarded-for", "forwarded")

MAX_SCORE: Final = 100
MAX_SOURCES: Final = 64
MIN_INTERVAL: Final = 60.0
"""The shortest time between two downloads of a feed, in seconds: its server is not ours."""
MAX_DEADLINE: Final = 10.0
"""The longest time that an answer of a DNSBL is waited for, in seconds."""

_DAY: Final = 86_400.0
_YEAR: Final = 366 * _DAY
_MIB: Final = 1024**2
_MAX_WEIGHT: Final = 100.0
_MAX_NUMBER: Final = 1e12
_MAX_CACHE: Final = 10_000_000
_MAX_PATHS: Final = 100
# RFC 1035, 2.3.4, less the longest reversed address (that of IPv6) and its dot.
_MAX_ZONE: Final = 253 - 64
CODES: Final = IPv4Network("127.0.0.0/8")
"""Addresses that a DNSBL answers with (RFC 5782, 2.1)."""
ERROR_CODES: Final = IPv4Network("127.255.255.0/24")
"""Those by which it refuses to answer: 127.255.255.255 to a client that asks too often."""
NEVER_LISTED: Final = IPv4Address("127.0.0.1")
"""The address that no DNSBL lists or answers with for a listing (RFC 5782, 2.1 and 5)."""

_NO_ARGUMENT: Final = re.compile(r"[\s=#\"'\\]")
# RFC 9110, 5.1 and 5.5.
_HEADER_NAME: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,255}")
_HEADER_VALUE: Final = re.compile(r"[!-~](?:[ -~]{0,8190}[!-~])?")
_OWN_HEADERS: Final = frozenset(
    (
        "accept-encoding",
        "connection",
        "content-length",
        "host",
        "if-modified-since",
        "if-none-match",
        "range",
        "transfer-encoding",
    )
)
_ASN: Final = re.compile("[Aa][Ss]([0-9]{1,10})")
_LABEL: Final = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
_NAT64_PREFIXES: Final = (32, 40, 48, 56, 64, 96)  # RFC 6052, 2.2
_ZONE: Final = re.compile(r"(?:[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?\.)*[A-Za-z0-9-]+")


@dataclass(frozen=True, slots=True)
class FeedSettings:
    """How a source with a URL is downloaded.

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
        ca_file: certificates, in PEM, of the authorities to trust instead of the system's.
    """

    interval: float = 3600.0
    timeout: float = 60.0
    max_size: int = 256 * _MIB
    max_shrink: float = 50.0
    may_be_empty: bool = False
    allow_html: bool = False
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    ca_file: str | None = None

    def __post_init__(self) -> None:
        check_range("interval", self.interval, MIN_INTERVAL, _YEAR)
        check_range("timeout", self.timeout, 0.1, 3600)
        check_range("max-size", self.max_size, 1024, 1024 * _MIB)
        check_range("max-shrink", self.max_shrink, 0, 100)
        _check_headers(self.headers)


@dataclass(frozen=True, slots=True)
class DnsblSettings:
    """How a DNSBL is asked.

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
    deadline: float = 0.05
    nameservers: tuple[str, ...] = ()
    cache_size: int = 100_000
    min_ttl: float = 60.0
    max_ttl: float = 3600.0
    max_pending: int = 1000
    key: str | None = field(default=None, repr=False)
    octet: int | None = None
    best: float = 100.0
    worst: float = 0.0
    test: str | None = "127.0.0.2"

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
        _check_scale(self.best, self.worst)
        if self.test is not None:
            _check_test(self.test)


@dataclass(frozen=True, slots=True)
class DatabaseSettings:
    """What is looked up in a MaxMind DB.

    Attributes:
        field: the way to the value, as "country.iso_code" or "traits.is_anonymous_proxy"; numbers
            are places in lists, from 0.
        provides: what the value is for `ip_asn` and `ip_country`; None for neither.
    """

    field: str
    provides: Provides | None = None

    def __post_init__(self) -> None:
        check_text("field", self.field)
        if not all(self.field.split(".")):
            raise ConfigurationError(f"field: {self.field!r} has an empty name between its dots")


@dataclass(frozen=True, slots=True)
class SourceSettings:
    """A source of entries.

    Attributes:
        name: for `ip_list`, logs and counters, up to 255 printable characters.
        type: what it is.
        path: the file of a list or database that has no URL, and else None.
        url: where the file comes from, http:// or https://, perhaps with a user and a password;
            and else None.
        score: of an entry that has no score of its own.
        weight: of its say, where weights are summed up, 0 to 100.
        category: of an entry that has none of its own.
        scores: what scores categories have, by their names: those in a list's column, values of a
            database, addresses that a DNSBL answers with (see `parse_codes`).
        allow: its entries are never blocked; it has neither score nor weight.
        failed: what it says when it cannot be asked or was never loaded: "open" is nothing,
            "closed" is that it has every address.
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
    path: str | None = None
    url: str | None = None
    score: int = 0
    weight: float = 1.0
    category: str = ""
    scores: tuple[tuple[str, int], ...] = ()
    allow: bool = False
    failed: Failed = "open"
    mode: Mode = "enforce"
    max_age: float | None = None
    columns: Columns | None = None
    select: tuple[str, ...] = ()
    database: DatabaseSettings | None = None
    dnsbl: DnsblSettings | None = None
    feed: FeedSettings = field(default_factory=FeedSettings)
    limits: ListLimits = field(default_factory=ListLimits)

    def __post_init__(self) -> None:
        check_text("name", self.name)
        choice("type", self.type, SOURCE_TYPES)
        check_range("score", self.score, 0, MAX_SCORE)
        check_range("weight", self.weight, 0, _MAX_WEIGHT)
        if self.category:
            check_text("category", self.category)
        for name, score in self.scores:
            check_range(f"scores.{name[:80]}", score, 0, MAX_SCORE)
            if self.dnsbl is not None:
                parse_codes(name)
        choice("failed", self.failed, FAILED)
        choice("mode", self.mode, MODES)
        if self.max_age is not None:
            check_range("max-age", self.max_age, 1, _YEAR)
        if self.columns is not None:
            _check_columns(self.columns)
        if self.type == "json":
            _check_select(self.select)
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
            _check_url(self.url, self.feed)


@dataclass(frozen=True, slots=True)
class PolicySettings:
    """How the says of the sources make a score.

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
        choice("policy.combine", self.combine, COMBINE)
        check_range("policy.unknown", self.unknown, 0, MAX_SCORE)


@dataclass(frozen=True, slots=True)
class AnswerSettings:
    """What is answered.

    Attributes:
        variables: which variables are set.
        scope: their scope.
    """

    variables: tuple[Answer, ...] = ("ip_score",)
    scope: Scope = "sess"

    def __post_init__(self) -> None:
        if not self.variables:
            raise ConfigurationError("answers.variables: there is none")
        for name in self.variables:
            choice("answers.variables", name, ANSWERS)
        choice("answers.scope", self.scope, SCOPES)


@dataclass(frozen=True, slots=True)
class ForwardedSettings:
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
        choice("forwarded.header", self.header, FORWARDED_HEADERS)
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


@dataclass(frozen=True, slots=True)
class BanSettings:
    """Bans at run time.

    Attributes:
        path: the SQLite file they are kept in; None for no bans.
        max_time: the longest ban, a second to a year.
        message: whether HAProxy may ban with the message "ban-client-ip".
        ipv6_prefix: the length of the prefix that this bans of an IPv6 address, 48 to 128.
    """

    path: str | None = None
    max_time: float = 30 * _DAY
    message: bool = False
    ipv6_prefix: int = 64

    def __post_init__(self) -> None:
        check_range("bans.max-time", self.max_time, 1, _YEAR)
        check_range("bans.ipv6-prefix", self.ipv6_prefix, 48, 128)
        if self.message and self.path is None:
            raise ConfigurationError("bans.message: there is no bans.path to keep bans in")


@dataclass(frozen=True, slots=True)
class ControlSettings:
    """The control socket.

    Attributes:
        path: of the Unix socket; None for none.
        mode: its permissions.
        owner: name or number of the user that it belongs to; None for that of the process.
        group: name or number of its group; None for that of the process.
        is_default: whether nobody named the path: its folder is made, and the service goes on
            where it cannot be listened on.
    """

    path: str | None = None
    mode: int = 0o600
    owner: str | None = None
    group: str | None = None
    is_default: bool = False

    def __post_init__(self) -> None:
        if self.mode & ~0o777:
            raise ConfigurationError(f"control.mode: {self.mode:o} is not 0 to 777, in octal")


@dataclass(frozen=True, slots=True)
class AuditSettings:
    """Audit log: JSON lines for bans, their ends, and low scores.

    Attributes:
        path: the file; None for none.
        threshold: verdicts with a lower score have a line, 0 (none) to 101 (all).
        sample: percent of these that have, 0 to 100.
    """

    path: str | None = None
    threshold: int = 0
    sample: float = 100.0

    def __post_init__(self) -> None:
        check_range("audit.threshold", self.threshold, 0, MAX_SCORE + 1)
        check_percent("audit.sample", self.sample)
        if self.threshold and self.path is None:
            raise ConfigurationError("audit.threshold: there is no audit.path to write to")


@dataclass(frozen=True, slots=True)
class ReputationSettings:
    """The whole service.

    Attributes:
        sources: up to 64, each with a name of its own.
        policy: how they make a score.
        answers: what is answered.
        forwarded: who is believed about whom.
        bans: bans at run time.
        control: the control socket.
        cache: the folder in which downloads are kept; None if no source has a URL.
        audit: the audit log.
    """

    sources: tuple[SourceSettings, ...] = ()
    policy: PolicySettings = field(default_factory=PolicySettings)
    answers: AnswerSettings = field(default_factory=AnswerSettings)
    forwarded: ForwardedSettings = field(default_factory=ForwardedSettings)
    bans: BanSettings = field(default_factory=BanSettings)
    control: ControlSettings = field(default_factory=ControlSettings)
    cache: str | None = None
    audit: AuditSettings = field(default_factory=AuditSettings)

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


def parse_ranges(option: str, texts: tuple[str, ...]) -> tuple[Range, ...]:
    """Read addresses, networks and ranges.

    Raises:
        ConfigurationError: one is none of these; the text names the option and the place in it,
            from 1.
    """
    ranges = []
    for number, text in enumerate(texts, 1):
        try:
            ranges.append(parse_range(text))
        except ValueError as error:
            raise ConfigurationError(f"{option}[{number}]: {error}") from None
    return tuple(ranges)


def parse_nat64(option: str, texts: tuple[str, ...]) -> tuple[IPv6Network, ...]:
    """Read the prefixes of translators.

    Raises:
        ConfigurationError: one is not a prefix of RFC 6052; the text names the option and the
            place in it, from 1.
    """
    prefixes = []
    for number, text in enumerate(texts, 1):
        try:
            prefix = IPv6Network(text)
            if prefix.prefixlen not in _NAT64_PREFIXES:
                raise ValueError
        except ValueError:
            raise ConfigurationError(
                f"{option}[{number}]: {text[:80]!r} is not an IPv6 network with a prefix of "
                f"{', '.join(map(str, _NAT64_PREFIXES))} bits and no bits set behind it"
            ) from None
        prefixes.append(prefix)
    return tuple(prefixes)


def bare_asn(text: str) -> str:
    """Return the number of an autonomous system without the letters before it, as in "AS15169"."""
    match = _ASN.fullmatch(text)
    return text if match is None else match[1]


def parse_codes(text: str) -> tuple[int, int]:
    """Return the first and the last address that a DNSBL may answer with: a key of `scores`.

    Args:
        text: an address "127.0.0.2", a range "127.0.0.4-127.0.0.7" or a network "127.0.0.4/30".

    Raises:
        ConfigurationError: it is none of these, or is not of 127.0.0.0/8.
    """
    try:
        version, first, last, masked = parse_range(text)
    except ValueError:
        version, first, last, masked = 0, 0, 0, False
    low, high = int(CODES.network_address), int(CODES.broadcast_address)
    if version != 4 or masked or not low <= first <= last <= high:
        raise ConfigurationError(
            f"scores: {text[:80]!r} is not an address of {CODES}, nor a range or network of them"
        )
    if first == last == int(NEVER_LISTED) or first >= int(ERROR_CODES.network_address):
        raise ConfigurationError(
            f"scores: {text[:80]!r} is a DNSBL's refusal to answer, never a listing; leave it out"
        )
    return first, last


def _check_test(text: str) -> None:
    try:
        number = parse_number(text)
    except ValueError as error:
        raise ConfigurationError(
            f"test: {error}; give one that the zone always lists, or false"
        ) from None
    if number == number_of(NEVER_LISTED):
        raise ConfigurationError(f"test: {text!r} is never listed (RFC 5782, 5); give another one")


def _check_scale(best: float, worst: float) -> None:
    check_range("best", best, -_MAX_NUMBER, _MAX_NUMBER)
    check_range("worst", worst, -_MAX_NUMBER, _MAX_NUMBER)
    if best == worst:
        raise ConfigurationError(f"best: {best!r} is worst too")


def _check_headers(headers: tuple[tuple[str, str], ...]) -> None:
    """Refuse headers that are malformed, or not the user's choice, and show no values."""
    names: set[str] = set()
    for name, value in headers:
        if _HEADER_NAME.fullmatch(name) is None:
            raise ConfigurationError(f"headers: {name[:80]!r} is not the name of a header")
        option = f"headers.{name[:80]}"
        if name.lower() in _OWN_HEADERS:
            raise ConfigurationError(f"{option}: it cannot be chosen")
        if name.lower() in names:
            raise ConfigurationError(f"{option}: it is there twice")
        names.add(name.lower())
        if _HEADER_VALUE.fullmatch(value) is None:
            raise ConfigurationError(
                f"{option}: its value is not 1 to 8192 visible characters of ASCII and spaces"
            )


def _check_url(url: str, feed: FeedSettings) -> None:
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        good = False
    if not good or not url.isascii() or not url.isprintable() or " " in url:
        raise ConfigurationError(f"url: {shown_text(url)[:80]!r} is not an http:// or https:// URL")
    if "@" in parts.netloc and any(name.lower() == "authorization" for name, _ in feed.headers):
        raise ConfigurationError("headers.Authorization: the url has a user, too; give one of them")


def _check_columns(columns: Columns) -> None:
    for column, values in columns.filter:
        if not values:
            raise ConfigurationError(f"filter.{str(column)[:80]}: there is no value in it")
    for place in columns.places():
        if isinstance(place, int):
            check_range("columns", place, 1, 1000)
        else:
            check_text("columns", place)
    if len(columns.delimiter) != 1 or columns.delimiter in '"\r\n':
        raise ConfigurationError(f"delimiter: {columns.delimiter[:80]!r} is not one character")
    _check_scale(columns.best, columns.worst)


def _check_select(paths: tuple[str, ...]) -> None:
    if not 1 <= len(paths) <= _MAX_PATHS:
        raise ConfigurationError(f"select: it has {len(paths)} paths, not 1 to {_MAX_PATHS}")
    for number, path in enumerate(paths, 1):
        check_text(f"select[{number}]", path)
        try:
            JsonPath(path)
        except ValueError as error:
            raise ConfigurationError(f"select[{number}]: {error}") from None
