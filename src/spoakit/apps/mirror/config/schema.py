"""Settings of the mirror: a class for each table of its configuration file.

An attribute is a key, described here alone; the options of the command line set the same ones.
Times are in seconds, sizes in bytes. A value that is not allowed is a `ConfigurationError` that
names the key, the value and the range (docs/reference/mirror-configuration.md).
"""

import os
from functools import cached_property
from typing import Annotated, Final, Literal, TypeAlias, get_args

import msgspec
from msgspec.structs import force_setattr

from spoakit.apps.checks import check_percent, check_range, check_text, choice
from spoakit.apps.mirror.config import validators
from spoakit.apps.mirror.config.units import parse_marker, parse_ports
from spoakit.apps.mirror.patterns import Pattern
from spoakit.apps.mirror.url import TargetURL
from spoakit.apps.toml import ExistingFile, FileName, Notation, Pairs, Seconds, Size, Table
from spoakit.apps.values import parse_nameserver
from spoakit.exceptions import ConfigurationError

Truncated = Literal["skip", "send", "mark"]
TruncatedSuspect = Literal["send", "skip"]
Body = Literal["keep", "none"]
HttpVersion = Literal["auto", "1.1", "2"]
Overflow = Literal["drop-oldest", "drop-newest"]
Secrets = Literal["keep", "strip"]
LogFormat = Literal["text", "json"]

Url: TypeAlias = Annotated[TargetURL, Notation(str, lambda text, _: TargetURL.parse(text))]
Marker: TypeAlias = Annotated[
    tuple[str, str], Notation(str | bool, lambda value, _: parse_marker(value))
]
Ports: TypeAlias = Annotated[
    tuple[int, int], Notation(str | int, lambda value, _: parse_ports(value))
]

MAX_TARGETS: Final = 100
MAX_CONNECTIONS: Final = 10_000
MAX_QUEUE_LENGTH: Final = 10_000_000
MIN_QUEUE_BYTES: Final = 1024
MAX_QUEUE_BYTES: Final = 16 * 1024**3
MAX_BODY: Final = 16 * 1024**3
MIN_RATE: Final = 0.001
MAX_RATE: Final = 10_000_000
MAX_PROCESSING_DELAY: Final = 1


class MatchSettings(Table, frozen=True):
    """Rules that a request must meet, all of them, to be copied. See `selection.Selector`.

    Attributes:
        methods: any of these, in their case; empty for all.
        path: a regular expression (see `patterns.Pattern`) that is searched for in the path with
            its query; None for all.
        host: any of these, without a port, made lower case; "*.example.com" is any name below
            it, an IPv6 address stands in brackets. Empty for all.
        header: names, made lower case, and the regular expression that must be found in the value
            of a field of that name.
    """

    methods: tuple[str, ...] = ()
    path: str | None = None
    host: tuple[str, ...] = ()
    header: Pairs = ()

    def __post_init__(self) -> None:
        for method in self.methods:
            validators.check_token("match.methods", method)
        if self.path is not None:
            Pattern("match.path", self.path)
        for host in self.host:
            validators.check_host("match.host", host.removeprefix("*."))
        for name, expression in self.header:
            validators.check_token("match.header", name)
            Pattern(f"match.header.{name}", expression)
        force_setattr(self, "host", tuple(host.lower() for host in self.host))
        force_setattr(self, "header", tuple((name.lower(), value) for name, value in self.header))


class HeaderSettings(Table, frozen=True):
    """Changes of a copy's header fields.

    Fields that frame a message or concern one connection (Content-Length, Transfer-Encoding,
    Connection and so on) are the mirror's own and cannot be set or added, nor can Host, for which
    there is `TargetSettings.host`.

    Attributes:
        set: fields that replace those of their names; each name once.
        add: fields put behind all others.
        remove: names of fields to leave out.
        secrets: "keep", or "strip" to leave out Authorization, Cookie, Proxy-Authorization and
            the like.
    """

    set: Pairs = ()
    add: Pairs = ()
    remove: tuple[str, ...] = ()
    secrets: Secrets = "keep"

    def __post_init__(self) -> None:
        for name in self.remove:
            validators.check_removable("headers.remove", name)
        for name, value in self.set:
            validators.check_field("headers.set", name, value)
        validators.check_distinct("headers.set", (name for name, _ in self.set))
        for name, value in self.add:
            validators.check_field("headers.add", name, value)
        choice("headers.secrets", self.secrets, get_args(Secrets))


