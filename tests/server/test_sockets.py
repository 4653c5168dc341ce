import errno
import grp
import logging
import os
import pwd
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest

from spoakit.exceptions import StartupError
from spoakit.metrics.memory import SharedMetrics
from spoakit.server.settings import Limits, Listen, TcpAddress, UnixAddress
from spoakit.server.sockets import (
    ACCEPT_FAILURES,
    ACCEPTED,
    REJECTED,
    Acceptor,
    Listeners,
)

Listening = Callable[[Listen], Listeners]


@pytest.fixture
def listening() -> Iterator[Listening]:
    with ExitStack() as stack:

        def listen(listen: Listen) -> Listeners:
            listeners = Listeners(listen)
            stack.callback(listeners.remove)
            stack.callback(listeners.close)
            return listeners

        yield listen


def connect(listeners: Listeners, host: str = "127.0.0.1") -> socket.socket:
    return socket.create_connection((host, listeners.sockets[0].getsockname()[1]))


def test_port_0_is_described_as_the_port_bound(listening: Listening) -> None:
    listeners = listening(Listen.at("127.0.0.1", 0))
    port = listeners.sockets[0].getsockname()[1]
    assert port != 0
    assert listeners.describe() == f"127.0.0.1:{port}"


def test_ipv6_addresses_are_described_in_brackets(listening: Listening) -> None:
    listeners = listening(Listen.at("::1", 0))
    assert listeners.describe().startswith("[::1]:")
    connect(listeners, "::1").close()


def test_the_unspecified_ipv6_address_takes_ipv4_too(listening: Listening) -> None:
    listeners = listening(Listen.at("::", 0))
    connect(listeners, "::1").close()
    connect(listeners, "127.0.0.1").close()


def test_a_host_name_may_stand_for_several_addresses_on_one_port(listening: Listening) -> None:
    listeners = listening(Listen.at("localhost", 0))
    assert len({listener.getsockname()[1] for listener in listeners.sockets}) == 1


