"""The folder of a service without a cache: in use, abandoned, or somebody else's."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from spoakit.apps.iprep.config.schema import ReputationSettings
from spoakit.apps.iprep.service import snapshots_folder
from tests.support.waiting import TIMEOUT


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def test_a_folder_in_use_stays_and_an_abandoned_one_goes(temporary: Path) -> None:
    abandoned = temporary / "spoa-iprep-abandoned"
    abandoned.mkdir()
    (abandoned / "table-1").write_bytes(b"left")
    other = temporary / "other"
    other.mkdir()
    with snapshots_folder(ReputationSettings()) as first:
        assert not abandoned.exists()
        assert first.stat().st_mode & 0o777 == 0o700
        (first / "table-1").write_bytes(b"used")
        with snapshots_folder(ReputationSettings()) as second:
            assert (first / "table-1").exists()
            assert first != second
        assert not second.exists()
        assert (first / "table-1").exists()
    assert list(temporary.iterdir()) == [other]


def test_no_trap_in_a_folder_of_all_users_is_fallen_into(temporary: Path, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_text("precious")
    (temporary / "spoa-iprep-link").symlink_to(precious)
    trap = temporary / "spoa-iprep-trap"
    trap.mkdir()
    (trap / "service.lock").symlink_to(precious / "file")
    (trap / "updater.lock").symlink_to(precious / "file")
    (trap / "folder").symlink_to(precious)
    (temporary / "spoa-iprep-file").write_text("no folder")
    with snapshots_folder(ReputationSettings()):
        pass
    assert (precious / "file").read_text() == "precious"
    assert (temporary / "spoa-iprep-file").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_folder_of_somebody_else_stays(temporary: Path) -> None:
    theirs = temporary / "spoa-iprep-theirs"
    theirs.mkdir()
    os.chown(theirs, 65534, 65534)
    with snapshots_folder(ReputationSettings()):
        assert theirs.exists()


def test_many_that_start_at_the_same_time_get_along(temporary: Path) -> None:
    program = (
        "from spoakit.apps.iprep.config.schema import ReputationSettings\n"
        "from spoakit.apps.iprep.service import snapshots_folder\n"
        "import sys\n"
        "for _ in range(100):\n"
        "    with snapshots_folder(ReputationSettings()) as folder:\n"
        "        (folder / 'file').write_text('x')\n"
        "        assert (folder / 'file').read_text() == 'x'\n"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program], env={**os.environ, "TMPDIR": str(temporary)}
        )
        for _ in range(3)
    ]
    assert [process.wait(TIMEOUT) for process in processes] == [0, 0, 0]
    with snapshots_folder(ReputationSettings()):
        pass
    assert list(temporary.iterdir()) == []
