import os
import subprocess
import sys
from pathlib import Path

import pytest

from spoakit.exceptions import StartupError
from spoakit.server.pidfile import Pidfile

HOLDER = """
import sys
from spoakit.server.pidfile import Pidfile
pidfile = Pidfile(sys.argv[1])
pidfile.lock()
print("locked", flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "agent.pid"


def test_it_holds_the_process_id_until_it_is_released(path: Path) -> None:
    pidfile = Pidfile(str(path))
    pidfile.lock()
    assert path.read_text() == f"{os.getpid()}\n"
    pidfile.release()
    assert not path.exists()


def test_a_stale_file_is_taken_over(path: Path) -> None:
    path.write_text("1234567890 and more\n")
    pidfile = Pidfile(str(path))
    pidfile.lock()
    assert path.read_text() == f"{os.getpid()}\n"
    pidfile.release()


def test_the_file_of_a_live_process_is_refused_and_left_alone(path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"locked\n"
        with pytest.raises(
            StartupError, match=f"process {holder.pid} holds it; stop that process first"
        ):
            Pidfile(str(path)).lock()
        assert path.read_text() == f"{holder.pid}\n"


def test_a_file_of_somebody_else_at_the_path_is_not_removed(path: Path) -> None:
    pidfile = Pidfile(str(path))
    pidfile.lock()
    path.unlink()
    path.write_text("4711\n")
    pidfile.release()
    assert path.read_text() == "4711\n"


def test_a_path_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    path = tmp_path / "missing" / "agent.pid"
    with pytest.raises(StartupError, match=f"pidfile {path}: No such file or directory"):
        Pidfile(str(path)).lock()


def test_a_forked_process_neither_removes_nor_unlocks_it(path: Path) -> None:
    pidfile = Pidfile(str(path))
    pidfile.lock()
    pid = os.fork()
    if pid == 0:
        pidfile.release()
        pidfile.close()
        os._exit(0)
    os.waitpid(pid, 0)
    assert path.exists()
    probe = "import fcntl, sys; fcntl.lockf(open(sys.argv[1], 'r+'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
    tried = subprocess.run([sys.executable, "-c", probe, str(path)], capture_output=True)
    assert tried.returncode == 1
    pidfile.release()