def resolving(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    """Have "name" resolve to these addresses, as the hosts file of a container does."""
    resolve = socket.getaddrinfo

    def getaddrinfo(host: str, *rest: Any, **options: Any) -> list[Any]:
        hosts = addresses if host == "name" else [host]
        return [each for address in hosts for each in resolve(address, *rest, **options)]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


def test_an_address_of_a_name_that_the_system_lacks_is_skipped(
    listening: Listening, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    resolving(monkeypatch, "2001:db8::1", "127.0.0.1")
    listeners = listening(Listen.at("name", 0))
    assert listeners.describe().startswith("127.0.0.1:")
    connect(listeners).close()
    assert "name resolves to 2001:db8::1, which is skipped: Cannot assign" in caplog.text


def test_a_name_without_any_address_of_the_system_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    resolving(monkeypatch, "2001:db8::1", "192.0.2.1")
    with pytest.raises(StartupError, match="cannot listen on name port 0: Cannot assign"):
        Listeners(Listen.at("name", 0))


def test_an_address_in_use_is_not_skipped(
    listening: Listening, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = listening(Listen.at("127.0.0.1", 0)).sockets[0].getsockname()[1]
    resolving(monkeypatch, "127.0.0.2", "127.0.0.1")
    with pytest.raises(StartupError, match="in use"):
        Listeners(Listen.at("name", port))


def test_a_star_takes_all_addresses(listening: Listening) -> None:
    listeners = listening(Listen.at("*", 0))
    assert len({listener.getsockname()[1] for listener in listeners.sockets}) == 1
    for host in ("127.0.0.1", "::1"):
        connect(listeners, host).close()


def test_of_two_starts_at_once_on_one_path_one_is_refused(tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "from spoakit.exceptions import StartupError\n"
        "from spoakit.server.settings import Listen\n"
        "from spoakit.server.sockets import Listeners\n"
        "for line in sys.stdin:\n"
        "    try:\n"
        "        listeners = Listeners(Listen.at(unix=line.strip()))\n"
        "        print('listens', flush=True)\n"
        "    except StartupError as error:\n"
        "        print('another process listens there' in str(error), flush=True)\n"
    )
    command = [sys.executable, "-c", script]
    (tmp_path / "other").symlink_to(tmp_path)
    with ExitStack() as stack:
        starts = [
            stack.enter_context(
                subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            )
            for _ in range(2)
        ]
        for number in range(200):
            names = f"{tmp_path}/{number}", f"{tmp_path}/other/{number}"
            with socket.socket(socket.AF_UNIX) as stale:
                stale.bind(names[0])
            for start, name in zip(starts, names, strict=True):
                assert start.stdin is not None
                start.stdin.write(f"{name}\n")
                start.stdin.flush()
            lines = sorted(start.stdout.readline() for start in starts if start.stdout is not None)
            assert lines == ["True\n", "listens\n"], number
    assert {path.name for path in tmp_path.iterdir() if not path.is_socket()} == {"other"}


def test_a_later_file_of_that_path_is_kept_though_it_has_our_inode_number(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    first = Listeners(Listen.at(unix=str(path)))
    first.close()
    second = Listeners(Listen.at(unix=str(path)))
    first.remove()
    assert path.is_socket()
    second.close()
    second.remove()
    assert not path.exists()


def test_accepted_sockets_have_keepalive_and_no_delay(listening: Listening) -> None:
    listeners = listening(Listen.at("127.0.0.1", 0))
    with connect(listeners):
        connection, _ = listeners.sockets[0].accept()
        with connection:
            assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


@pytest.mark.parametrize("address", ["192.0.2.1", "no-such-host.invalid"])
def test_an_address_that_cannot_be_had_is_named(address: str) -> None:
    with pytest.raises(StartupError, match=f"cannot listen on {address} port 7: "):
        Listeners(Listen.at(address, 7))


@pytest.mark.parametrize("address", ["a" * 70, "a..b", "\udcff"])
def test_what_cannot_be_a_host_name_is_named(address: str) -> None:
    with pytest.raises(StartupError, match="port 7: it is not a host name"):
        Listeners(Listen.at(address, 7))


def test_a_relative_path_that_becomes_too_long_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / ("d" * 100)
    directory.mkdir()
    monkeypatch.chdir(directory)
    with pytest.raises(StartupError, match="AF_UNIX path too long"):
        Listeners(Listen.at(unix="agent.sock"))


def test_a_stale_unix_socket_is_replaced(listening: Listening, tmp_path: Path) -> None:
    path = str(tmp_path / "agent.sock")
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(path)
    listeners = listening(Listen.at(unix=path))
    assert listeners.describe() == path
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)


def test_a_unix_socket_in_use_is_refused(listening: Listening, tmp_path: Path) -> None:
    path = str(tmp_path / "agent.sock")
    listening(Listen.at(unix=path))
    with pytest.raises(StartupError, match="another process listens there"):
        Listeners(Listen.at(unix=path))
    assert os.path.exists(path)


def test_a_file_that_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"
    path.write_text("precious")
    with pytest.raises(StartupError, match="exists and is not a socket"):
        Listeners(Listen.at(unix=str(path)))
    assert path.read_text() == "precious"


def test_a_unix_socket_that_took_our_place_is_left_alone(
    listening: Listening, tmp_path: Path
) -> None:
    path = tmp_path / "agent.sock"
    listeners = listening(Listen.at(unix=str(path)))
    path.unlink()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        listeners.remove()
        assert path.exists()


def acceptor_for(
    listen: Listen, count: Callable[[], int] = lambda: 0
) -> tuple[Acceptor, SharedMetrics]:
    counters = SharedMetrics(1)
    return Acceptor(listen, Limits(connections=2), count, counters.worker(0)), counters


@pytest.mark.parametrize(
    ("address", "allow", "peer", "entered"),
    [
        ("127.0.0.1", (), "127.0.0.1", True),
        ("127.0.0.1", ("127.0.0.0/8",), "127.0.0.1", True),
        ("127.0.0.1", ("192.0.2.0/24", "::1"), "127.0.0.1", False),
        ("::", ("127.0.0.0/8",), "127.0.0.1", True),
        ("::", ("127.0.0.0/8",), "::1", False),
        ("::", ("::1",), "::1", True),
    ],
)
def test_only_allowed_networks_may_come_in(
    listening: Listening, address: str, allow: tuple[str, ...], peer: str, entered: bool
) -> None:
    networks = tuple(ip_network(text) for text in allow)
    listen = Listen((TcpAddress(address, 0),), allow=networks)
    listeners = listening(listen)
    acceptor, counters = acceptor_for(listen)
    with connect(listeners, peer) as client:
        connections = list(acceptor.accept(listeners.sockets[0]))
        assert len(connections) == int(entered)
        assert counters.worker(0).get(ACCEPTED) == int(entered)
        assert counters.worker(0).get(REJECTED, "not_allowed") == int(not entered)
        for connection in connections:
            connection.close()
        assert client.recv(1) == b""


def test_networks_do_not_concern_unix_sockets(listening: Listening, tmp_path: Path) -> None:
    address = UnixAddress(str(tmp_path / "agent.sock"))
    listen = Listen((address,), allow=(ip_network("192.0.2.0/24"),))
    listeners = listening(listen)
    acceptor, _ = acceptor_for(listen)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(tmp_path / "agent.sock"))
        [connection] = acceptor.accept(listeners.sockets[0])
        connection.close()


def test_the_limit_is_asked_for_each_connection_of_a_batch(listening: Listening) -> None:
    listen = Listen.at("127.0.0.1", 0)
    listeners = listening(listen)
    taken: list[socket.socket] = []
    acceptor, counters = acceptor_for(listen, lambda: len(taken))
    with ExitStack() as stack:
        for _ in range(5):
            stack.enter_context(connect(listeners))
        for connection in acceptor.accept(listeners.sockets[0]):
            taken.append(stack.enter_context(connection))
        assert len(taken) == 2
        assert counters.worker(0).get(REJECTED, "over_limit") == 3


class NoDescriptors(socket.socket):
    def _accept(self) -> tuple[int, object]:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


def test_accepting_pauses_when_descriptors_run_out(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR, logger="spoakit.server")
    counters = SharedMetrics(1)
    acceptor = Acceptor(Listen(), Limits(), lambda: 0, counters.worker(0), clock=lambda: 100.0)
    with NoDescriptors() as listener:
        assert list(acceptor.accept(listener)) == []
        assert list(acceptor.accept(listener)) == []
    assert acceptor.paused_until == 101.0
    assert counters.worker(0).get(ACCEPT_FAILURES) == 2
    assert caplog.messages == ["cannot accept connections: Too many open files; retrying in 1 s"]


def test_several_addresses_are_listened_on_at_once(listening: Listening, tmp_path: Path) -> None:
    paths = [str(tmp_path / name) for name in "ab"]
    local = TcpAddress("127.0.0.1", 0)
    addresses = local, UnixAddress(paths[0]), local, UnixAddress(paths[1])
    listeners = listening(Listen(addresses))
    ports = [listeners.sockets[index].getsockname()[1] for index in (0, 2)]
    assert ports[0] != ports[1]
    first, second = (f"127.0.0.1:{port}" for port in ports)
    assert listeners.describe() == f"{first}, {paths[0]}, {second}, {paths[1]}"
    listeners.close()
    listeners.remove()
    assert list(tmp_path.iterdir()) == []


def test_of_several_addresses_one_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        other = TcpAddress("127.0.0.1", taken.getsockname()[1])
        with pytest.raises(StartupError, match=f"cannot listen on 127.0.0.1 port {other.port}"):
            Listeners(Listen((UnixAddress(str(tmp_path / "a")), other)))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("named", [False, True])
def test_a_unix_socket_has_the_owner_and_group_that_are_asked_for(
    listening: Listening, tmp_path: Path, named: bool
) -> None:
    user, group = (65534, 65534) if os.getuid() == 0 else (os.getuid(), os.getgid())
    owner_text = pwd.getpwuid(user).pw_name if named else str(user)
    group_text = grp.getgrgid(group).gr_name if named else str(group)
    path = tmp_path / "a.sock"
    listening(Listen((UnixAddress(str(path)),), 0o640, owner_text, group_text))
    status = path.stat()
    assert (status.st_uid, status.st_gid, status.st_mode & 0o777) == (user, group, 0o640)


@pytest.mark.parametrize(
    ("owner", "group", "error"),
    [
        ("no such user", None, "unix owner: unknown user 'no such user'"),
        (None, "no such group", "unix group: unknown group 'no such group'"),
    ],
)
def test_an_unknown_owner_is_named(
    tmp_path: Path, owner: str | None, group: str | None, error: str
) -> None:
    path = tmp_path / "a.sock"
    with pytest.raises(StartupError, match=error):
        Listeners(Listen((UnixAddress(str(path)),), unix_owner=owner, unix_group=group))
    assert not path.exists()


def test_an_owner_that_the_system_refuses_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: str, owner: int, group: int) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "chown", refuse)
    with pytest.raises(StartupError, match=r"cannot change the owner or group of .*only root"):
        Listeners(Listen((UnixAddress(str(tmp_path / "a")),), unix_group="0"))
    assert list(tmp_path.iterdir()) == []
