"""Names of targets, their addresses, and which of these is connected to."""

import asyncio
import logging
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from spoakit.apps.mirror.config.schema import TargetSettings, Timeouts
from spoakit.apps.mirror.http import names
from spoakit.apps.mirror.http.names import HostAddresses, LookupFailedError, Names, Resolver
from spoakit.apps.mirror.http.source_address import SourceAddress
from spoakit.apps.mirror.url import TargetURL
from tests.support.copier import Run
from tests.support.dns_server import SERVFAIL, NameServer, name_server
from tests.support.origin import OK, Origin, origin
from tests.support.waiting import until

Copying = Callable[..., Any]

HOST = "target.example"
ALONE: dict[str, Any] = {"connections": 1}


@contextmanager
def black_hole(address: str, port: int) -> Iterator[None]:
    """Have a port that accepts no connection and refuses none: its backlog is full."""
    with socket.socket() as listener:
        listener.bind((address, port))
        listener.listen(0)
        fillers = [socket.socket() for _ in range(4)]
        try:
            for filler in fillers:
                filler.setblocking(False)
                filler.connect_ex((address, port))
            yield
        finally:
            for filler in fillers:
                filler.close()


def ask(server: NameServer) -> dict[str, Any]:
    """Return the settings of a target whose name that server knows."""
    return {"server": HOST, "nameservers": (server.address,)}


def addresses_of(found: list[names.AddressInfo]) -> list[str]:
    return [address[4][0] for address in found]


# Happy Eyeballs.


def test_copies_arrive_behind_a_dead_first_address(run: Run, copying: Copying) -> None:
    async def scenario() -> None:
        async with name_server() as dns, origin() as server:
            dns.answers[HOST] = ["127.0.0.9", "127.0.0.1"]
            with black_hole("127.0.0.9", server.port):
                async with copying(server.port, **ask(dns), **ALONE) as mirror:
                    for _ in range(20):
                        mirror.get()
                    await mirror.answered(20)
                    assert mirror.target.counters.connect_failures == 0

    run(scenario())


def test_a_dead_address_delays_one_connection_and_no_more(run: Run, copying: Copying) -> None:
    async def scenario() -> None:
        async with name_server() as dns, origin(lambda _: [OK, None]) as server:
            dns.answers[HOST] = ["127.0.0.9", "127.0.0.1"]
            with black_hole("127.0.0.9", server.port):
                async with copying(server.port, **ask(dns), **ALONE) as mirror:
                    times = []
                    for number in range(1, 21):
                        begin = monotonic()
                        mirror.get()
                        await mirror.answered(number)
                        times.append(monotonic() - begin)
                        await until(lambda: server.open == 0)
            # Which address comes first is left to chance.
            assert sum(each >= 0.25 for each in times) <= 1

    run(scenario())


def test_the_next_address_is_tried_at_once_where_the_first_refuses(
    run: Run, copying: Copying
) -> None:
    async def scenario() -> None:
        async with name_server() as dns, origin() as server:
            dns.answers[HOST] = ["::1", "127.0.0.1"]
            async with copying(server.port, **ask(dns), **ALONE) as mirror:
                mirror.get()
                await mirror.answered(1)
                assert mirror.target.counters.connect_failures == 0

    run(scenario())


def test_connections_are_spread_over_the_addresses_that_work(run: Run, copying: Copying) -> None:
    async def scenario() -> None:
        async with name_server() as dns, origin(lambda _: [OK, None]) as first:
            others = [Origin(lambda _: [OK, None]) for _ in range(2)]
            for number, other in enumerate(others, 2):
                await other.start(first.port, f"127.0.0.{number}")
            dns.answers[HOST] = ["127.0.0.1", "127.0.0.2", "127.0.0.3", "127.0.0.9"]
            async with copying(first.port, **ask(dns), **ALONE) as mirror:
                for number in range(1, 31):
                    mirror.get()
                    await mirror.answered(number)
            counts = [server.connections for server in (first, *others)]
            assert sum(counts) == 30
            assert min(counts) >= 8
            assert mirror.target.counters.connect_failures == 0
            for other in others:
                await other.stop()

    run(scenario())


