"""Workers as processes: signals, descriptors, and life without a supervisor."""

import os
import signal
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest

from tests.support.processes import children_of, is_running
from tests.support.stand_in_service import Start
from tests.support.supervised import linux_only
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow


def descriptors_of(pid: int) -> set[str]:
    found: set[str] = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # it is closed meanwhile
            found.add(os.readlink(descriptor))
    return found


def sockets_of(pid: int) -> set[str]:
    return {target for target in descriptors_of(pid) if target.startswith("socket:")}


@linux_only
def test_workers_leave_when_their_supervisor_is_killed(start: Start) -> None:
    service = start(workers=3).ready()
    clients = [service.connect() for _ in range(3)]
    pids = [int(client.ask("pid")) for client in clients]
    service.signal(signal.SIGKILL)
    service.wait()
    assert [client.read() for client in clients] == ["", "", ""]
    wait_until(lambda: not any(map(is_running, pids)), "the workers' end")
    assert service.log.count("the supervisor is gone, stopping") == 3


def test_workers_ignore_signals(start: Start) -> None:
    service = start(workers=2).ready()
    clients = [service.connect() for _ in range(2)]
    pids = [int(client.ask("pid")) for client in clients]
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        for pid in pids:
            os.kill(pid, signum)
    assert [int(client.ask("pid")) for client in clients] == pids
    assert "reloading" not in service.log
    assert "reopening" not in service.log


@linux_only
def test_workers_close_the_pidfile(start: Start, tmp_path: Path) -> None:
    path = tmp_path / "pid"
    service = start(workers=2, pidfile=str(path)).ready()
    assert str(path) in descriptors_of(service.process.pid)
    for pid in children_of(service.process.pid):
        assert str(path) not in descriptors_of(pid)


@linux_only
def test_workers_keep_only_descriptors_of_their_own(start: Start) -> None:
    service = start(workers=3).ready()
    earlier = children_of(service.process.pid)
    os.kill(int(service.connect().ask("pid")), signal.SIGKILL)  # its successor is forked last
    service.wait_for("ended unexpectedly")
    others = {"", *map(str, earlier)}
    wait_until(lambda: service.connect().ask("pid") not in others, "a successor")

    def none_is_shared() -> bool:
        processes = [service.process.pid, *children_of(service.process.pid)]
        opened = Counter(name for pid in processes for name in sockets_of(pid))
        return len(processes) == 4 and set(opened.values()) == {1}

    # A connection that is on its way to a worker is open here and there for a moment.
    wait_until(none_is_shared, "descriptors of their own")


@pytest.mark.parametrize("workers", [2, 4])
def test_workers_are_ready_before_the_service_is(start: Start, workers: int) -> None:
    service = start(workers=workers, fail="hang")
    service.wait_for("hanging", times=workers)
    assert "listening on" not in service.log


def test_a_handler_that_prints_to_a_dead_pipe_changes_no_exit_code(start: Start) -> None:
    reader, writer = os.pipe()
    service = start(workers=2, env={"PYTHONUNBUFFERED": ""}, stdout=writer).ready()
    os.close(writer)
    os.close(reader)
    assert service.connect().ask("say") == "said"
    service.signal(signal.SIGTERM)
    assert service.wait() == 0
