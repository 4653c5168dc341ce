"""Listening sockets, and the acceptor of their connections."""

import errno
import fcntl
import grp
import logging
import os
import pwd
import socket
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from ipaddress import IPv6Address, ip_address
from typing import Any, Final, cast

from spoakit.exceptions import StartupError
from spoakit.logs import Throttle
from spoakit.metrics.families import counter
from spoakit.metrics.memory import WorkerMetrics
from spoakit.server.settings import IPNetwork, Limits, Listen, TcpAddress, UnixAddress

logger = logging.getLogger("spoakit.server")

ACCEPTED = counter("spoakit_connections_accepted_total", "Connections accepted.")
REJECTED = counter(
    "spoakit_connections_rejected_total",
    "Connections closed at once, by reason: not_allowed (by address), over_limit (of connections), "
    "no_descriptor (none was left in a worker).",
    labels=("reason",),
    limit=4,
)
ACCEPT_FAILURES = counter(
    "spoakit_accept_failures_total",
    "Failures to accept a connection, mostly for lack of descriptors.",
)

# Limit on connections accepted in a row, so that signals and other descriptors are handled soon.
_BATCH: Final = 64
_PAUSE: Final = 1.0
_LOCK_TIMEOUT: Final = 5.0
_LOCK_POLL: Final = 0.01
# A name may have addresses that this system or container does not have, mostly ::1.
_ABSENT: Final = frozenset({errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL})

_Identity = tuple[int, int, int]
# Errors of the waiting connection, which accept(2) returns. All others concern this process.
_PEER_ERRORS: Final = frozenset(
    {
        errno.ECONNABORTED,
        errno.EHOSTUNREACH,
        errno.ENETDOWN,
        errno.ENETUNREACH,
        errno.EPERM,
        errno.EPROTO,
    }
)


class Listeners:
    """Listening sockets of a service, non-blocking.

    Attributes:
        sockets: one or more for each address.
    """

    __slots__ = ("_unix", "sockets")

    def __init__(self, listen: Listen) -> None:
        """Bind and listen.

        Raises:
            StartupError: an address cannot be bound, or the owner or group of the Unix sockets
                is unknown.
        """
        self.sockets: list[socket.socket] = []
        self._unix: list[tuple[str, _Identity]] = []
        try:
            for address in listen.addresses:
                if isinstance(address, UnixAddress):
                    self._listen_unix(os.path.abspath(address.path), listen)
                else:
                    self._listen_tcp(address, listen.backlog)
        except BaseException:
            self.close()
            self.remove()
            raise

    def describe(self) -> str:
        """Return the addresses actually bound: "127.0.0.1:12345", "[::1]:12345", "/run/a.sock"."""
        return ", ".join(map(_describe, self.sockets))

    def close(self) -> None:
        """Stop listening in this process; other processes keep their copies of the sockets."""
        for listener in self.sockets:
            listener.close()
        self.sockets.clear()

    def remove(self) -> None:
        """Remove the Unix sockets' files, if they are still ours."""
        while self._unix:
            path, ours = self._unix.pop()
            # A file that remains is harmless: the next start removes it.
            with suppress(OSError), _locked_directory(path):
                if _identity(path) == ours:
                    os.unlink(path)

    def _listen_tcp(self, wanted: TcpAddress, backlog: int) -> None:
        where = str(wanted)
        before = len(self.sockets)
        try:
            host = None if wanted.host == "*" else wanted.host
            found = socket.getaddrinfo(
                host, wanted.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )
            port = wanted.port
            absent: dict[str, OSError] = {}
            for family, _, _, _, address in dict.fromkeys(found):
                # With port 0, all addresses use the port chosen for the first one.
                name = address[0], port, *address[2:]
                try:
                    listener = _bind(family, name, dual_stack=host == "::")
                except OSError as error:
                    if error.errno not in _ABSENT:
                        raise
                    absent[str(address[0])] = error
                else:
                    self.sockets.append(listener)
                    port = listener.getsockname()[1]
                    listener.listen(backlog)
            if absent and len(self.sockets) == before:
                raise next(iter(absent.values()))
            for skipped, why in absent.items():
                logger.warning(
                    "%s resolves to %s, which is skipped: %s", wanted.host, skipped, why.strerror
                )
        except OSError as error:
            raise StartupError(f"cannot listen on {where}: {error.strerror}") from error
        except UnicodeError as error:
            raise StartupError(
                f"cannot listen on {where}: it is not a host name: {error}"
            ) from error

    def _listen_unix(self, path: str, listen: Listen) -> None:
        owner = user_id("unix owner", listen.unix_owner)
        group = group_id("unix group", listen.unix_group)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sockets.append(listener)
        listener.setblocking(False)
        try:
            # Before it listens, another start would remove its file as a stale one.
            with _locked_directory(path):
                _remove_stale(path)
                umask = os.umask(0o177)  # nobody else may connect before chmod
                try:
                    listener.bind(path)
                finally:
                    os.umask(umask)
                self._unix.append((path, _identity(path)))
                if (owner, group) != (-1, -1):
                    change_owner(path, owner, group)
                os.chmod(path, listen.unix_mode)
                listener.listen(listen.backlog)
        except OSError as error:
            # Python refuses a path that is too long, and that error has no strerror.
            raise StartupError(f"cannot listen on {path}: {error.strerror or error}") from error


