"""The file of bans: restarts, other workers, damage and replacement."""

import asyncio
import os
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from ipaddress import IPv4Address, ip_network
from pathlib import Path

import pytest

from spoakit.apps.iprep import ban_file
from spoakit.apps.iprep.bans import BanError, BanStore
from spoakit.exceptions import StartupError
from tests.support.bans import ADDRESS, ban, done, names
from tests.support.waiting import until

pytestmark = pytest.mark.slow


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
