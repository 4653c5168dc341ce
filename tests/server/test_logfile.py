"""A service's output in a file; see also test_service.py."""

import re
import signal
import socket
from pathlib import Path

import pytest

from spoakit.exceptions import StartupError
from spoakit.server.logfile import OpenLogfile
from spoakit.server.settings import Logfile
from tests.support.processes import children_of
from tests.support.stand_in_service import Service, Start
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow

MARK = r"INFO spoakit.server: --- {} +--- \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d -{{25}}$"


@pytest.fixture(params=[1, 2])
def workers(request: pytest.FixtureRequest) -> int:
    count: int = request.param
    return count


def wait_for(service: Service, file: Path, text: str, times: int = 1) -> None:
    wait_until(lambda: file.exists() and file.read_text().count(text) >= times, f"{text} in {file}")


def test_all_output_goes_to_the_file_between_marks(
    start: Start, workers: int, tmp_path: Path
) -> None:
    file = tmp_path / "a.log"
    file.write_text("before\n")
    service = start(workers=workers, logfile={"path": "a.log"})
    wait_for(service, file, "listening on")
    service.signal(signal.SIGTERM)
    assert service.wait() == 0
    lines = file.read_text().splitlines()
    assert lines[0] == "before"
    assert re.search(MARK.format("start"), lines[1])
    assert re.search(MARK.format("stop"), lines[-1])
    assert sum("stand_in: closed" in line for line in lines) == workers
    assert service.log == ""


def test_the_file_is_emptied_once_if_that_is_asked_for(
    start: Start, workers: int, tmp_path: Path
) -> None:
    file = tmp_path / "w.log"
    file.write_text("before\n")
    service = start(workers=workers, logfile={"path": "w.log", "truncate": True})
    wait_for(service, file, "listening on")
    service.signal(signal.SIGUSR1)
    service.signal(signal.SIGHUP)
    wait_for(service, file, "reloading", times=workers)
    text = file.read_text()
    assert "before" not in text
    assert "--- start" in text


def test_a_file_that_was_moved_away_is_made_anew_on_sigusr1(
    start: Start, workers: int, tmp_path: Path
) -> None:
    file = tmp_path / "r.log"
    service = start(workers=workers, logfile={"path": "r.log"})
    wait_for(service, file, "listening on")
    file.rename(tmp_path / "r.log.1")
    service.signal(signal.SIGUSR1)
    wait_until(file.exists, "a new file")
    service.signal(signal.SIGTERM)
    assert service.wait() == 0
    assert "--- start" in (tmp_path / "r.log.1").read_text()
    assert file.read_text().count("stand_in: closed") == workers
    assert "--- stop" in file.read_text()


def test_a_file_that_cannot_be_made_anew_is_written_on(start: Start, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    service = start(logfile={"path": "folder/x.log"})
    wait_for(service, folder / "x.log", "listening on")
    folder.rename(tmp_path / "moved")
    service.signal(signal.SIGUSR1)
    wait_for(service, tmp_path / "moved" / "x.log", "reopen logs refused, going on as before: ")


def test_a_daemon_keeps_its_file(start: Start, workers: int, tmp_path: Path) -> None:
    file = tmp_path / "d.log"
    service = start(
        workers=workers, daemonize=True, pidfile="d.pid", runtime=0.3, logfile={"path": "d.log"}
    )
    assert service.wait() == 0
    wait_for(service, file, "--- stop")
    assert "the runtime has ended" in file.read_text()


def test_the_file_of_a_live_process_is_not_emptied_by_a_second_one(
    start: Start, tmp_path: Path
) -> None:
    file = tmp_path / "l.log"
    first = start(pidfile="l.pid", logfile={"path": "l.log", "truncate": True})
    wait_for(first, file, "listening on")
    second = start(pidfile="l.pid", logfile={"path": "l.log", "truncate": True})
    assert second.wait() == 1
    assert "holds it; stop that process first" in second.log
    assert "listening on" in file.read_text()


def test_a_file_that_cannot_be_written_ends_the_start(start: Start, tmp_path: Path) -> None:
    with pytest.raises(StartupError, match=r"logfile .*absent/x.log: No such file or directory"):
        OpenLogfile(Logfile(str(tmp_path / "absent" / "x.log")))
    service = start(logfile={"path": "absent/x.log"})
    assert service.wait() == 1
    assert "absent/x.log: No such file or directory" in service.log


@pytest.mark.parametrize("daemonize", [False, True])
@pytest.mark.parametrize("truncate", [False, True])
def test_a_start_that_fails_is_in_the_file_and_on_the_terminal(
    start: Start, tmp_path: Path, daemonize: bool, truncate: bool
) -> None:
    file = tmp_path / "b.log"
    file.write_text("of the service that runs\n")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        logfile = {"path": "b.log", "truncate": truncate}
        service = start(workers=1, listen={"port": port}, logfile=logfile, daemonize=daemonize)
        assert service.wait() == 1
    reason = f"cannot start: cannot listen on 127.0.0.1 port {port}: Address already in use"
    lines = file.read_text().splitlines()
    assert lines[0] == "of the service that runs"
    assert re.search(MARK.format("start"), lines[1])
    assert lines[2].endswith(f"ERROR spoakit.server: {reason}")
    assert service.log == f"ERROR: {reason}\n"


def test_a_file_that_is_emptied_keeps_what_the_start_has_logged(
    start: Start, tmp_path: Path
) -> None:
    file = tmp_path / "w.log"
    file.write_text("before\n" * 1000)
    logfile = {"path": "w.log", "truncate": True}
    service = start(workers=1, loop="select", logfile=logfile)
    wait_for(service, file, "listening on")
    lines = file.read_text().splitlines()
    assert re.search(MARK.format("start"), lines[0])
    assert "loop select" in lines[1]
    assert "before" not in lines


def test_a_file_that_cannot_be_emptied_is_written_to(start: Start) -> None:
    service = start(workers=1, logfile={"path": "/dev/null", "truncate": True})
    wait_until(lambda: len(children_of(service.process.pid)) == 1, "a worker")
    service.signal(signal.SIGTERM)
    assert service.wait() == 0