def user_id(option: str, user: str | None) -> int:
    """Return the number of a user; -1 for None.

    Raises:
        StartupError: the user is unknown; the text names the option.
    """
    if user is None or user.isdecimal():
        return int(user or -1)
    try:
        return pwd.getpwnam(user).pw_uid
    except KeyError:
        raise StartupError(f"{option}: unknown user {user!r}") from None


def group_id(option: str, group: str | None) -> int:
    """Return the number of a group; -1 for None.

    Raises:
        StartupError: the group is unknown; the text names the option.
    """
    if group is None or group.isdecimal():
        return int(group or -1)
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        raise StartupError(f"{option}: unknown group {group!r}") from None


def change_owner(path: str, owner: int, group: int) -> None:
    """Change the owner and the group of a Unix socket; -1 keeps them.

    Raises:
        StartupError: this process lacks the permission.
    """
    try:
        os.chown(path, owner, group)
    except OSError as error:
        raise StartupError(
            f"cannot change the owner or group of {path}: {error.strerror}; only root may choose "
            "another user, or a group that the process is not in"
        ) from error


def _bind(family: int, name: tuple[Any, ...], *, dual_stack: bool) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        _set_options(listener, dual_stack)
        listener.bind(name)
    except BaseException:
        listener.close()
        raise
    return listener


def _identity(path: str) -> _Identity:
    """Return the identity of a file; a later file often has the same inode number."""
    status = os.stat(path)
    return status.st_dev, status.st_ino, status.st_mtime_ns


@contextmanager
def _locked_directory(path: str) -> Iterator[None]:
    """Lock the directory of a Unix socket. The lock needs no file and ends with the process.

    Raises:
        TimeoutError: another process holds the lock for too long.
    """
    try:
        descriptor = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        yield  # an unreadable directory cannot be locked; for a missing one, bind raises
        return
    try:
        give_up = time.monotonic() + _LOCK_TIMEOUT
        while not _try_lock(descriptor):
            if time.monotonic() > give_up:
                raise TimeoutError(errno.ETIMEDOUT, "its directory is locked by another process")
            time.sleep(_LOCK_POLL)
        yield
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass  # the file system does not support locks on directories
    return True


def _set_options(listener: socket.socket, dual_stack: bool) -> None:
    listener.setblocking(False)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if listener.family == socket.AF_INET6:
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not dual_stack)
    # Accepted sockets inherit these. Only keepalive notices that the host of an idle connection is
    # gone. With TCP_NODELAY an ACK does not wait for the engine's delayed TCP ACK.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _remove_stale(path: str) -> None:
    """Remove a stale Unix socket; raise if it is in use, or is not a socket."""
    try:
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            raise StartupError(f"cannot listen on {path}: it exists and is not a socket")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except BlockingIOError:
            pass  # the backlog is full, so a process listens
    raise StartupError(f"cannot listen on {path}: another process listens there")


