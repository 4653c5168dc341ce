"""Server settings, validated on construction.

A value out of its range raises a `ConfigurationError` with the option, the value and the range.
Sizes are in bytes, times in seconds.
"""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Final, Literal, get_args

from spoakit.exceptions import ConfigurationError
from spoakit.spop.constants import DEFAULT_MAX_MESSAGES, MIN_FRAME_SIZE

IPNetwork = IPv4Network | IPv6Network
LoopName = Literal["auto", "uvloop", "asyncio", "select", "poll", "epoll", "linuxaio"]

CAPABILITIES: Final = ("fragmentation", "pipelining", "async")
"""Names of all capabilities, for `ServerSettings.capabilities`."""
LOOPS: Final[tuple[LoopName, ...]] = get_args(LoopName)
"""Names of all event loops, for `ServerSettings.loop`; a system may lack some."""

MAX_FRAME_SIZE_CAP: Final = 256 * 1024 * 1024
"""Highest value of `Limits.frame_size_cap`, in bytes."""
MAX_REASSEMBLED_SIZE: Final = 1024 * 1024 * 1024
"""Highest value of `Limits.reassembled_size`, in bytes."""
MAX_WORKERS: Final = 1024
_DEFAULT_CONNECTIONS: Final = 4096
MAX_CONNECTIONS: Final = 1_000_000
"""Highest value of `Limits.connections`."""
MAX_IN_FLIGHT: Final = 1_000_000
"""Highest value of `Limits.in_flight`."""
MAX_FRAMES: Final = 1_000_000_000
"""Highest value of `Limits.frames`."""
MAX_MESSAGES: Final = 1_000_000
"""Highest value of `Limits.messages`."""
MAX_CONNECTION_AGE: Final = 30 * 86400.0
"""Highest value of `Limits.connection_age`, in seconds."""
# select(2) supports descriptors below 1024, and the process and its resources need some.
MAX_SELECT_CONNECTIONS: Final = 900
_DAY: Final = 86400
# sun_path holds 108 bytes on Linux and 104 on macOS, the final NUL included.
_MAX_UNIX_PATH: Final = 103
_TCP_URL: Final = re.compile(r"tcp://(?:\[([^\[\]/@?#\s]+)\]|([^\[\]:/@?#\s]+)):([0-9]{1,5})/?")


