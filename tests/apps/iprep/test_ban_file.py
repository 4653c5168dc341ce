from collections.abc import Callable
from ipaddress import ip_network
from pathlib import Path

import pytest

from spoakit.apps.iprep import ban_file
from spoakit.apps.iprep.ban_file import BanFile
from spoakit.apps.iprep.ban_list import Ban

FIRST = Ban(ip_network("192.0.2.1"), 0, 1e12)
SECOND = Ban(ip_network("192.0.2.2"), 0, 1e12)
NONSENSE = b"no database"


def numbers_that_come_again(path: Path) -> tuple[int, int] | None:
    """Number files as a file system may that gives the number of a closed file to the next one."""
    try:
        return 1, 2 if path.read_bytes().startswith(NONSENSE) else 1
    except FileNotFoundError:
        return None


def test_a_new_file_with_the_inode_number_of_the_old_one_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is free when the last worker has closed the old file."""
    monkeypatch.setattr(ban_file, "identity_of", numbers_that_come_again)
    path = tmp_path / "bans.sqlite"
    slow, fast = BanFile(path, known=lambda: [FIRST]), BanFile(path, known=lambda: [SECOND])
    put_aside: Callable[..., None] = slow._put_aside

    def put_aside_and_lose_the_processor(*arguments: object) -> None:
        put_aside(*arguments)
        fast.write([SECOND])

    monkeypatch.setattr(slow, "_put_aside", put_aside_and_lose_the_processor)
    nonsense = tmp_path / "nonsense"
    nonsense.write_bytes(NONSENSE * 1000)
    nonsense.replace(path)
    slow.write([FIRST])
    # SQLite does so by itself after some hundred writes, into the file that it has open.
    slow._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    reader = BanFile(path, known=list)
    for file in (slow, fast, reader):
        file.restart()
        assert {ban.name for ban in file.changes()[0]} == {"192.0.2.1", "192.0.2.2"}
        file.close()
    assert (tmp_path / "bans.sqlite.damaged").read_bytes().startswith(NONSENSE)
