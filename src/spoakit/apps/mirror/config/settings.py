"""What a mirror can be told, checked as soon as it is said.

Times are in seconds, sizes in bytes. A value out of its range is a `ConfigurationError` that names
the option, the value and the range. Options have the names of the configuration file's keys
(docs/reference/mirror-configuration.md).
"""

import os
from dataclasses import dataclass, field
from typing import Final, Literal

from spoakit.apps.checks import check_percent, check_range, check_text, choice
from spoakit.apps.mirror.config import validators
from spoakit.apps.mirror.patterns import Pattern
from spoakit.apps.mirror.url import TargetURL
from spoakit.apps.values import parse_nameserver
from spoakit.exceptions import ConfigurationError

Truncated = Literal["skip", "send", "mark"]
TruncatedSuspect = Literal["send", "skip"]
Body = Literal["keep", "none"]
HttpVersion = Literal["auto", "1.1", "2"]
Overflow = Literal["drop-oldest", "drop-newest"]
LogFormat = Literal["text", "json"]

TRUNCATED: Final[tuple[Truncated, ...]] = ("skip", "send", "mark")
TRUNCATED_SUSPECT: Final[tuple[TruncatedSuspect, ...]] = ("send", "skip")
BODIES: Final[tuple[Body, ...]] = ("keep", "none")
HTTP_VERSIONS: Final[tuple[HttpVersion, ...]] = ("auto", "1.1", "2")
OVERFLOWS: Final[tuple[Overflow, ...]] = ("drop-oldest", "drop-newest")
LOG_FORMATS: Final[tuple[LogFormat, ...]] = ("text", "json")

MAX_TARGETS: Final = 100
MAX_CONNECTIONS: Final = 10_000
MAX_QUEUE_LENGTH: Final = 10_000_000
MIN_QUEUE_BYTES: Final = 1024
MAX_QUEUE_BYTES: Final = 16 * 1024**3
MAX_BODY: Final = 16 * 1024**3
MIN_RATE: Final = 0.001
MAX_RATE: Final = 10_000_000
MAX_PROCESSING_DELAY: Final = 1
_SHORTEST: Final = 0.001
_DAY: Final = 86400


@dataclass(frozen=True, slots=True)
class Selection:
    """Which requests a target gets: those that meet all of it. See `selection.Selector`.

    Attributes:
        sample: percent of the requests: 0, or 0.001 to 100.
        sample_by: what makes samples coherent: "" (each request by itself), "src" or "key" (the
            arguments arg_src and arg_key), "cookie:NAME" or "header:NAME". Requests with equal
            values are mirrored all or none; those without the value are sampled one by one.
        methods: any of these, in their case; empty for all.
        path: a regular expression (see `patterns.Pattern`) that is searched for in the path with
            its query.
        hosts: any of these, without a port, made lower case; "*.example.com" is any name below
            it, an IPv6 address stands in brackets. Empty for all.
        headers: names, made lower case, and the regular expression that must be found in the value
            of a field of that name.
    """

    sample: float = 100.0
    sample_by: str = ""
    methods: tuple[str, ...] = ()
    path: str | None = None
    hosts: tuple[str, ...] = ()
    headers: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        check_percent("sample", self.sample)
        _check_sample_by(self.sample_by)
        for method in self.methods:
            validators.check_token("match.methods", method)
        if self.path is not None:
            Pattern("match.path", self.path)
        for host in self.hosts:
            validators.check_host("match.host", host.removeprefix("*."))
        for name, expression in self.headers:
            validators.check_token("match.header", name)
            Pattern(f"match.header.{name}", expression)
        object.__setattr__(self, "hosts", tuple(host.lower() for host in self.hosts))
        lowered = tuple((name.lower(), expression) for name, expression in self.headers)
        object.__setattr__(self, "headers", lowered)


