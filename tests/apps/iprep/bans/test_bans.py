"""Bans: which one is found, and how many there may be."""

import asyncio
import time
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spoakit.apps.iprep.bans import Ban, BanError, BanList, BanStore
from tests.support.bans import ADDRESS, ban, done, follow_until, names
from tests.support.waiting import until


def test_a_banned_address_is_found_and_no_other(path: Path) -> None:
    store = BanStore(path)
    done(store.ban(ban(reason="scraping")))
    assert store.find(ADDRESS) == ban(reason="scraping")
    assert store.find(IPv4Address("192.0.2.8")) is None
    assert store.find(IPv6Address("::c000:207")) is None
    store.close()


def test_of_networks_with_an_address_in_them_the_smallest_counts(path: Path) -> None:
    store = BanStore(path)
    for network, score in (("192.0.0.0/16", 30), ("192.0.2.0/24", 20), ("0.0.0.0/0", 40)):
        done(store.ban(ban(network, score=score)))
    for address, score in (("192.0.2.1", 20), ("192.0.3.1", 30), ("198.51.100.1", 40)):
        found = store.find(IPv4Address(address))
        assert found is not None
        assert found.score == score
    done(store.ban(ban("2001:db8::/32")))
    assert store.find(IPv6Address("2001:db8::1")) is not None
    assert store.find(IPv6Address("2001:db9::1")) is None
    store.close()


def test_a_ban_ends_exactly_when_it_is_to_end(path: Path) -> None:
    now = 1000.0
    store = BanStore(path, clock=lambda: now)
    done(store.ban(ban(until=1060.0)))
    now = 1059.999
    assert store.find(ADDRESS) is not None
    now = 1060.0
    assert store.find(ADDRESS) is None
    assert done(store.current()) == []
    store.close()


def test_where_the_smallest_has_ended_the_next_counts(path: Path) -> None:
    now = 0.0
    store = BanStore(path, clock=lambda: now)
    done(store.ban(ban("192.0.2.7", until=10.0)))
    done(store.ban(ban("192.0.2.0/24", until=20.0, score=5)))
    now = 15.0
    found = store.find(ADDRESS)
    assert found is not None
    assert found.score == 5
    store.close()


def test_what_was_not_banned_cannot_be_unbanned(path: Path) -> None:
    store = BanStore(path)
    done(store.ban(ban("192.0.2.0/24")))
    assert not done(store.unban(ip_network("192.0.2.7")))
    assert done(store.unban(ip_network("192.0.2.0/24")))
    assert not done(store.unban(ip_network("192.0.2.0/24")))
    store.close()


def test_there_are_no_more_than_may_be_and_ended_ones_make_room(path: Path) -> None:
    now = 0.0
    store = BanStore(path, limit=2, clock=lambda: now)
    done(store.ban(ban("192.0.2.1", until=10.0)))
    done(store.ban(ban("192.0.2.2", until=20.0)))
    with pytest.raises(BanError, match="there are 2 bans already"):
        done(store.ban(ban("192.0.2.3")))
    done(store.ban(ban("192.0.2.2", until=30.0)))
    now = 10.1
    done(store.ban(ban("192.0.2.3")))
    assert [each.name for each in done(store.current())] == ["192.0.2.2", "192.0.2.3"]
    store.close()


@pytest.mark.parametrize(
    ("score", "reason", "error"), [(-1, "", "score"), (101, "", "score"), (0, "x" * 201, "200")]
)
def test_a_ban_that_makes_no_sense_is_refused(score: int, reason: str, error: str) -> None:
    with pytest.raises(BanError, match=error):
        ban(score=score, reason=reason)


networks = st.one_of(
    st.builds(
        lambda number, prefix: IPv4Network((number >> (32 - prefix) << (32 - prefix), prefix)),
        st.integers(0, 2**32 - 1),
        st.integers(0, 32),
    ),
    st.builds(
        lambda number, prefix: IPv6Network((number >> (128 - prefix) << (128 - prefix), prefix)),
        st.integers(0, 2**128 - 1),
        st.integers(0, 128),
    ),
)


@given(st.lists(networks, max_size=20), st.integers(0, 2**32 - 1) | st.integers(0, 2**128 - 1))
def test_the_smallest_network_is_found_as_by_looking_at_all(
    banned: list[IPv4Network | IPv6Network], number: int
) -> None:
    bans = BanList()
    for network in banned:
        bans.add(Ban(network, 0, 1.0))
    address = ip_address(number)
    within = [network for network in banned if address in network]
    found = bans.find(address, 0.0)
    assert (found and found.network) == max(within, key=lambda each: each.prefixlen, default=None)
    assert len(bans) == len(set(banned))


def test_a_follower_forgets_what_has_ended(path: Path) -> None:
    async def scenario() -> None:
        store = BanStore(path)
        await store.ban(ban(until=time.time() + 0.01))
        following = asyncio.create_task(store.follow())
        await until(lambda: not len(store.bans))
        following.cancel()
        store.close()

    asyncio.run(scenario())


def test_a_tenth_of_all_bans_is_the_operators(path: Path) -> None:
    async def scenario() -> None:
        store = BanStore(path, limit=20)
        for number in range(18):
            store.ban_soon(ban(f"192.0.2.{number}"))
        with pytest.raises(BanError, match="there are 18 bans already"):
            store.ban_soon(ban("192.0.2.18"))
        store.ban_soon(ban("192.0.2.17", score=7))  # in the place of another one
        await store.ban(ban("192.0.2.18"))
        await store.ban(ban("192.0.2.19"))
        with pytest.raises(BanError, match="there are 20 bans already"):
            await store.ban(ban("192.0.2.20"))
        store.close()

    done(scenario())


def test_a_messages_ban_holds_at_once_and_is_written_with_others(path: Path) -> None:
    async def scenario() -> None:
        store, other = BanStore(path), BanStore(path)
        for number in range(200):
            store.ban_soon(ban(f"192.0.2.{number}"))
        assert store.find(ADDRESS) is not None
        await follow_until(other, lambda: len(other.bans) == 200)
        store.close()
        other.close()

    done(scenario())


def test_bans_that_are_not_written_yet_are_at_the_end(path: Path) -> None:
    async def scenario() -> None:
        store = BanStore(path)
        for number in range(200):
            store.ban_soon(ban(f"192.0.2.{number}"))
        store.close()

    done(scenario())
    assert len(names(path)) == 200