def test_all_addresses_that_fail_are_named(
    run: Run, copying: Copying, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with name_server() as dns:
            dns.answers[HOST] = ["127.0.0.8", "127.0.0.9"]
            async with copying(1, **ask(dns), drain=0) as mirror:
                mirror.get()
                await until(lambda: "cannot be reached" in caplog.text)
                assert mirror.target.counters.failed_attempts == {"refused": 1}

    run(scenario())


# Lookups.


def test_many_connections_share_a_lookup(run: Run, copying: Copying) -> None:
    async def scenario() -> None:
        async with name_server() as dns, origin() as server:
            dns.answers[HOST] = ["127.0.0.1"]
            dns.ttl = 0
            async with copying(server.port, **ask(dns)) as mirror:
                for _ in range(64):
                    mirror.get()
                await mirror.answered(64)
            assert dns.asked == [HOST, HOST]  # for IPv4 and for IPv6

    run(scenario())


def test_a_new_address_is_used_when_the_old_one_expires(
    run: Run, copying: Copying, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(names, "_MIN_TTL", 0.05)

    async def scenario() -> None:
        async with name_server() as dns, origin(lambda _: [OK, None]) as old:
            new = Origin(lambda _: [OK, None])
            await new.start(old.port, "127.0.0.2")
            dns.ttl = 0
            dns.answers[HOST] = ["127.0.0.1"]
            async with copying(old.port, **ask(dns), **ALONE) as mirror:
                mirror.get()
                await mirror.answered(1)
                dns.answers[HOST] = ["127.0.0.2"]
                count = 1
                while not new.requests:
                    mirror.get()
                    count += 1
                    await mirror.answered(count)
            await new.stop()

    run(scenario())


@pytest.mark.parametrize(("ttl", "kept"), [(0, 5), (30, 30), (86400, 3600)])
def test_times_to_live_are_between_5_seconds_and_an_hour(run: Run, ttl: int, kept: float) -> None:
    async def scenario() -> None:
        async with name_server() as dns:
            dns.answers[HOST] = ["127.0.0.1"]
            dns.ttl = ttl
            known = Names()
            host = known.host(HOST, 1, (dns.address,))
            await host.get()
            assert kept - 1 < host._expires_at - monotonic() <= kept
            await known.close()

    run(scenario())


@pytest.mark.parametrize("fault", [SERVFAIL, 3, []])
def test_old_addresses_are_used_while_there_are_no_new_ones(
    run: Run, caplog: pytest.LogCaptureFixture, fault: Any
) -> None:
    async def scenario() -> None:
        async with name_server() as dns:
            dns.answers[HOST] = ["127.0.0.1"]
            dns.ttl = 0
            known = Names()
            host = known.host(HOST, 1, (dns.address,))
            assert addresses_of(await host.get()) == ["127.0.0.1"]
            dns.answers[HOST] = fault
            host._expires_at = 0.0
            assert addresses_of(await host.get()) == ["127.0.0.1"]
            assert "the last addresses are used" in caplog.text
            dns.answers[HOST] = ["127.0.0.2"]
            host._expires_at = 0.0
            assert addresses_of(await host.get()) == ["127.0.0.2"]
            await known.close()

    run(scenario())


def test_silence_costs_half_a_second_where_addresses_are_known(run: Run) -> None:
    async def scenario() -> None:
        async with name_server() as dns:
            dns.answers[HOST] = ["127.0.0.1"]
            known = Names()
            host = known.host(HOST, 1, (dns.address,))
            await host.get()
            dns.silent = True
            host._expires_at = 0.0
            begin = monotonic()
            assert addresses_of(await host.get()) == ["127.0.0.1"]
            assert monotonic() - begin < 2
            await known.close()

    run(scenario())


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (3, "Domain name not found"),
        (SERVFAIL, "SERVFAIL|failure"),
        ([], "not found|no address|no data"),
    ],
)
def test_a_name_without_an_address_is_an_error_that_names_it(
    run: Run, answer: Any, text: str
) -> None:
    async def scenario() -> None:
        async with name_server() as dns:
            dns.answers[HOST] = answer
            known = Names()
            with pytest.raises(LookupFailedError, match=f"no address for '{HOST}'.*{text}"):
                await known.host(HOST, 1, (dns.address,)).get()
            await known.close()

    run(scenario())


def test_a_silent_name_server_keeps_no_other_target_and_no_stop_waiting(
    run: Run, copying: Copying, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)

    async def scenario() -> None:
        async with name_server() as dns, origin() as server:
            dns.silent_names.add("silent.example")
            dns.answers[HOST] = ["127.0.0.1"]
            silent = {"server": "silent.example", "nameservers": (dns.address,), "drain": 0.2}
            timeouts = Timeouts(connect=0.2, min_backoff=0.01, max_backoff=0.02)
            async with (
                copying(1, **silent, timeouts=timeouts) as mute,
                copying(server.port, **ask(dns)) as mirror,
            ):
                for number in range(1, 1001):
                    mute.get()
                    mirror.get()
                    if number % 100 == 0:
                        await mirror.answered(number)
                await until(lambda: mute.target.counters.connect_failures >= 2)
                assert mute.target.counters.failed_attempts.keys() == {"name"}
                begin = monotonic()
            assert monotonic() - begin < 2

    run(scenario())
    assert "no address for 'silent.example' within 0.2 s" in caplog.text
    assert "never retrieved" not in caplog.text