class PathSettings(Table, frozen=True):
    r"""Changes of a copy's path.

    Both prefixes begin with a slash; slashes at their ends are taken away.

    Attributes:
        strip_prefix: taken away from the front of the path, where it stands there whole.
        pattern: a regular expression (see `patterns.Pattern`), whose first match is replaced, after
            `strip_prefix` and before the URL's base path; None for none.
        replace: the replacement, with groups as \1.
        add_prefix: put in front of the path, behind the URL's base path.
    """

    strip_prefix: str = ""
    pattern: str | None = None
    replace: str = ""
    add_prefix: str = ""

    def __post_init__(self) -> None:
        if self.pattern is not None:
            Pattern("path.pattern", self.pattern, self.replace)
        elif self.replace:
            raise ConfigurationError("path.replace: there is no path.pattern that it is for")
        stripped = validators.clean_prefix("path.strip-prefix", self.strip_prefix)
        force_setattr(self, "strip_prefix", stripped)
        added = validators.clean_prefix("path.add-prefix", self.add_prefix)
        force_setattr(self, "add_prefix", added)


class QueueSettings(Table, frozen=True):
    """Requests that wait for a connection.

    Attributes:
        length: how many, 1 to 10,000,000.
        bytes: their size altogether, 1 KiB to 16 GiB. A larger one waits alone or not at all.
        overflow: which to drop when there are more: "drop-oldest", since the latest traffic is the
            one worth copying, or "drop-newest".
        max_age: seconds after which a request that still waits is dropped, up to a day; 0 for none.
    """

    length: int = 65_536
    bytes: Size = 32 * 1024 * 1024
    overflow: Overflow = "drop-oldest"
    max_age: Seconds = 0.0

    def __post_init__(self) -> None:
        check_range("queue.max-age", self.max_age, 0, validators.DAY)
        check_range("queue.length", self.length, 1, MAX_QUEUE_LENGTH)
        check_range("queue.bytes", self.bytes, MIN_QUEUE_BYTES, MAX_QUEUE_BYTES)
        choice("queue.overflow", self.overflow, get_args(Overflow))


class Timeouts(Table, frozen=True):
    """Times that a target may take, and for which one that failed is left alone.

    All are 0.001 s to a day.

    Attributes:
        connect: for resolving the name, connecting and TLS.
        first_byte: from sending a request to the first byte of its response.
        total: from sending a request to the end of its response.
        min_backoff: the pause before the first attempt to reach a target that failed; it doubles
            with each further failure up to `max_backoff`, and chance makes it up to half shorter.
        max_backoff: the longest pause, at least `min_backoff`.
    """

    connect: Seconds = 5.0
    first_byte: Seconds = 10.0
    total: Seconds = 10.0
    min_backoff: Seconds = 0.1
    max_backoff: Seconds = 10.0

    def __post_init__(self) -> None:
        validators.check_time("timeouts.connect", self.connect)
        validators.check_time("timeouts.first-byte", self.first_byte)
        validators.check_time("timeouts.total", self.total)
        validators.check_time("timeouts.min-backoff", self.min_backoff)
        validators.check_time("timeouts.max-backoff", self.max_backoff)
        if self.min_backoff > self.max_backoff:
            raise ConfigurationError(
                f"timeouts.min-backoff: {self.min_backoff!r} is above "
                f"timeouts.max-backoff, {self.max_backoff!r}"
            )


def _version(path: str | None) -> tuple[int, ...] | None:
    if path is None:
        return None
    try:
        status = os.stat(path)
    except OSError:
        return None  # an error where it is read
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


