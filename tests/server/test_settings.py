from collections.abc import Callable
from ipaddress import IPv4Network, IPv6Network

import pytest

from spoakit.exceptions import ConfigurationError
from spoakit.server.settings import (
    Drain,
    Limits,
    Listen,
    ListenTls,
    Logfile,
    ServerSettings,
    TcpAddress,
    UnixAddress,
    parse_address,
    parse_network,
)


def test_the_defaults_are_valid() -> None:
    settings = ServerSettings()
    assert settings.listen.addresses == (TcpAddress("0.0.0.0", 12345),)
    assert settings.workers == 1
    assert settings.drain == Drain(timeout=10.0, checks=0.0)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: TcpAddress(port=65536), "port must be between 0 and 65535, got 65536"),
        (lambda: TcpAddress(port=-1), "port must be between 0 and 65535, got -1"),
        (lambda: TcpAddress(""), "address must not be empty"),
        (lambda: Listen(()), "listen must have at least one address"),
        (lambda: Listen((TcpAddress(), TcpAddress())), "listen: 0.0.0.0 port 12345 is given twice"),
        (lambda: Listen((UnixAddress("a"), UnixAddress("a"))), "listen: a is given twice"),
        (lambda: Listen(backlog=0), "backlog must be between 1 and 65535, got 0"),
        (lambda: Listen.at(unix=""), "unix must be a path, got an empty one"),
        (lambda: UnixAddress("/" + "x" * 103), "must have at most 103 bytes"),
        (lambda: Listen(unix_mode=0o1777), "unix mode must be between 000 and 777, got 1777"),
        (lambda: Limits(connections=0), "max connections must be between 1 and 1000000, got 0"),
        (lambda: Limits(in_flight=0), "max in-flight frames must be between"),
        (lambda: Limits(frame_size=255), "max frame size must be between 256 and 1048576, got 255"),
        (
            lambda: Limits(frame_size=5000, frame_size_cap=4096),
            "max frame size must be between 256 and 4096, got 5000",
        ),
        (lambda: Limits(frame_size_cap=1), "frame size cap must be between"),
        (lambda: Limits(reassembled_size=1), "max reassembled size must be between"),
        (lambda: Limits(messages=0), "max messages must be between 1 and 1000000, got 0"),
        (
            lambda: ServerSettings(worker_timeout=0.5),
            "worker timeout must be between 1.0 and 86400, got 0.5",
        ),
        (lambda: Limits(hello_timeout=0), "hello timeout must be between 0.001 and 86400, got 0"),
        (lambda: Limits(frames=-1), "max frames must be between 0 and 1000000000, got -1"),
        (lambda: Drain(timeout=-1), "drain must be between 0 and 86400, got -1"),
        (lambda: Drain(checks=float("nan")), "drain checks must be between"),
        (lambda: Drain(resources=-1), "drain resources must be between 0 and 86400, got -1"),
        (lambda: ListenTls(""), "tls certificate must be a path, got an empty one"),
        (lambda: ListenTls("c", ca=""), "tls ca must be a path, got an empty one"),
        (lambda: Logfile(""), "logfile must be a path, got an empty one"),
        (lambda: ServerSettings(pidfile=""), "pidfile must be a path, got an empty one"),
        (lambda: ServerSettings(watch=""), "watch must be a path, got an empty one"),
        (
            lambda: ServerSettings(loop="select", limits=Limits(connections=901)),
            "max connections must be between 1 and 900 with the loop select, got 901",
        ),
        (lambda: ServerSettings(monitor=0), "monitor must be between 0.1 and 86400, got 0"),
        (lambda: ServerSettings(workers=0), "workers must be between 1 and 1024, got 0"),
        (lambda: ServerSettings(runtime=0), "runtime must be greater than 0, got 0"),
        (
            lambda: ServerSettings(capabilities=("pipelining", "asynk")),
            "capability: 'asynk' is not one of fragmentation, pipelining, async",
        ),
    ],
)
def test_a_value_out_of_range_is_named_with_its_option_and_range(
    make: Callable[[], object], text: str
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        make()
    assert text in str(caught.value)


def test_the_default_limit_is_lowered_to_what_select_can_watch() -> None:
    settings = ServerSettings(loop="select")
    assert settings.limits == Limits(connections=900)
    assert ServerSettings(loop="select", limits=Limits(connections=900)).limits.connections == 900
    assert ServerSettings(loop="poll").limits.connections == 4096


def test_networks_are_addresses_or_cidr() -> None:
    assert parse_network("192.0.2.0/24") == IPv4Network("192.0.2.0/24")
    assert parse_network("192.0.2.7") == IPv4Network("192.0.2.7/32")
    assert parse_network("2001:db8::/32") == IPv6Network("2001:db8::/32")


@pytest.mark.parametrize("text", ["", "localhost", "192.0.2.1/24", "192.0.2.0/33"])
def test_what_is_no_network_is_named(text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"allow: .* neither an address nor a CIDR"):
        parse_network(text)


def test_a_path_need_not_be_utf_8() -> None:
    assert UnixAddress("/run/\udcff.sock").path == "/run/\udcff.sock"


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("tcp://127.0.0.1:1", TcpAddress("127.0.0.1", 1)),
        ("tcp://[::1]:12345", TcpAddress("::1", 12345)),
        ("tcp://[fe80::1%eth0]:1/", TcpAddress("fe80::1%eth0", 1)),
        ("tcp://*:0", TcpAddress("*", 0)),
        ("tcp://agents.example:12345", TcpAddress("agents.example", 12345)),
        ("unix:/run/a.sock", UnixAddress("/run/a.sock")),
        ("unix:a b", UnixAddress("a b")),
    ],
)
def test_an_address_is_a_url(url: str, address: object) -> None:
    assert parse_address(url) == address


@pytest.mark.parametrize(
    "url",
    [
        *("", "tcp://", "tcp://h", "tcp://h:", "tcp://:1", "tcp://h:x", "tcp://h:123456", "h:1"),
        *("tcp://::1:1", "tcp://[::1]", "tcp://h:1/path", "tcp://u@h:1", "tcp://h:\u0661", "/a"),
        *("tcp://h:1 ", "TCP://h:1", "udp://h:1", "tcp://h:1\n"),
    ],
)
def test_what_is_not_an_address_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError, match=r"must be tcp://HOST:PORT or unix:PATH"):
        parse_address(url)


def test_an_address_and_a_unix_socket_add_up() -> None:
    assert Listen.at().addresses == (TcpAddress("0.0.0.0", 12345),)
    assert Listen.at(unix="a").addresses == (UnixAddress("a"),)
    assert Listen.at("::1", unix="a").addresses == (TcpAddress("::1"), UnixAddress("a"))
    assert Listen.at(port=7).addresses == (TcpAddress(port=7),)