@dataclass(frozen=True, slots=True)
class Rewrite:
    r"""How a copy differs from its original.

    Fields that frame a message or concern one connection (Content-Length, Transfer-Encoding,
    Connection and so on) are the mirror's own and cannot be set or added, nor can Host, which has
    its own attribute.

    Attributes:
        host: "keep" (the original's), "target" (that of the URL), or a name to send, perhaps with
            a port.
        remove: names of header fields to leave out.
        set: fields that replace those of their names; each name once.
        add: fields put behind all others.
        strip_secrets: leave out Authorization, Cookie, Proxy-Authorization and the like.
        strip_prefix: taken away from the front of the path, where it stands there whole. Both
            prefixes begin with a slash; slashes at their ends are taken away.
        path_pattern, path_replacement: a regular expression and what replaces its first match in
            the path (groups as \1), after `strip_prefix` and before the URL's base path; see
            `patterns.Pattern`.
        add_prefix: put in front of the path, behind the URL's base path.
        marker: a field that tells a copy from an original, as ("X-Mirrored", "1"); requests that
            have it are not copied. None for none.
        forwarded_for: append arg_src to X-Forwarded-For.
        request_id: send arg_id as X-Request-Id, where the request has none.
        truncated: what becomes of a body that HAProxy's buffer cut: "skip", "send" it as it is, or
            "mark" it with X-Mirror-Truncated (the size that was missing, or "unknown").
        truncated_suspect: what becomes of a body that is probably not all of it (see
            `OutgoingRequest.suspect`): "send" or "skip".
        body: "keep" it, or "none": copies have no bodies, and none is missing.
        max_body: requests with a larger body are not copied, 0 to 16 GiB; None for any size.
    """

    host: str = "keep"
    remove: tuple[str, ...] = ()
    set: tuple[tuple[str, str], ...] = ()
    add: tuple[tuple[str, str], ...] = ()
    strip_secrets: bool = False
    strip_prefix: str = ""
    path_pattern: str | None = None
    path_replacement: str = ""
    add_prefix: str = ""
    marker: tuple[str, str] | None = None
    forwarded_for: bool = False
    request_id: bool = False
    truncated: Truncated = "skip"
    truncated_suspect: TruncatedSuspect = "send"
    body: Body = "keep"
    max_body: int | None = None

    def __post_init__(self) -> None:
        validators.check_authority("host", self.host)
        for name in self.remove:
            validators.check_removable("headers.remove", name)
        for name, value in self.set:
            validators.check_field("headers.set", name, value)
        validators.check_distinct("headers.set", (name for name, _ in self.set))
        for name, value in self.add:
            validators.check_field("headers.add", name, value)
        if self.marker is not None:
            validators.check_field("marker", *self.marker)
        if self.path_pattern is not None:
            Pattern("path.pattern", self.path_pattern, self.path_replacement)
        elif self.path_replacement:
            raise ConfigurationError("path.replace: there is no path.pattern that it is for")
        choice("truncated", self.truncated, TRUNCATED)
        choice("truncated-suspect", self.truncated_suspect, TRUNCATED_SUSPECT)
        choice("body", self.body, BODIES)
        if self.max_body is not None:
            check_range("max-body", self.max_body, 0, MAX_BODY)
        stripped = validators.clean_prefix("path.strip-prefix", self.strip_prefix)
        object.__setattr__(self, "strip_prefix", stripped)
        added = validators.clean_prefix("path.add-prefix", self.add_prefix)
        object.__setattr__(self, "add_prefix", added)


@dataclass(frozen=True, slots=True)
class QueueSettings:
    """Requests that wait for a connection.

    Attributes:
        length: how many, 1 to 10,000,000.
        bytes: their size altogether, 1 KiB to 16 GiB. A larger one waits alone or not at all.
        overflow: which to drop when there are more: "drop-oldest", since the latest traffic is the
            one worth copying, or "drop-newest".
        rate: requests a second that are taken at most, 0.001 to 10,000,000; None for all.
        max_age: seconds after which a request that still waits is dropped, up to a day; 0 for none.
    """

    length: int = 65_536
    bytes: int = 32 * 1024 * 1024
    overflow: Overflow = "drop-oldest"
    rate: float | None = None
    max_age: float = 0.0

    def __post_init__(self) -> None:
        check_range("queue.max-age", self.max_age, 0, _DAY)
        check_range("queue.length", self.length, 1, MAX_QUEUE_LENGTH)
        check_range("queue.bytes", self.bytes, MIN_QUEUE_BYTES, MAX_QUEUE_BYTES)
        choice("queue.overflow", self.overflow, OVERFLOWS)
        if self.rate is not None:
            check_range("rate", self.rate, MIN_RATE, MAX_RATE)


