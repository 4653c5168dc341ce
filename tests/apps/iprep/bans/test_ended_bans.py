"""Bans that have ended, and clocks that jump."""

import asyncio
from functools import partial
from ipaddress import IPv4Address, IPv4Network, ip_network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spoakit.apps.iprep.bans import Ban, BanError, BanList, BanStore
from tests.support.bans import ADDRESS, ban, done, follow_until, names


class Clocks:
    """A wall clock that can be set, and one that cannot."""

    def __init__(self) -> None:
        self.wall = 1_000_000.0
        self.monotonic = 0.0

    def pass_time(self, seconds: float) -> None:
        self.wall += seconds
        self.monotonic += seconds

    def pass_hour(self, store: BanStore) -> None:
        """Let an hour pass in which a store is never held up."""
        done(store.refresh())
        for _ in range(181):
            self.pass_time(20)
            done(store.refresh())

    def store(self, path: Path, limit: int = 100_000) -> BanStore:
        return BanStore(path, limit, lambda: self.wall, lambda: self.monotonic)


def has_ended(store: BanStore) -> bool:
    return store.bans.ended > 0


def test_a_clock_that_jumps_forth_and_back_loses_no_ban(path: Path) -> None:
    clocks = Clocks()
    store = clocks.store(path)

    async def scenario() -> None:
        await store.ban(ban(until=clocks.wall + 3600))
        await store.ban(ban("192.0.2.8", until=clocks.wall + 100_000))
        clocks.wall += 86_400
        await follow_until(store, lambda: len(store.bans) == 1)
        assert store.find(ADDRESS) is None
        clocks.monotonic += 3000
        await store.ban(ban("192.0.2.9", until=clocks.wall + 60))
        clocks.wall -= 86_400
        await follow_until(store, lambda: store.find(ADDRESS))
        assert {each.name for each in await store.current()} == {
            "192.0.2.7",
            "192.0.2.8",
            "192.0.2.9",
        }
        # It ends when it is to end, as if nothing had happened.
        clocks.pass_time(3601)
        await follow_until(store, lambda: len(store.bans) == 2)

    done(scenario())
    store.close()


def test_an_ended_ban_comes_back_with_the_clock_in_all_workers_and_after_a_start(
    path: Path,
) -> None:
    clocks = Clocks()
    stores = [clocks.store(path), clocks.store(path)]
    done(stores[0].ban(ban(until=clocks.wall + 60)))
    clocks.wall += 1e6
    stores.append(clocks.store(path))
    for store in stores:
        done(follow_until(store, partial(has_ended, store)))
        assert store.find(ADDRESS) is None
    clocks.wall -= 1e6
    for store in stores:
        done(follow_until(store, partial(store.find, ADDRESS)))
        store.close()


def test_an_ended_ban_leaves_the_file_an_hour_later(path: Path) -> None:
    clocks = Clocks()
    store = clocks.store(path)
    done(store.ban(ban(until=clocks.wall + 10)))
    done(store.ban(ban("192.0.2.8")))
    clocks.pass_time(11)
    done(store.refresh())  # so that it is not one that was held up
    done(follow_until(store, partial(has_ended, store)))
    assert names(path) == {"192.0.2.7", "192.0.2.8"}
    clocks.pass_hour(store)
    done(follow_until(store, lambda: names(path) == {"192.0.2.8"}))
    assert not store.bans.ended
    store.close()


def test_a_ban_that_is_made_again_stays_in_the_file(path: Path) -> None:
    clocks = Clocks()
    one, other = clocks.store(path), clocks.store(path)
    done(one.ban(ban(until=clocks.wall + 10)))
    done(other.refresh())
    clocks.pass_time(11)
    done(follow_until(other, lambda: other.bans.ended))
    done(one.ban(ban(until=clocks.wall + 10_000)))
    clocks.pass_time(3700)
    # The other worker was held up: it still has the old ban, whose hour is over.
    done(follow_until(other, lambda: other.find(ADDRESS)))
    assert names(path) == {"192.0.2.7"}
    one.close()
    other.close()


