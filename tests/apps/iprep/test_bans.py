import asyncio
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import time
from contextlib import closing
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spoakit.apps.iprep import bans
from spoakit.apps.iprep.bans import Ban, BanError, BanList, BanStore
from spoakit.exceptions import StartupError

ADDRESS = IPv4Address("192.0.2.7")


def ban(network: str = "192.0.2.7", until: float = 1e12, score: int = 0, reason: str = "") -> Ban:
    return Ban(ip_network(network), score, until, reason)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "bans.sqlite"


def test_a_banned_address_is_found_and_no_other(path: Path) -> None:
    store = BanStore(path)
    store.ban(ban(reason="scraping"))
    assert store.find(ADDRESS) == ban(reason="scraping")
    assert store.find(IPv4Address("192.0.2.8")) is None
    assert store.find(IPv6Address("::c000:207")) is None
    store.close()


def test_of_networks_with_an_address_in_them_the_smallest_counts(path: Path) -> None:
    store = BanStore(path)
    for network, score in (("192.0.0.0/16", 30), ("192.0.2.0/24", 20), ("0.0.0.0/0", 40)):
        store.ban(ban(network, score=score))
    for address, score in (("192.0.2.1", 20), ("192.0.3.1", 30), ("198.51.100.1", 40)):
        found = store.find(IPv4Address(address))
        assert found is not None
        assert found.score == score
    store.ban(ban("2001:db8::/32"))
    assert store.find(IPv6Address("2001:db8::1")) is not None
    assert store.find(IPv6Address("2001:db9::1")) is None
    store.close()


def test_a_ban_ends_exactly_when_it_is_to_end(path: Path) -> None:
    now = 1000.0
    store = BanStore(path, clock=lambda: now)
    store.ban(ban(until=1060.0))
    now = 1059.999
    assert store.find(ADDRESS) is not None
    now = 1060.0
    assert store.find(ADDRESS) is None
    assert store.current() == []
    store.close()


def test_where_the_smallest_has_ended_the_next_counts(path: Path) -> None:
    now = 0.0
    store = BanStore(path, clock=lambda: now)
    store.ban(ban("192.0.2.7", until=10.0))
    store.ban(ban("192.0.2.0/24", until=20.0, score=5))
    now = 15.0
    found = store.find(ADDRESS)
    assert found is not None
    assert found.score == 5
    store.close()


def test_bans_survive_a_restart(path: Path) -> None:
    store = BanStore(path)
    store.ban(ban(reason="first"))
    store.ban(ban(reason="second"))
    store.close()
    store = BanStore(path)
    assert store.current() == [ban(reason="second")]
    store.close()


def test_a_ban_that_was_answered_survives_a_kill(path: Path) -> None:
    program = f"""
from spoakit.apps.iprep.bans import Ban, BanStore
from ipaddress import ip_network
store = BanStore(__import__("pathlib").Path({str(path)!r}))
for number in range(100):
    store.ban(Ban(ip_network(f"192.0.2.{{number}}"), 0, 1e12))
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
    assert len(store.current()) == 100
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
    monkeypatch.setattr(bans, "_START_TIMEOUT", 0.0)
    monkeypatch.setattr(bans, "_BUSY_TIMEOUT", 0.0)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("PRAGMA locking_mode = EXCLUSIVE")
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(StartupError, match="locked"):
            BanStore(path)


def test_another_worker_sees_a_ban_and_its_end_within_100_ms(path: Path) -> None:
    async def scenario() -> None:
        writer, reader = BanStore(path), BanStore(path)
        following = asyncio.create_task(reader.follow())
        writer.ban(ban())
        start = time.monotonic()
        while reader.find(ADDRESS) is None:
            assert time.monotonic() - start < 5
            await asyncio.sleep(0.001)
        seen = time.monotonic() - start
        assert writer.unban(ip_network("192.0.2.7"))
        while reader.find(ADDRESS) is not None:
            assert time.monotonic() - start < 5
            await asyncio.sleep(0.001)
        following.cancel()
        writer.close()
        reader.close()
        assert seen < 0.5  # 40 ms on a machine that has time

    asyncio.run(scenario())


def test_what_was_not_banned_cannot_be_unbanned(path: Path) -> None:
    store = BanStore(path)
    store.ban(ban("192.0.2.0/24"))
    assert not store.unban(ip_network("192.0.2.7"))
    assert store.unban(ip_network("192.0.2.0/24"))
    assert not store.unban(ip_network("192.0.2.0/24"))
    store.close()


def test_there_are_no_more_than_may_be_and_ended_ones_make_room(path: Path) -> None:
    now = 0.0
    store = BanStore(path, limit=2, clock=lambda: now)
    store.ban(ban("192.0.2.1", until=10.0))
    store.ban(ban("192.0.2.2", until=20.0))
    with pytest.raises(BanError, match="there are 2 bans already"):
        store.ban(ban("192.0.2.3"))
    store.ban(ban("192.0.2.2", until=30.0))
    now = 10.0
    store.ban(ban("192.0.2.3"))
    assert [each.name for each in store.current()] == ["192.0.2.2", "192.0.2.3"]
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


def test_memory_has_no_more_bans_than_the_file(path: Path) -> None:
    now = 0.0
    store = BanStore(path, limit=10, clock=lambda: now)
    for number in range(1000):
        now = float(number)
        store.ban(ban(str(IPv4Address(number)), until=now + 2))
    assert len(store.bans) <= 10
    store.close()


def test_a_follower_forgets_what_has_ended(path: Path) -> None:
    async def scenario() -> None:
        store = BanStore(path)
        store.ban(ban(until=time.time() + 0.01))
        following = asyncio.create_task(store.follow())
        async with asyncio.timeout(10):
            while len(store.bans):
                await asyncio.sleep(0.01)
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
    writer.refresh()
    reader.refresh()
    assert len(reader.bans) == 20_000
    start = time.process_time()
    for number in range(10):
        writer.ban(ban(f"192.0.2.{number}"))
        reader.refresh()
    seconds = time.process_time() - start
    assert len(reader.bans) == 20_010
    assert seconds < 0.5  # reading all of them ten times takes more than four seconds
    writer.close()
    reader.close()


def test_who_was_held_up_still_sees_that_a_ban_was_ended(path: Path) -> None:
    now = 0.0
    writer, reader = (BanStore(path, clock=lambda: now) for _ in range(2))
    writer.ban(ban())
    reader.refresh()
    writer.unban(ip_network("192.0.2.7"))
    now = 1000.0
    writer.ban(ban("192.0.2.8"))  # removes what ended long ago
    assert reader.find(ADDRESS) is not None
    reader.refresh()
    assert reader.find(ADDRESS) is None
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
    store.ban(ban())
    assert store.find(ADDRESS) is not None
    store.close()
    store = BanStore(path)
    assert [each.name for each in store.current()] == ["192.0.2.7"]
    store.close()


def test_a_file_that_cannot_be_read_any_more_is_a_ban_error(path: Path) -> None:
    store = BanStore(path)
    store.close()
    with pytest.raises(BanError, match="cannot be read"):
        store.current()
