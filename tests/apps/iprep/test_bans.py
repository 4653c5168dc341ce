import asyncio
import os
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine
from contextlib import closing
from functools import partial
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spoakit.apps.iprep import ban_file
from spoakit.apps.iprep.bans import Ban, BanError, BanList, BanStore
from spoakit.exceptions import StartupError
from tests.support.waiting import until

T = TypeVar("T")

ADDRESS = IPv4Address("192.0.2.7")


def ban(network: str = "192.0.2.7", until: float = 1e12, score: int = 0, reason: str = "") -> Ban:
    return Ban(ip_network(network), score, until, reason)


def done(waited: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(waited)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "bans.sqlite"


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


def test_bans_survive_a_restart(path: Path) -> None:
    store = BanStore(path)
    done(store.ban(ban(reason="first")))
    done(store.ban(ban(reason="second")))
    store.close()
    store = BanStore(path)
    assert done(store.current()) == [ban(reason="second")]
    store.close()


def test_a_ban_that_was_answered_survives_a_kill(path: Path) -> None:
    program = f"""
from spoakit.apps.iprep.bans import Ban, BanStore
from ipaddress import ip_network
import asyncio
store = BanStore(__import__("pathlib").Path({str(path)!r}))
for number in range(100):
    asyncio.run(store.ban(Ban(ip_network(f"192.0.2.{{number}}"), 0, 1e12)))
    print(number, flush=True)
input()
"""
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdin is not None
    lines = [process.stdout.readline() for _ in range(100)]
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    process.stdin.close()
    assert lines[-1] == b"99\n"
    store = BanStore(path)
    assert len(done(store.current())) == 100
    store.close()


def test_workers_that_start_together_make_the_file_together(tmp_path: Path) -> None:
    program = """
import sys
from pathlib import Path
from spoakit.apps.iprep.bans import BanStore
folder = Path(sys.argv[1])
print("ready", flush=True)
for line in sys.stdin:
    BanStore(folder / line.strip()).close()
    print("made", flush=True)
"""
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(tmp_path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        for _ in range(4)
    ]

    def answers() -> list[str]:
        return [worker.stdout.readline() for worker in workers if worker.stdout is not None]

    try:
        assert answers() == ["ready\n"] * 4
        for number in range(30):  # without care, one in four goes wrong
            for worker in workers:
                assert worker.stdin is not None
                worker.stdin.write(f"bans-{number}\n")
            assert answers() == ["made\n"] * 4
    finally:
        for worker in workers:
            worker.communicate()


def test_a_file_that_stays_locked_is_said(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    BanStore(path).close()
    monkeypatch.setattr(ban_file, "_START_TIMEOUT", 0.0)
    monkeypatch.setattr(ban_file, "_BUSY_TIMEOUT", 0.0)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("PRAGMA locking_mode = EXCLUSIVE")
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(StartupError, match="locked"):
            BanStore(path)


def test_another_worker_sees_a_ban_and_its_end_within_100_ms(path: Path) -> None:
    async def scenario() -> None:
        writer, reader = BanStore(path), BanStore(path)
        following = asyncio.create_task(reader.follow())
        await writer.ban(ban())
        start = time.monotonic()
        await until(lambda: reader.find(ADDRESS) is not None)
        seen = time.monotonic() - start
        assert await writer.unban(ip_network("192.0.2.7"))
        await until(lambda: reader.find(ADDRESS) is None)
        following.cancel()
        writer.close()
        reader.close()
        assert seen < 0.5  # 40 ms on a machine that has time

    asyncio.run(scenario())


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


def test_the_file_is_its_owners_alone(path: Path) -> None:
    BanStore(path).close()
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600


@pytest.mark.parametrize("content", [b"no database" * 100, None])
def test_a_file_that_cannot_be_used_is_said(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "bans"
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
    with pytest.raises(StartupError, match="bans"):
        BanStore(path)


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


def test_of_many_bans_only_what_has_changed_is_read(path: Path) -> None:
    writer, reader = BanStore(path), BanStore(path)
    with sqlite3.connect(path) as db:
        db.executemany(
            "INSERT INTO bans (network, score, until, reason) VALUES (?, 0, 1e12, '')",
            ((f"{IPv4Address(number)}/32",) for number in range(20_000)),
        )
    db.close()
    done(writer.refresh())
    done(reader.refresh())
    assert len(reader.bans) == 20_000
    start = time.process_time()
    for number in range(10):
        done(writer.ban(ban(f"192.0.2.{number}")))
        done(reader.refresh())
    seconds = time.process_time() - start
    assert len(reader.bans) == 20_010
    assert seconds < 0.5  # reading all of them ten times takes more than four seconds
    writer.close()
    reader.close()


@pytest.mark.parametrize(
    "row", [("nonsense", 0, ""), ("192.0.2.9/32", 101, ""), ("192.0.2.9/32", 0, "x" * 201)]
)
def test_a_row_that_somebody_else_got_wrong_costs_no_other(
    path: Path, row: tuple[str, int, str]
) -> None:
    store = BanStore(path)
    with sqlite3.connect(path) as db:
        db.execute(
            "INSERT INTO bans (network, score, reason, until) VALUES (?, ?, ?, 1e12)",
            row,
        )
    db.close()
    done(store.ban(ban()))
    assert store.find(ADDRESS) is not None
    store.close()
    store = BanStore(path)
    assert [each.name for each in done(store.current())] == ["192.0.2.7"]
    store.close()


def test_a_file_that_cannot_be_used_any_more_is_a_ban_error(path: Path) -> None:
    """And those in memory hold."""
    path = path.parent / "folder" / "bans"
    path.parent.mkdir()
    store = BanStore(path)
    done(store.ban(ban()))
    shutil.rmtree(path.parent)
    with pytest.raises(BanError, match=r"cannot be read: .*No such file"):
        done(store.current())
    with pytest.raises(BanError, match=r"cannot be written: .*No such file"):
        done(store.ban(ban("192.0.2.8")))
    assert store.find(ADDRESS) is not None
    assert store.find(IPv4Address("192.0.2.8")) is None
    path.parent.mkdir()
    done(store.ban(ban("192.0.2.8")))
    assert names(path) == {"192.0.2.7", "192.0.2.8"}
    store.close()


# --- the end of bans ---------------------------------------------------------------------


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


def names(path: Path) -> set[str]:
    """Return whom the file has bans of, those that have ended among them."""
    with closing(sqlite3.connect(path)) as db:
        rows = db.execute("SELECT network FROM bans").fetchall()
    return {network.removesuffix("/32") for (network,) in rows}


def has_ended(store: BanStore) -> bool:
    return store.bans.ended > 0


async def follow_until(store: BanStore, condition: Callable[[], object]) -> None:
    following = asyncio.create_task(store.follow())
    try:
        await until(condition)
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)


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


# --- who may ban how much ----------------------------------------------------------------


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


# --- another file in its place -----------------------------------------------------------


def remove(path: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        Path(f"{path}{suffix}").unlink()


def remove_file_alone(path: Path) -> None:
    path.unlink()


def replace_by_another(path: Path) -> None:
    other = path.with_name("other")
    store = BanStore(other)
    done(store.ban(ban("198.51.100.1", reason="of the other file")))
    done(store.ban(ban("192.0.2.7", until=1.0)))
    store.close()
    other.replace(path)


def replace_by_nonsense(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(b"no database" * 1000)
    other.replace(path)


@pytest.mark.parametrize(
    "act", [remove, remove_file_alone, replace_by_another, replace_by_nonsense]
)
@pytest.mark.parametrize("count", [1, 3])
def test_a_file_that_is_not_there_any_more_is_written_anew(
    path: Path, act: Callable[[Path], None], count: int
) -> None:
    stores = [BanStore(path) for _ in range(count)]
    done(stores[0].ban(ban()))
    done(stores[0].ban(ban("192.0.2.8")))
    assert done(stores[0].unban(ip_network("192.0.2.8")))
    for store in stores:
        done(store.refresh())
    act(path)

    async def scenario() -> None:
        await asyncio.gather(
            *(
                store.ban(ban(f"192.0.2.{number}", reason="later"))
                for number, store in enumerate(stores, 10)
            )
        )

    done(scenario())
    expected = {"192.0.2.7", *(f"192.0.2.{10 + number}" for number in range(count))}
    if act is replace_by_another:
        expected.add("198.51.100.1")
    for store in stores:
        assert {each.name for each in done(store.current())} == expected
    for store in stores:
        store.close()
    store = BanStore(path)
    assert {each.name for each in done(store.current())} == expected
    store.close()