def _check(option: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ConfigurationError(f"{option} must be between {low} and {high}, got {value!r}")


def _check_path(option: str, path: str | None) -> None:
    if path == "":
        raise ConfigurationError(f"{option} must be a path, got an empty one")


def parse_network(text: str) -> IPNetwork:
    """Parse the value of `--allow`, an address or a CIDR network: "192.0.2.7", "2001:db8::/32".

    Raises:
        ConfigurationError: the text is neither, or has host bits set.
    """
    try:
        return ip_network(text)
    except ValueError as error:
        raise ConfigurationError(
            f"allow: {text!r} is neither an address nor a CIDR network: {error}"
        ) from None


@dataclass(frozen=True, slots=True)
class ListenTls:
    """TLS settings of the listening sockets; the files are PEM.

    Attributes:
        certificate: path of the certificate, with its chain.
        key: path of its key, which is not encrypted; None if it is in the certificate's file.
        ca: path of the authorities that must have signed a client's certificate; None does not
            ask for client certificates.
    """

    certificate: str
    key: str | None = None
    ca: str | None = None

    def __post_init__(self) -> None:
        for name in ("certificate", "key", "ca"):
            _check_path(f"tls {name}", getattr(self, name))


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """TCP address to listen on.

    Attributes:
        host: an IPv4 or IPv6 address or a host name; "::" accepts IPv4 too, "*" listens on all
            addresses of all families that the system supports.
        port: 0 to 65535; 0 lets the system choose the port, which is logged.
    """

    host: str = "0.0.0.0"
    port: int = 12345

    def __post_init__(self) -> None:
        if not self.host:
            raise ConfigurationError(
                "address must not be empty; 0.0.0.0 listens on all IPv4 addresses"
            )
        _check("port", self.port, 0, 65535)

    def __str__(self) -> str:
        return f"{self.host} port {self.port}"


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """Unix socket to listen on.

    Attributes:
        path: 1 to 103 bytes; a relative path starts from the current directory.
    """

    path: str

    def __post_init__(self) -> None:
        _check_path("unix", self.path)
        if not len(os.fsencode(self.path)) <= _MAX_UNIX_PATH:
            raise ConfigurationError(
                f"unix: the path must have at most {_MAX_UNIX_PATH} bytes, got {self.path!r}"
            )

    def __str__(self) -> str:
        return self.path


ListenAddress = TcpAddress | UnixAddress
"""An address to listen on, for `Listen.addresses`."""


def parse_address(url: str) -> ListenAddress:
    """Parse an address to listen on, "tcp://HOST:PORT" or "unix:PATH".

    An IPv6 address is in brackets: "tcp://[::1]:12345".

    Raises:
        ConfigurationError: the text is neither, or the port or the path is invalid.
    """
    if url.startswith("unix:"):
        return UnixAddress(url.removeprefix("unix:"))
    match = _TCP_URL.fullmatch(url)
    if match is None:
        raise ConfigurationError(f"listen must be tcp://HOST:PORT or unix:PATH, got {url!r}")
    return TcpAddress(match[1] or match[2], int(match[3]))


@dataclass(frozen=True, slots=True)
class Listen:
    """Addresses to listen on, and peers to accept.

    Attributes:
        addresses: one or more different addresses.
        unix_mode: permissions of the Unix sockets; a process needs write permission to connect.
        unix_owner: name or number of the user who owns the Unix sockets; None for the user of
            the process. Only root may choose another user.
        unix_group: name or number of their group; None for the group of the process.
        backlog: limit on connections that wait in the kernel to be accepted, 1 to 65535.
        allow: networks that may connect; empty for all. SPOP has no authentication. It does not
            apply to Unix sockets.
        tls: accept TLS connections only; None accepts plain ones.
    """

    addresses: tuple[ListenAddress, ...] = (TcpAddress(),)
    unix_mode: int = 0o660
    unix_owner: str | None = None
    unix_group: str | None = None
    backlog: int = 1024
    allow: tuple[IPNetwork, ...] = ()
    tls: ListenTls | None = None

    def __post_init__(self) -> None:
        if not self.addresses:
            raise ConfigurationError("listen must have at least one address")
        for index, address in enumerate(self.addresses):
            gets_a_port = isinstance(address, TcpAddress) and address.port == 0
            if address in self.addresses[:index] and not gets_a_port:
                raise ConfigurationError(f"listen: {address} is given twice")
        if not 0 <= self.unix_mode <= 0o777:
            raise ConfigurationError(
                f"unix mode must be between 000 and 777, got {self.unix_mode:o}"
            )
        _check("backlog", self.backlog, 1, 65535)

    @classmethod
    def at(
        cls, address: str | None = None, port: int | None = None, *, unix: str | None = None
    ) -> "Listen":
        """Return the settings for an address and a port, for a Unix socket, or for both.

        The default is 0.0.0.0 port 12345; an address or a port alone changes that part.
        """
        default = TcpAddress()
        tcp = TcpAddress(
            default.host if address is None else address, default.port if port is None else port
        )
        if unix is None:
            return cls((tcp,))
        if address is None and port is None:
            return cls((UnixAddress(unix),))
        return cls((tcp, UnixAddress(unix)))


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits on the resources that peers may use.

    SPOP has no authentication. Each connection of any peer can hold an incomplete frame and
    incomplete fragments: `frame_size_cap` plus `reassembled_size`, 5 MiB by default, times
    `connections`. Use `Listen.allow` if other hosts than HAProxy's can reach the port.

    Attributes:
        connections: open connections of all workers together, 1 to 1,000,000; further ones are
            closed at once.
        in_flight: frames in flight of one connection, 1 to 1,000,000. A connection that has
            reached it, or 4 MiB in flight, is not read until some frames are acknowledged.
        frame_size: the max-frame-size to agree on, 256 to `frame_size_cap`; 0 for the engine's.
        frame_size_cap: the largest frame to accept, 256 bytes to 256 MiB.
        reassembled_size: the largest NOTIFY to reassemble from fragments, 256 bytes to 1 GiB.
        hello_timeout: time for the TLS handshake and the HELLO of a new connection, up to a day.
        frames: NOTIFYs of one connection, 1 to 1,000,000,000; then the agent acknowledges them,
            disconnects with status 0 and closes. 0 for no limit. Frames that the agent has not
            read by then get no ACK: some with pipelining, hardly any without.
        messages: messages of one NOTIFY, 1 to 1,000,000. A NOTIFY with more gets a DISCONNECT with
            status 4 and no ACK; handlers may have been called for the allowed number.
        connection_age: time, 1 s to 30 days, after which a connection is closed, so that its engine
            opens another one, perhaps to another agent behind the same address. It varies by up
            to a tenth for each connection. The connection is closed once it is quiet, at the
            latest after another 10 s, which loses NOTIFYs in transit. 0 for no limit.
    """

    connections: int = _DEFAULT_CONNECTIONS
    in_flight: int = 1024
    frame_size: int = 0
    frame_size_cap: int = 1024 * 1024
    reassembled_size: int = 4 * 1024 * 1024
    hello_timeout: float = 10.0
    frames: int = 0
    messages: int = DEFAULT_MAX_MESSAGES
    connection_age: float = 0.0

    def __post_init__(self) -> None:
        _check("max connections", self.connections, 1, MAX_CONNECTIONS)
        _check("max in-flight frames", self.in_flight, 1, MAX_IN_FLIGHT)
        _check("frame size cap", self.frame_size_cap, MIN_FRAME_SIZE, MAX_FRAME_SIZE_CAP)
        if self.frame_size:
            _check("max frame size", self.frame_size, MIN_FRAME_SIZE, self.frame_size_cap)
        _check("max reassembled size", self.reassembled_size, MIN_FRAME_SIZE, MAX_REASSEMBLED_SIZE)
        _check("hello timeout", self.hello_timeout, 0.001, _DAY)
        _check("max frames", self.frames, 0, MAX_FRAMES)
        _check("max messages", self.messages, 1, MAX_MESSAGES)
        if self.connection_age:
            _check("max connection age", self.connection_age, 1, MAX_CONNECTION_AGE)


@dataclass(frozen=True, slots=True)
class Drain:
    """Timeouts of a drain.

    Attributes:
        timeout: time for connections to become quiet; then they are closed anyway.
        checks: time before that, in which the agent keeps serving but answers health checks with
            an AGENT-DISCONNECT, so that HAProxy takes it out of its backend. It should be at least
            HAProxy's `inter` times `fall`; 0 skips this.
        resources: time for the agents' resources to finish their work, such as a queue, after the
            connections are closed; one second is added for closing.
    """

    timeout: float = 10.0
    checks: float = 0.0
    resources: float = 0.0

    def __post_init__(self) -> None:
        _check("drain", self.timeout, 0, _DAY)
        _check("drain checks", self.checks, 0, _DAY)
        _check("drain resources", self.resources, 0, _DAY)

    @property
    def total(self) -> float:
        """Time for connections and resources together."""
        return self.timeout + self.resources


@dataclass(frozen=True, slots=True)
class Logfile:
    """File that replaces standard output and standard error.

    Attributes:
        path: its path; it is created if it is missing, and reopened on SIGUSR1.
        truncate: truncate it at the start, instead of appending.
        line_buffered: write each line at once, instead of batches of lines.
    """

    path: str
    truncate: bool = False
    line_buffered: bool = False

    def __post_init__(self) -> None:
        _check_path("logfile", self.path)


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """All settings of a server.

    Attributes:
        listen: addresses to listen on.
        limits: limits on the resources that peers may use.
        drain: timeouts of a drain.
        workers: number of worker processes, 1 to 1024, besides the supervisor.
        worker_timeout: time, 1 s to a day, in which a worker must answer its supervisor. A worker
            that does not answer gets no connections after a second; after this time it is killed
            and replaced, and the stack of its main thread is logged. A worker without a supervisor
            ends itself after twice this time, at least 5 s more, of elapsed time, also if it was
            stopped. 0 for no timeout.
        capabilities: the capabilities to announce: "fragmentation", "pipelining", "async".
        runtime: stop after this time, like on SIGTERM; None for no limit.
        pidfile: file with the process id, locked while the server runs.
        daemonize: detach from the terminal once the sockets are bound.
        logfile: file that replaces standard output and standard error; None keeps them.
        monitor: interval at which counters are logged, 0.1 s to a day; None for never. SIGUSR2
            logs them at any time.
        watch: a file whose change triggers a reload, like SIGHUP.
        loop: "uvloop"; "asyncio"; asyncio's loop on "select", "poll", "epoll" or "linuxaio"; or
            "auto" for uvloop if it is installed. With "select" the limit on connections is 900: the
            default is lowered, and a higher limit is an error.
    """

    listen: Listen = field(default_factory=Listen)
    limits: Limits = field(default_factory=Limits)
    drain: Drain = field(default_factory=Drain)
    workers: int = 1
    worker_timeout: float = 10.0
    capabilities: tuple[str, ...] = ("fragmentation", "pipelining")
    runtime: float | None = None
    pidfile: str | None = None
    daemonize: bool = False
    logfile: Logfile | None = None
    monitor: float | None = None
    watch: str | None = None
    loop: LoopName = "auto"

    def __post_init__(self) -> None:
        _check("workers", self.workers, 1, MAX_WORKERS)
        if self.worker_timeout:
            _check("worker timeout", self.worker_timeout, 1.0, _DAY)
        _check_names("capability", self.capabilities, CAPABILITIES)
        _check_names("loop", (self.loop,), LOOPS)
        if self.loop == "select":
            self._limit_to_select()
        if self.runtime is not None and not self.runtime > 0:
            raise ConfigurationError(f"runtime must be greater than 0, got {self.runtime!r}")
        _check_path("pidfile", self.pidfile)
        _check_path("watch", self.watch)
        if self.monitor is not None:
            _check("monitor", self.monitor, 0.1, _DAY)

    def _limit_to_select(self) -> None:
        """Lower the default limit on connections of all workers, since one may get them all."""
        wanted = self.limits.connections
        if wanted <= MAX_SELECT_CONNECTIONS:
            return
        if wanted != _DEFAULT_CONNECTIONS:
            raise ConfigurationError(
                f"max connections must be between 1 and {MAX_SELECT_CONNECTIONS} with the loop "
                f"select, got {wanted}; use another loop"
            )
        limits = replace(self.limits, connections=MAX_SELECT_CONNECTIONS)
        object.__setattr__(self, "limits", limits)


def _check_names(option: str, names: Iterable[str], known: tuple[str, ...]) -> None:
    for name in names:
        if name not in known:
            raise ConfigurationError(f"{option}: {name!r} is not one of {', '.join(known)}")