def test_an_unban_is_not_undone_by_a_clock_that_is_set_back(path: Path) -> None:
    clocks = Clocks()
    store, other = clocks.store(path), clocks.store(path)
    done(store.ban(ban(until=clocks.wall + 3600)))
    done(other.refresh())
    assert done(store.unban(ip_network("192.0.2.7")))
    clocks.wall -= 86_400
    done(other.refresh())
    for each in (store, other, clocks.store(path)):
        done(follow_until(each, partial(has_ended, each)))
        assert each.find(ADDRESS) is None
        each.close()


def test_a_worker_that_was_held_up_still_sees_that_a_ban_was_ended(path: Path) -> None:
    clocks = Clocks()
    writer, reader = clocks.store(path), clocks.store(path)
    done(writer.ban(ban()))
    done(reader.refresh())
    done(writer.unban(ip_network("192.0.2.7")))
    done(follow_until(writer, lambda: writer.bans.ended))
    clocks.pass_hour(writer)
    done(follow_until(writer, lambda: not names(path)))
    assert reader.find(ADDRESS) is not None
    done(reader.refresh())
    assert reader.find(ADDRESS) is None
    writer.close()
    reader.close()


def test_bans_that_come_while_all_are_read_anew_are_kept(path: Path) -> None:
    clocks = Clocks()
    store = clocks.store(path)

    async def ban_and_refresh() -> None:
        for number in range(1000):
            store.ban_soon(ban(f"198.51.{number // 250}.{number % 250}"))
        clocks.monotonic += 40  # it was held up
        refreshed = asyncio.create_task(store.refresh())
        number = 0
        while not refreshed.done():
            store.ban_soon(ban(str(IPv4Address(number))))
            await store.ban(ban(str(IPv4Address(2**31 + number))))
            number += 1
        await refreshed
        assert number > 2
        assert len(store.bans) == 1000 + 2 * number
        assert len(await store.current()) == 1000 + 2 * number

    for _ in range(3):
        done(ban_and_refresh())
        for suffix in ("", "-wal", "-shm"):
            path.with_name(f"{path.name}{suffix}").unlink(missing_ok=True)
        store.close()
        store = clocks.store(path)
    store.close()


def test_what_has_ended_is_bounded(path: Path) -> None:
    clocks = Clocks()
    store = clocks.store(path, limit=10)
    refused = 0
    for number in range(300):
        clocks.pass_time(1)
        try:
            done(store.ban(ban(str(IPv4Address(number)), until=clocks.wall + 2)))
        except BanError:
            refused += 1
        store.bans.follow_clock(clocks.wall)
        assert len(store.bans) + store.bans.ended <= 20
    assert 0 < refused < 300
    with pytest.raises(BanError, match="20 bans have just ended, which is the limit"):
        done(store.ban(ban()))
    store.close()


def test_the_end_of_a_ban_costs_that_ban_alone() -> None:
    """A step of the event loop handles few of many that end, whatever the number of the others."""
    bans = BanList(monotonic=lambda: 0.0)
    bans.follow_clock(999.0)
    for number in range(50_000):
        bans.add(Ban(IPv4Network(number), 0, 2000.0))
    for number in range(50_000, 52_000):
        bans.add(Ban(IPv4Network(number), 0, 1000.0))
    counts: list[int] = []
    while not counts or counts[-1] > 50_000:
        bans.follow_clock(1001.0)
        counts.append(len(bans))
    assert counts == [51_500, 51_000, 50_500, 50_000]
    assert bans.ended == 2000


changes = st.lists(
    st.tuples(st.integers(0, 5), st.floats(0, 300), st.floats(-200, 200), st.floats(0, 50)),
    max_size=30,
)


@given(changes)
def test_bans_in_force_are_those_that_the_wall_clock_says(
    steps: list[tuple[int, float, float, float]],
) -> None:
    """However it jumps, as long as what has ended is kept."""
    bans, expected, now = BanList(monotonic=lambda: 0.0), {}, 1000.0
    bans.follow_clock(now)
    for number, length, jump, passed in steps:
        network = IPv4Network(number)
        bans.add(Ban(network, 0, now + length))
        expected[network] = now + length
        now += jump if abs(jump) > 1 else 0
        bans.follow_clock(now)
        now += passed
        bans.follow_clock(now)
        for each, end in expected.items():
            assert (bans.find(each.network_address, now) is not None) == (end > now)
        assert len(bans) + bans.ended == len(expected)
