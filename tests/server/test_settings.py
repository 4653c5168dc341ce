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
    parse_network,
)


def test_the_defaults_are_valid() -> None:
    settings = ServerSettings()
    assert (settings.listen.address, settings.listen.port) == ("0.0.0.0", 12345)
    assert settings.workers == 1
    assert settings.drain == Drain(timeout=10.0, checks=0.0)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Listen(port=65536), "port: 65536 is not in the range 0 to 65535"),
        (lambda: Listen(port=-1), "port: -1 is not in the range 0 to 65535"),
        (lambda: Listen(address=""), "address: it is empty"),
        (lambda: Listen(backlog=0), "backlog: 0 is not in the range 1 to 65535"),
        (lambda: Listen(unix=""), "unix: the path '' is not 1 to 103 bytes long"),
        (lambda: Listen(unix="/" + "x" * 103), "is not 1 to 103 bytes long"),
        (lambda: Listen(unix_mode=0o1000), "unix mode: 512 is not in the range 0 to 511"),
        (lambda: Limits(connections=0), "max connections: 0 is not in the range 1 to 1000000"),
        (lambda: Limits(in_flight=0), "max in-flight frames: 0 is not in the range"),
        (lambda: Limits(frame_size=255), "max frame size: 255 is not in the range 256 to 1048576"),
        (
            lambda: Limits(frame_size=5000, frame_size_cap=4096),
            "max frame size: 5000 is not in the range 256 to 4096",
        ),
        (lambda: Limits(frame_size_cap=1), "frame size cap: 1 is not in the range"),
        (lambda: Limits(reassembled_size=1), "max reassembled size: 1 is not in the range"),
        (lambda: Limits(messages=0), "max messages: 0 is not in the range 1 to 1000000"),
        (lambda: Limits(hello_timeout=0), "hello timeout: 0 is not in the range 0.001 to 86400"),
        (lambda: Limits(frames=-1), "max frames: -1 is not in the range 0 to 1000000000"),
        (lambda: Drain(timeout=-1), "drain: -1 is not in the range 0 to 86400"),
        (lambda: Drain(checks=float("nan")), "drain checks: nan is not in the range"),
        (lambda: Drain(resources=-1), "drain resources: -1 is not in the range 0 to 86400"),
        (lambda: ListenTls(""), "tls certificate: the path is empty"),
        (lambda: ListenTls("c", ca=""), "tls ca: the path is empty"),
        (lambda: Logfile(""), "logfile: the path is empty"),
        (lambda: ServerSettings(monitor=0), "monitor: 0 is not in the range 0.1 to 86400"),
        (lambda: ServerSettings(workers=0), "workers: 0 is not in the range 1 to 1024"),
        (lambda: ServerSettings(runtime=0), "runtime: 0 is not a time above 0"),
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


def test_networks_are_addresses_or_cidr() -> None:
    assert parse_network("192.0.2.0/24") == IPv4Network("192.0.2.0/24")
    assert parse_network("192.0.2.7") == IPv4Network("192.0.2.7/32")
    assert parse_network("2001:db8::/32") == IPv6Network("2001:db8::/32")


@pytest.mark.parametrize("text", ["", "localhost", "192.0.2.1/24", "192.0.2.0/33"])
def test_what_is_no_network_is_named(text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"allow: .* neither an address nor a CIDR"):
        parse_network(text)


def test_a_path_need_not_be_utf_8() -> None:
    assert Listen(unix="/run/\udcff.sock").unix == "/run/\udcff.sock"