def _describe(listener: socket.socket) -> str:
    name = listener.getsockname()
    return str(name) if listener.family == socket.AF_UNIX else _describe_address(name)


def describe_peer(connection: socket.socket) -> str:
    """Return the address of an accepted connection's peer.

    It is "192.0.2.1:50000", "[::1]:50000", or the path of the listening Unix socket, since the
    peer of a Unix socket has no address.
    """
    try:
        name = connection.getpeername()
    except OSError:
        return "a closed peer"
    if isinstance(name, tuple):
        return _describe_address(name)
    return os.fsdecode(connection.getsockname()) or "a Unix socket without a path"


def _describe_address(name: Any) -> str:
    host, port = name[:2]
    if "." in host:
        host = host.removeprefix("::ffff:")  # an IPv4 peer of a dual-stack socket
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class _AcceptedSocket(socket.socket):
    """Socket whose `family` and `type` are plain numbers.

    `socket.socket` looks up an enum's member on each access. Event loops access them three times
    for a connection, `socket.accept` twice: a tenth of the CPU time of a connection with one frame.
    """

    __slots__ = ()
    family: Any = socket.SocketType.family
    type: Any = socket.SocketType.type


class Acceptor:
    """Acceptor of connections, which checks the allowed networks and the limit.

    Args:
        listen: settings with the allowed networks.
        limits: settings with the limit on connections.
        count: returns the current number of connections.
        row: the counters of this process.
        clock: returns monotonic seconds.
    """

    __slots__ = ("_allow", "_clock", "_count", "_limit", "_row", "_throttle", "paused_until")

    def __init__(
        self,
        listen: Listen,
        limits: Limits,
        count: Callable[[], int],
        row: WorkerMetrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._allow: tuple[IPNetwork, ...] = listen.allow
        self._limit = limits.connections
        self._count = count
        self._row = row
        self._clock = clock
        self._throttle = Throttle(logger, clock=clock)
        self.paused_until = 0.0
        """Time on that clock to accept again, after descriptors or memory ran out."""

    def accept(self, listener: socket.socket) -> Iterator[socket.socket]:
        """Yield accepted connections, at most a batch; close those that are not allowed."""
        # The private method avoids that `accept` creates a `socket.socket`.
        accept: Callable[[], tuple[int, Any]] = cast("Any", listener)._accept
        kind = listener.family, listener.type, listener.proto
        for _ in range(_BATCH):
            try:
                descriptor, address = accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _PEER_ERRORS:
                    continue
                self._pause(error)
                return
            connection = _AcceptedSocket(*kind, fileno=descriptor)
            if self._is_admitted(connection, address):
                self._row.add(ACCEPTED)
                yield connection
            else:
                connection.close()

    def _is_admitted(self, connection: socket.socket, address: Any) -> bool:
        if self._allow and connection.family != socket.AF_UNIX and not self._is_allowed(address[0]):
            self._row.add(REJECTED, 1, "not_allowed")
            self._throttle.warning(
                "allow",
                "connection from %s closed: the address is not allowed",
                address[0],
                extra={"peer": address[0]},
            )
            return False
        if self._count() >= self._limit:
            self._row.add(REJECTED, 1, "over_limit")
            self._throttle.warning(
                "limit",
                "connection closed: the limit of %d connections is reached; raise max connections",
                self._limit,
            )
            return False
        return True

    def _is_allowed(self, address: str) -> bool:
        peer = ip_address(address)
        if isinstance(peer, IPv6Address) and peer.ipv4_mapped is not None:
            peer = peer.ipv4_mapped  # an IPv4 peer of a dual-stack socket
        return any(peer in network for network in self._allow)

    def _pause(self, error: OSError) -> None:
        # The connection still waits, so without a pause the readable socket would make this spin.
        self._row.add(ACCEPT_FAILURES)
        self._throttle.error(
            "resources", "cannot accept connections: %s; retrying in %g s", error.strerror, _PAUSE
        )
        self.paused_until = self._clock() + _PAUSE
