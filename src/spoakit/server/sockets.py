"""Listening sockets, and accepting from them."""

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
    "Connections closed at once, by reason: not_allowed (its address), over_limit (of the number), "
    "no_descriptor (none was left in a worker).",
    labels=("reason",),
    limit=4,
)
ACCEPT_FAILURES = counter(
    "spoakit_accept_failures_total",
    "Failures to accept a connection, mostly for lack of descriptors.",
)

# Connections taken in one go; signals and the other descriptors wait no longer than for these.
_BATCH: Final = 64
_PAUSE: Final = 1.0
_LOCK_TIMEOUT: Final = 5.0
_LOCK_POLL: Final = 0.01
# A name may have addresses that this system or container lacks, ::1 most of all.
_ABSENT: Final = frozenset({errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL})

_Identity = tuple[int, int, int]
# accept(2) passes on what has become of the waiting connection; all else is about this process.
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
    """The listening sockets, non-blocking.

    Attributes:
        sockets: one or more for each address.
    """

    __slots__ = ("_unix", "sockets")

    def __init__(self, listen: Listen) -> None:
        """Bind and listen.

        Raises:
            StartupError: an address cannot be had, or the system does not know the owner or group
                of the Unix sockets.
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
        """Stop listening in this process; others that share the sockets go on."""
        for listener in self.sockets:
            listener.close()
        self.sockets.clear()

    def remove(self) -> None:
        """Remove the Unix sockets' files, if they are still ours."""
        while self._unix:
            path, ours = self._unix.pop()
            # A file that stays is harmless: the next start removes it.
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
                # With port 0 the first address chooses for all.
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
                    "%s is also %s, which is skipped: %s", wanted.host, skipped, why.strerror
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
            # Until it listens, another start would take its file for a stale one.
            with _locked_directory(path):
                _remove_stale(path)
                umask = os.umask(0o177)  # nobody gets in before the mode is what was asked for
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
            # Python itself refuses a path that became too long, and has no number for that.
            raise StartupError(f"cannot listen on {path}: {error.strerror or error}") from error


def user_id(option: str, user: str | None) -> int:
    """Return the number of a user; -1 for None.

    Raises:
        StartupError: there is no such user; the text names the option.
    """
    if user is None or user.isdecimal():
        return int(user or -1)
    try:
        return pwd.getpwnam(user).pw_uid
    except KeyError:
        raise StartupError(f"{option}: this system has no user {user!r}") from None


def group_id(option: str, group: str | None) -> int:
    """Return the number of a group; -1 for None.

    Raises:
        StartupError: there is no such group; the text names the option.
    """
    if group is None or group.isdecimal():
        return int(group or -1)
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        raise StartupError(f"{option}: this system has no group {group!r}") from None


def change_owner(path: str, owner: int, group: int) -> None:
    """Change the owner and the group of a Unix socket to these numbers; -1 leaves them.

    Raises:
        StartupError: this process may not.
    """
    try:
        os.chown(path, owner, group)
    except OSError as error:
        raise StartupError(
            f"cannot change the owner or group of {path}: {error.strerror}; a process without "
            "root can only choose among its own groups"
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
    """Return what tells a file from a later one, which often has the same inode number."""
    status = os.stat(path)
    return status.st_dev, status.st_ino, status.st_mtime_ns


@contextmanager
def _locked_directory(path: str) -> Iterator[None]:
    """Lock the directory of a Unix socket, which leaves no file and ends with the process.

    Raises:
        TimeoutError: others have held the lock for too long.
    """
    try:
        descriptor = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        yield  # what cannot be read cannot be locked; if it is not there, binding says so
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
        pass  # a file system without locks of directories
    return True


def _set_options(listener: socket.socket, dual_stack: bool) -> None:
    listener.setblocking(False)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if listener.family == socket.AF_INET6:
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not dual_stack)
    # Accepted sockets inherit these. Idle connections are kept, so keepalive is what notices that
    # the engine's host is gone; and an ACK must not wait for the engine's delayed TCP ACK.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _remove_stale(path: str) -> None:
    """Remove a Unix socket that nobody listens on; refuse what is alive or no socket."""
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
            pass  # its backlog is full, so someone listens
    raise StartupError(f"cannot listen on {path}: another process listens there")


def _describe(listener: socket.socket) -> str:
    name = listener.getsockname()
    return str(name) if listener.family == socket.AF_UNIX else _describe_address(name)


def describe_peer(connection: socket.socket) -> str:
    """Return the address of an accepted connection's other end.

    It is "192.0.2.1:50000", "[::1]:50000", or the path of the Unix socket that was connected to:
    those who connect to one have no address of their own.
    """
    try:
        name = connection.getpeername()
    except OSError:
        return "a peer that left"
    if isinstance(name, tuple):
        return _describe_address(name)
    return os.fsdecode(connection.getsockname()) or "a Unix socket without a path"


def _describe_address(name: Any) -> str:
    host, port = name[:2]
    if "." in host:
        host = host.removeprefix("::ffff:")  # an IPv4 peer of a dual-stack socket
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class _AcceptedSocket(socket.socket):
    """A connection whose `family` and `type` are numbers.

    `socket.socket` looks up an enum's member for them each time. Event loops ask three times for a
    connection, and `socket.accept` twice: together a tenth of the CPU time of one with one frame.
    """

    __slots__ = ()
    family: Any = socket.SocketType.family
    type: Any = socket.SocketType.type


class Acceptor:
    """Accepts connections in batches, and turns away those that may not come in.

    Args:
        listen: who is allowed.
        limits: how many connections.
        count: tells how many there are now.
        row: where to count.
        clock: monotonic seconds.
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
        """Time to accept again, after descriptors or memory ran out; on the same clock."""

    def accept(self, listener: socket.socket) -> Iterator[socket.socket]:
        """Yield what waits to be accepted and may come in, a batch at most."""
        # What `accept` is made of; that makes a `socket.socket`.
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
            if self._may_enter(connection, address):
                self._row.add(ACCEPTED)
                yield connection
            else:
                connection.close()

    def _may_enter(self, connection: socket.socket, address: Any) -> bool:
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
                "limit", "connection closed: %d are open, which is the limit", self._limit
            )
            return False
        return True

    def _is_allowed(self, address: str) -> bool:
        peer = ip_address(address)
        if isinstance(peer, IPv6Address) and peer.ipv4_mapped is not None:
            peer = peer.ipv4_mapped  # an IPv4 peer of a dual-stack socket
        return any(peer in network for network in self._allow)

    def _pause(self, error: OSError) -> None:
        # The connection still waits, so the socket stays readable: without a pause this would spin.
        self._row.add(ACCEPT_FAILURES)
        self._throttle.error(
            "resources", "cannot accept: %s; trying again in %g s", error.strerror, _PAUSE
        )
        self.paused_until = self._clock() + _PAUSE