class TlsSettings(Table, frozen=True, dict=True):
    """TLS to a target with an https:// URL; of no effect on others.

    Settings with a renewed certificate are other settings, although the names are the same.

    Attributes:
        verify: whether the target must show a certificate that is valid and its own.
        ca_file: certificates, in PEM, of those to trust instead of the system's.
        certificate: our own certificate, in PEM, with those that lead to its root behind it.
        key: its key, in PEM; None if it is in the file of the certificate.
        server_name: the host name to ask for (SNI) and to verify, or the address to verify, IPv6
            without brackets; None for the URL's.
    """

    verify: bool = True
    ca_file: ExistingFile | None = None
    certificate: ExistingFile | None = None
    key: ExistingFile | None = None
    server_name: str | None = None

    def __post_init__(self) -> None:
        for option, path in zip(("ca-file", "certificate", "key"), self._files, strict=True):
            if path is not None:
                validators.check_file_name(f"tls.{option}", path)
        if self.key is not None and self.certificate is None:
            raise ConfigurationError("tls.key: there is no tls.certificate that it is for")
        if self.server_name is not None:
            validators.check_server_name("tls.server-name", self.server_name)
        _ = self.versions  # of the files as they are now

    @property
    def _files(self) -> tuple[str | None, ...]:
        return self.ca_file, self.certificate, self.key

    @cached_property
    def versions(self) -> tuple[tuple[int, ...] | None, ...]:
        """Versions of the files on construction, which tell them from others of the same names."""
        return tuple(_version(path) for path in self._files)

    def __eq__(self, other: object) -> bool:
        # The versions are not a key, so that the struct does not compare them.
        return (
            isinstance(other, TlsSettings)
            and super().__eq__(other)
            and self.versions == other.versions
        )

    def __hash__(self) -> int:
        return super().__hash__()


