"""Workers that end: they have successors, and no connection is lost."""

import os
import re
import resource
import signal
from pathlib import Path

import pytest

from tests.support.processes import children_of
from tests.support.stand_in_service import Start
from tests.support.supervised import linux_only
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow


def test_a_worker_that_dies_is_restarted_and_the_others_serve_on(start: Start) -> None:
    service = start(workers=2).ready()
    first, second = service.connect(), service.connect()
    dying = int(first.ask("pid"))
    surviving = second.ask("pid")
    first.send("die")
    assert first.read() == ""
    service.wait_for(f"worker 1 (process {dying}) ended unexpectedly: exit code 3")
    assert second.ask("pid") == surviving
    wait_until(lambda: service.connect().ask("pid") not in (surviving, str(dying)), "a successor")
    os.kill(int(surviving), signal.SIGKILL)
    service.wait_for("ended unexpectedly: signal 9 (Killed)")
    service.signal(signal.SIGTERM)
    assert service.wait() == 0


def test_restarts_of_a_worker_that_keeps_dying_are_spaced_out(start: Start) -> None:
    service = start(workers=2).ready()
    kept = service.connect()
    survivor = kept.ask("pid")
    for delay in ("0.1", "0.2", "0.4"):
        wait_until(
            lambda: (
                (client := service.connect()).ask("pid") != survivor and client.ask("die") == ""
            ),
            "a successor",
        )
        service.wait_for(f"it is replaced in {delay} s")
    assert kept.ask("pid") == survivor


def test_all_workers_dying_at_once_loses_no_waiting_connection(start: Start) -> None:
    service = start(workers=2).ready()
    pids = {service.connect().ask("pid") for _ in range(2)}
    for pid in pids:
        os.kill(int(pid), signal.SIGKILL)
    service.wait_for("ended unexpectedly", times=2)
    clients = [service.connect() for _ in range(4)]
    assert {client.ask("pid") for client in clients}.isdisjoint(pids)


def test_a_worker_that_exits_while_starting_ends_the_start(start: Start) -> None:
    service = start(workers=2, fail="exit")
    assert service.wait() == 1
    assert "ended unexpectedly: exit code 7" in service.log.splitlines()[-1]


@pytest.mark.parametrize("stdout", ["pipe", "full", "missing"])
def test_a_successor_that_fails_leaves_the_service_alone(
    start: Start, tmp_path: Path, stdout: str
) -> None:
    """It prints, fails to start, and cannot write what it printed."""
    reader, writer = os.pipe()
    if stdout == "full":
        os.close(writer)
        writer = os.open("/dev/full", os.O_WRONLY)
    path = tmp_path / "agent.sock"
    env = {"PYTHONUNBUFFERED": "", "NO_STDOUT": "1" if stdout == "missing" else ""}
    service = start(workers=2, env=env, stdout=writer, listen={"unix": str(path)}).ready()
    os.close(writer)
    os.close(reader)
    service.directory.joinpath("fail").touch()
    os.kill(children_of(service.process.pid)[0], signal.SIGKILL)
    service.wait_for("could not start: the stand-in was told to fail", times=3)
    assert path.exists()
    assert len(service.log.split("ended unexpectedly")) == 2
    service.directory.joinpath("fail").unlink()
    wait_until(lambda: len(children_of(service.process.pid)) == 2, "both workers")
    service.signal(signal.SIGTERM)
    assert service.wait() == 0
    assert not path.exists()


@linux_only
def test_a_supervisor_without_descriptors_tries_again(start: Start) -> None:
    service = start(workers=3).ready()
    pids = children_of(service.process.pid)
    limits = resource.prlimit(service.process.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(service.process.pid, resource.RLIMIT_NOFILE, (3, limits[1]))
    os.kill(pids[0], signal.SIGKILL)
    service.wait_for("cannot fork worker 1: Too many open files; raise the limit of")
    assert len(children_of(service.process.pid)) == 2
    resource.prlimit(service.process.pid, resource.RLIMIT_NOFILE, limits)
    wait_until(lambda: len(children_of(service.process.pid)) == 3, "the successor")
    service.signal(signal.SIGTERM)
    assert service.wait() == 0


@pytest.mark.parametrize(("limit", "workers"), [(16, 8), (12, 2), (24, 12)])
def test_a_start_without_enough_descriptors_says_how_many_are_needed(
    start: Start, limit: int, workers: int
) -> None:
    service = start(workers=workers, descriptors=limit)
    assert service.wait() == 1
    found = re.search(
        rf"cannot start: the limit of open files is {limit}, and {workers} workers need at least "
        r"(\d+), beside those for connections; raise it \(ulimit -n\)\n",
        service.log,
    )
    assert found is not None, service.log
    enough = start(workers=workers, descriptors=int(found[1])).ready()
    assert enough.connect().ask("pid").isdigit()


def test_a_change_is_loaded_though_a_worker_died_at_that_moment(
    start: Start, tmp_path: Path
) -> None:
    file = tmp_path / "watched"
    file.write_text("old")
    service = start(workers=2, watch="watched").ready()
    pids = children_of(service.process.pid)
    os.kill(pids[0], signal.SIGKILL)
    file.write_text("new")
    service.wait_for("reloading", times=2)
    service.wait_for("it is replaced")


def test_a_hook_that_exits_does_not_end_the_service(start: Start) -> None:
    service = start(workers=1, env={"BAD_HOOK": "exit"}).ready()
    service.signal(signal.SIGUSR1)
    service.wait_for("reopen logs failed; going on as before")
    assert service.connect().ask("pid").isdigit()