@dataclass(frozen=True, slots=True)
class PoolSettings:
    """Connections to a target: how many, how long, from where.

    Attributes:
        connections: the most open at a time, 1 to 10,000; made less where there are not as many
            local ports.
        idle: an unused connection is closed after it, 0.001 s to a day.
        lifetime: a connection is closed after it, and the name is looked up anew, 0.001 s to a
            day.
        interface: what to connect from: an interface's name, an address or a host name; None
            leaves it to the system.
        local_ports: first and last of the ports to connect from, 1 to 65535; None leaves it to the
            system. Each open connection needs one of its own, whatever its worker or target.
    """

    connections: int = 64
    idle: float = 60.0
    lifetime: float = 300.0
    interface: str | None = None
    local_ports: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        check_range("connections", self.connections, 1, MAX_CONNECTIONS)
        _check_time("keep-alive", self.idle)
        _check_time("lifetime", self.lifetime)
        if self.interface is not None:
            check_text("interface", self.interface)
        if self.local_ports is not None:
            validators.check_ports("local-ports", *self.local_ports)
            first, last = self.local_ports
            object.__setattr__(self, "connections", min(self.connections, last - first + 1))


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long a target may take, and how long one that failed is left alone.

    All are 0.001 s to a day.

    Attributes:
        connect: for resolving the name, connecting and TLS.
        first_byte: from sending a request to the first byte of its response.
        total: from sending a request to the end of its response.
        min_backoff: the pause before the first attempt to reach a target that failed; it doubles
            with each further failure up to `max_backoff`, and chance makes it up to half shorter.
        max_backoff: the longest pause, at least `min_backoff`.
    """

    connect: float = 5.0
    first_byte: float = 10.0
    total: float = 10.0
    min_backoff: float = 0.1
    max_backoff: float = 10.0

    def __post_init__(self) -> None:
        _check_time("timeouts.connect", self.connect)
        _check_time("timeouts.first-byte", self.first_byte)
        _check_time("timeouts.total", self.total)
        _check_time("timeouts.min-backoff", self.min_backoff)
        _check_time("timeouts.max-backoff", self.max_backoff)
        if self.min_backoff > self.max_backoff:
            raise ConfigurationError(
                f"timeouts.min-backoff: {self.min_backoff!r} is above "
                f"timeouts.max-backoff, {self.max_backoff!r}"
            )


@dataclass(frozen=True, slots=True)
class TlsSettings:
    """TLS to a target with an https:// URL; of no effect on others.

    Attributes:
        verify: whether the target must show a certificate that is valid and its own.
        ca_file: certificates, in PEM, of those to trust instead of the system's.
        certificate: our own certificate, in PEM, with those that lead to its root behind it.
        key: its key, in PEM; None if it is in the file of the certificate.
        server_name: the host name to ask for (SNI) and to verify, or the address to verify, IPv6
            without brackets; None for the URL's.
        versions: what tells the files from others by the same names, so that settings with a
            renewed certificate are other settings.
    """

    verify: bool = True
    ca_file: str | None = None
    certificate: str | None = None
    key: str | None = None
    server_name: str | None = None
    versions: tuple[tuple[int, ...] | None, ...] = field(init=False)

    def __post_init__(self) -> None:
        files = (self.ca_file, self.certificate, self.key)
        for option, path in zip(("ca-file", "certificate", "key"), files, strict=True):
            if path is not None:
                validators.check_file_name(f"tls.{option}", path)
        object.__setattr__(self, "versions", tuple(_version(path) for path in files))
        if self.key is not None and self.certificate is None:
            raise ConfigurationError("tls.key: there is no tls.certificate that it is for")
        if self.server_name is not None:
            validators.check_server_name("tls.server-name", self.server_name)


@dataclass(frozen=True, slots=True)
class TargetSettings:
    """One target, per worker.

    Attributes:
        url: where the copies go.
        name: for logs and counters, up to 255 printable characters; the URL where it is "".
        http: the version of HTTP: "1.1", "2" (which with an http:// URL takes prior knowledge), or
            "auto" for 2 where the target negotiates it and else 1.1.
        selection: which requests it gets.
        rewrite: what is changed in them.
        queue: what waits for a connection.
        pool: the connections.
        timeouts: how long it may take.
        tls: how it is trusted.
        nameservers: what to look its name up with ("10.0.0.53", "[::1]:5353"); empty for those of
            the system.
    """

    url: TargetURL
    name: str = ""
    http: HttpVersion = "auto"
    selection: Selection = field(default_factory=Selection)
    rewrite: Rewrite = field(default_factory=Rewrite)
    queue: QueueSettings = field(default_factory=QueueSettings)
    pool: PoolSettings = field(default_factory=PoolSettings)
    timeouts: Timeouts = field(default_factory=Timeouts)
    tls: TlsSettings = field(default_factory=TlsSettings)
    nameservers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.name:
            object.__setattr__(self, "name", str(self.url))
        elif self.name != str(self.url):
            check_text("name", self.name)
        choice("http", self.http, HTTP_VERSIONS)
        for server in self.nameservers:
            parse_nameserver(server)
        if self.url.authorization:
            self._check_authorization()

    def _check_authorization(self) -> None:
        """Refuse a second Authorization beside the one that the URL's user and password are."""
        marker = () if self.rewrite.marker is None else (self.rewrite.marker,)
        options = {"headers.set": self.rewrite.set, "headers.add": self.rewrite.add}
        for option, fields in (options | {"marker": marker}).items():
            for name, _ in fields:
                if name.lower() == "authorization":
                    raise ConfigurationError(
                        f"{option}: {name!r} is what the user and password of url are sent as; "
                        "take one of the two away"
                    )


@dataclass(frozen=True, slots=True)
class LogSettings:
    """The access log.

    Attributes:
        format: "text", the lines of the C program, or "json", an object a line.
        sample: percent of the lines: 0, or 0.001 to 100; failures are always logged.
        quiet: no access log at all.
        buffered: gather lines for a tenth of a second before they are written.
        path: the file they are appended to; None for standard output.
    """

    format: LogFormat = "text"
    sample: float = 100.0
    quiet: bool = False
    buffered: bool = True
    path: str | None = None

    def __post_init__(self) -> None:
        choice("log.format", self.format, LOG_FORMATS)
        check_percent("log.sample", self.sample)
        if self.path is not None:
            validators.check_file_name("log.path", self.path)


@dataclass(frozen=True, slots=True)
class MirrorSettings:
    """The whole mirror.

    Attributes:
        targets: up to 100, each with a name of its own; without one, requests are ACKed and that
            is all.
        drain: at the stop, the seconds the queues have to be sent, 0 to a day.
        log: the access log.
        processing_delay: each message's ACK and copy wait so many seconds, 0 to 1.
    """

    targets: tuple[TargetSettings, ...] = field(default=())
    drain: float = 10.0
    log: LogSettings = field(default_factory=LogSettings)
    processing_delay: float = 0.0

    def __post_init__(self) -> None:
        check_range("drain", self.drain, 0, _DAY)
        check_range("processing-delay", self.processing_delay, 0, MAX_PROCESSING_DELAY)
        if len(self.targets) > MAX_TARGETS:
            raise ConfigurationError(
                f"target: there are {len(self.targets)}, more than {MAX_TARGETS}"
            )
        _check_names(self.targets)


def _version(path: str | None) -> tuple[int, ...] | None:
    if path is None:
        return None
    try:
        status = os.stat(path)
    except OSError:
        return None  # whoever reads it will say so
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _check_time(option: str, seconds: float) -> None:
    check_range(option, seconds, _SHORTEST, _DAY)


def _check_sample_by(text: str) -> None:
    if text in ("", "src", "key"):
        return
    kind, colon, name = text.partition(":")
    if kind not in ("cookie", "header") or not colon:
        raise ConfigurationError(
            f"sample-by: {text[:80]!r} is not one of src, key, cookie:NAME and header:NAME"
        )
    validators.check_token("sample-by", name)


def _check_names(targets: tuple[TargetSettings, ...]) -> None:
    numbers: dict[str, int] = {}
    for number, target in enumerate(targets, 1):
        first = numbers.setdefault(target.name, number)
        if first != number:
            raise ConfigurationError(
                f"target[{number}].name: {target.name!r} is that of target[{first}] too; "
                "give each a name of its own"
            )