class TargetSettings(Table, frozen=True):
    """A target, per worker.

    Attributes:
        url: where the copies go.
        name: for logs and counters, up to 255 printable characters; the URL where it is "".
        http: the version of HTTP: "1.1", "2" (which with an http:// URL takes prior knowledge), or
            "auto" for 2 where the target negotiates it and else 1.1.
        sample: percent of the requests: 0, or 0.001 to 100.
        sample_by: what makes samples coherent: "" (each request by itself), "src" or "key" (the
            arguments arg_src and arg_key), "cookie:NAME" or "header:NAME". Requests with equal
            values are mirrored all or none; those without the value are sampled one by one.
        match: rules for the requests that are copied.
        headers: changes of their header fields.
        host: "keep" (the original's), "target" (that of the URL), or a name to send, perhaps with
            a port.
        path: changes of their paths.
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
        timeouts: how long it may take.
        connections: the most open at a time, 1 to 10,000; made less where there are not as many
            local ports.
        keep_alive: seconds after which an unused connection is closed, 0.001 to a day.
        lifetime: seconds after which a connection is closed, and the name is looked up anew,
            0.001 to a day.
        interface: what to connect from: an interface's name, an address or a host name; None
            leaves it to the system.
        local_ports: first and last of the ports to connect from, 1 to 65535; None leaves it to the
            system. Each open connection needs one of its own, whatever its worker or target.
        queue: what waits for a connection.
        rate: requests a second that are taken at most, 0.001 to 10,000,000; None for all.
        tls: how it is trusted.
        nameservers: what to look its name up with ("10.0.0.53", "[::1]:5353"); empty for those of
            the system.
    """

    url: Url
    name: str = ""
    http: HttpVersion = "auto"
    sample: float = 100.0
    sample_by: str = ""
    match: MatchSettings = MatchSettings()
    headers: HeaderSettings = HeaderSettings()
    host: str = "keep"
    path: PathSettings = PathSettings()
    marker: Marker | None = None
    forwarded_for: bool = False
    request_id: bool = False
    truncated: Truncated = "skip"
    truncated_suspect: TruncatedSuspect = "send"
    body: Body = "keep"
    max_body: Size | None = None
    timeouts: Timeouts = Timeouts()
    connections: int = 64
    keep_alive: Seconds = 60.0
    lifetime: Seconds = 300.0
    interface: str | None = None
    local_ports: Ports | None = None
    queue: QueueSettings = QueueSettings()
    rate: float | None = None
    tls: TlsSettings = TlsSettings()
    nameservers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.name:
            force_setattr(self, "name", str(self.url))
        elif self.name != str(self.url):
            check_text("name", self.name)
        choice("http", self.http, get_args(HttpVersion))
        check_percent("sample", self.sample)
        validators.check_sample_by(self.sample_by)
        self._check_copy()
        self._check_connections()
        for server in self.nameservers:
            parse_nameserver(server)
        if self.url.authorization:
            self._check_authorization()

    def _check_copy(self) -> None:
        validators.check_authority("host", self.host)
        if self.marker is not None:
            validators.check_field("marker", *self.marker)
        choice("truncated", self.truncated, get_args(Truncated))
        choice("truncated-suspect", self.truncated_suspect, get_args(TruncatedSuspect))
        choice("body", self.body, get_args(Body))
        if self.max_body is not None:
            check_range("max-body", self.max_body, 0, MAX_BODY)

    def _check_connections(self) -> None:
        if self.rate is not None:
            check_range("rate", self.rate, MIN_RATE, MAX_RATE)
        check_range("connections", self.connections, 1, MAX_CONNECTIONS)
        validators.check_time("keep-alive", self.keep_alive)
        validators.check_time("lifetime", self.lifetime)
        if self.interface is not None:
            check_text("interface", self.interface)
        if self.local_ports is not None:
            validators.check_ports("local-ports", *self.local_ports)
            first, last = self.local_ports
            force_setattr(self, "connections", min(self.connections, last - first + 1))

    def _check_authorization(self) -> None:
        """Refuse a second Authorization beside the one that the URL's user and password are."""
        marker = () if self.marker is None else (self.marker,)
        options = {"headers.set": self.headers.set, "headers.add": self.headers.add}
        for option, fields in (options | {"marker": marker}).items():
            for name, _ in fields:
                if name.lower() == "authorization":
                    raise ConfigurationError(
                        f"{option}: {name!r} is what the user and password of url are sent as; "
                        "take one of the two away"
                    )


class LogSettings(Table, frozen=True):
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
    path: FileName | None = None

    def __post_init__(self) -> None:
        choice("log.format", self.format, get_args(LogFormat))
        check_percent("log.sample", self.sample)
        if self.path is not None:
            validators.check_file_name("log.path", self.path)


class MirrorSettings(Table, frozen=True):
    """The whole mirror.

    Attributes:
        targets: up to 100, each with a name of its own; without one, requests are ACKed and that
            is all.
        drain: at the stop, the seconds the queues have to be sent, 0 to a day.
        log: the access log.
        processing_delay: seconds that each message's ACK and copy wait, 0 to 1.
    """

    targets: tuple[TargetSettings, ...] = msgspec.field(default=(), name="target")
    drain: Seconds = 10.0
    log: LogSettings = LogSettings()
    processing_delay: Seconds = 0.0

    def __post_init__(self) -> None:
        check_range("drain", self.drain, 0, validators.DAY)
        check_range("processing-delay", self.processing_delay, 0, MAX_PROCESSING_DELAY)
        if len(self.targets) > MAX_TARGETS:
            raise ConfigurationError(
                f"target: there are {len(self.targets)}, more than {MAX_TARGETS}"
            )
        _check_names(self.targets)


def _check_names(targets: tuple[TargetSettings, ...]) -> None:
    numbers: dict[str, int] = {}
    for number, target in enumerate(targets, 1):
        first = numbers.setdefault(target.name, number)
        if first != number:
            raise ConfigurationError(
                f"target[{number}].name: {target.name!r} is that of target[{first}] too; "
                "give each a name of its own"
            )