def test_whoever_waits_for_a_lookup_does_not_end_it_for_others(run: Run) -> None:
    async def scenario() -> None:
        async with name_server() as dns:
            dns.answers[HOST] = ["127.0.0.1"]
            dns.silent = True
            known = Names()
            host = known.host(HOST, 1, (dns.address,))
            first, second = (asyncio.create_task(host.get()) for _ in range(2))
            await until(lambda: bool(dns.asked))
            first.cancel()
            dns.speak()
            assert addresses_of(await second) == ["127.0.0.1"]
            assert dns.asked.count(HOST) == 2
            await known.close()

    run(scenario())


def test_names_in_the_hosts_file_count(run: Run) -> None:
    async def scenario() -> None:
        known = Names()
        found = addresses_of(await known.host("localhost", 80).get())
        assert set(found) <= {"127.0.0.1", "::1"}
        assert found
        await known.close()

    run(scenario())


HOSTS = """\
# comment
127.0.0.1   localhost  other
::1         dual.example  # comment
127.0.0.1   Dual.Example
nonsense    dual.example
127.0.0.1   dual.example
127.0.0.2   notdual.example dual.example.org
"""


def test_all_addresses_of_a_name_in_the_hosts_file_count(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text(HOSTS)
    monkeypatch.setattr(names, "_HOSTS", hosts)

    async def scenario() -> None:
        known = Names()
        host = known.host("DUAL.example.", 80, ("127.0.0.1:1",))
        assert sorted(addresses_of(await host.get())) == ["127.0.0.1", "::1"]
        assert 4 < host._expires_at - monotonic() <= 5
        hosts.unlink()
        host._expires_at = 0.0
        assert sorted(addresses_of(await host.get())) == ["127.0.0.1", "::1"]
        await known.close()

    run(scenario())


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_an_address_is_not_looked_up(run: Run, address: str) -> None:
    async def scenario() -> None:
        known = Names()
        assert addresses_of(await known.host(address, 80, ("127.0.0.1:1",)).get()) == [address]
        await known.close()

    run(scenario())


def test_targets_with_one_host_share_its_addresses_and_leave_nothing_behind() -> None:
    known = Names()
    host = known.host(HOST, 1)
    assert known.host(HOST, 1) is host
    assert known.host(HOST, 2) is not host
    assert known.host(HOST, 1, ("127.0.0.1",)) is not host
    del host
    assert not known._hosts
    assert not known._resolvers


# The order of addresses.


class Fixed(Resolver):
    """Knows some addresses without being asked for them."""

    async def look_up(self, host: str, port: int) -> tuple[list[names.AddressInfo], float]:
        return [names._address_info(f"192.0.2.{number}", port) for number in range(1, 4)], 60


def test_an_address_that_did_not_connect_comes_last_for_a_minute(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        host = HostAddresses(HOST, 1, Fixed())
        found = sorted(await host.get())
        host.record(found[:2], found[1])
        orders = [addresses_of(await host.get()) for _ in range(4)]
        assert {order[-1] for order in orders} == {"192.0.2.1"}
        assert {order[0] for order in orders} == {"192.0.2.2", "192.0.2.3"}
        host._avoided = {key: end - 60 for key, end in host._avoided.items()}
        orders = [addresses_of(await host.get()) for _ in range(3)]
        assert {order[0] for order in orders} == {"192.0.2.1", "192.0.2.2", "192.0.2.3"}

    run(scenario())


def test_where_all_fail_all_are_tried_again(run: Run) -> None:
    async def scenario() -> None:
        host = HostAddresses(HOST, 1, Fixed())
        found = await host.get()
        host.record(found, None)
        assert sorted(await host.get()) == sorted(found)

    run(scenario())


# The source of connections.


def test_an_interface_that_does_not_exist_is_named(
    run: Run, copying: Copying, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        pool = {"interface": "nosuch"}
        async with origin() as server, copying(server.port, **pool, drain=0) as mirror:
            mirror.get()
            await until(lambda: "cannot be reached" in caplog.text)
            assert "the interface 'nosuch' is neither a network interface nor" in caplog.text

    run(scenario())


def test_an_interface_of_another_version_of_ip_is_named(
    run: Run, copying: Copying, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        pool = {"interface": "::1"}
        async with origin() as server, copying(server.port, **pool, drain=0) as mirror:
            mirror.get()
            await until(lambda: "the interface '::1' is not of the target's IP" in caplog.text)

    run(scenario())


def test_the_system_looks_after_connections_that_are_silent() -> None:
    source = SourceAddress(TargetSettings(TargetURL.parse("http://127.0.0.1:1")), Names())
    with source.make_socket(names._address_info("127.0.0.1", 1)) as sock:
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL) == 10
        if sys.platform == "linux":
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 10
