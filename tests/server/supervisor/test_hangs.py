"""Workers that hang: they get no connections, and are replaced."""

import os
import re
import shutil
import signal
import subprocess
import time

import pytest

from tests.support.processes import is_running
from tests.support.stand_in_service import Start
from tests.support.supervised import HANG, linux_only
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow


def test_a_worker_that_hangs_is_killed_after_the_bound(start: Start) -> None:
    service = start(workers=2, drain={"timeout": 0.2}).ready()
    stuck, well = service.connect(), service.connect()
    stuck.ask("pid")
    well.ask("pid")
    stuck.send("block")
    before = time.monotonic()
    service.signal(signal.SIGTERM)
    assert service.wait() == 1
    assert time.monotonic() - before < 5
    assert "workers still run after the drain timeout, killing them" in service.log


@linux_only
def test_a_worker_that_hangs_does_not_outlive_a_second_signal(start: Start) -> None:
    service = start(workers=2).ready()
    stuck = service.connect()
    pid = int(stuck.ask("pid"))
    stuck.send("block")
    service.signal(signal.SIGINT)
    time.sleep(0.6)  # signals within 0.5 s are one
    service.signal(signal.SIGINT)
    assert service.wait() == 128 + signal.SIGINT
    assert not is_running(pid)


def test_connections_for_workers_that_hang_wait_and_are_not_lost(start: Start) -> None:
    service = start(workers=2, limits={"connections": 5000}).ready()
    pids = []
    for _ in range(2):
        client = service.connect()
        pids.append(int(client.ask("pid")))
        client.close()
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    waiting = [service.connect() for _ in range(700)]
    service.wait_for("no worker has accepted a connection for 1 s")
    for pid in pids:
        os.kill(pid, signal.SIGCONT)
    assert {int(client.ask("pid")) for client in waiting} == set(pids)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("how", ["block", "compute", "stop"])
def test_a_worker_that_hangs_is_replaced(start: Start, workers: int, how: str) -> None:
    service = start(workers=workers, **HANG).ready()
    hanging = service.connect()
    pid = int(hanging.ask("pid"))
    if how == "stop":
        os.kill(pid, signal.SIGSTOP)
    else:
        hanging.send(how)
    service.wait_for(f"worker 1 (process {pid}) does not answer; it gets no connections")
    service.wait_for(f"worker 1 (process {pid}) was killed, because it hung; it is replaced")
    assert hanging.read() == ""
    log = service.log
    assert f"worker 1 (process {pid}) has not answered for 1 s and is killed" in log
    if how == "stop":
        assert "worker 1:   (unknown: the process is stopped)" in log
    else:
        assert re.search(r'worker 1:   File ".*stand_in.py", line \d+ in _answer\n', log)
    # There may be one worker, which is its successor.
    assert int(service.connect().ask("pid")) != pid
    service.signal(signal.SIGTERM)
    assert service.wait() == 0


def test_a_worker_that_hangs_gets_no_connections(start: Start) -> None:
    service = start(workers=2, worker_timeout=60.0).ready()
    hanging, well = service.connect(), service.connect()
    pid = hanging.ask("pid")
    other = well.ask("pid")
    os.kill(int(pid), signal.SIGSTOP)
    service.wait_for(f"worker 1 (process {pid}) does not answer")
    assert [service.connect().ask("pid") for _ in range(20)] == [other] * 20
    os.kill(int(pid), signal.SIGCONT)
    service.wait_for(f"worker 1 (process {pid}) answers again")
    wait_until(lambda: service.connect().ask("pid") == pid, "its share")
    assert hanging.ask("pid") == pid


@pytest.mark.parametrize("workers", [1, 2])
def test_a_stop_of_the_whole_group_kills_nobody(start: Start, workers: int) -> None:
    service = start(workers=workers, **HANG).ready()
    clients = [service.connect() for _ in range(workers)]
    pids = [client.ask("pid") for client in clients]
    for _ in range(3):
        service.signal_group(signal.SIGSTOP)
        time.sleep(1.5)
        service.signal_group(signal.SIGCONT)
        assert [client.ask("pid") for client in clients] == pids
    assert "does not answer" not in service.log
    assert "killed" not in service.log


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("how", ["block", "compute"])
def test_a_worker_that_hangs_ends_within_the_drain_bound(
    start: Start, workers: int, how: str
) -> None:
    service = start(workers=workers, drain={"timeout": 0.2}).ready()
    hanging = service.connect()
    hanging.ask("pid")
    hanging.send(how)
    before = time.monotonic()
    service.signal(signal.SIGTERM)
    assert service.wait() == 1
    assert time.monotonic() - before < 5


@linux_only
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("how", ["block", "compute"])
def test_an_orphan_that_hangs_ends_itself(start: Start, workers: int, how: str) -> None:
    service = start(workers=workers, **HANG).ready()
    hanging = service.connect()
    pid = int(hanging.ask("pid"))
    hanging.send(how)
    service.wait_for("blocking")
    service.signal(signal.SIGKILL)
    service.wait()
    wait_until(lambda: not is_running(pid), "the orphan's end")
    assert "Timeout (0:00:06)!" in service.log
    assert "in _answer" in service.log


def test_a_long_reload_is_not_a_hang(start: Start) -> None:
    service = start(workers=2, env={"SLOW_RELOAD": "2.5"}, **HANG).ready()
    pids = {service.connect().ask("pid") for _ in range(2)}
    service.signal(signal.SIGHUP)
    service.wait_for("reloading", times=3)
    service.wait_for("answers again", times=2)
    wait_until(lambda: {service.connect().ask("pid") for _ in range(2)} == pids, "both workers")
    assert "and is killed" not in service.log


@linux_only
def test_a_worker_with_a_debugger_is_left_alone(start: Start) -> None:
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    service = start(workers=1, **HANG).ready()
    client = service.connect()
    pid = client.ask("pid")
    with subprocess.Popen(
        ["strace", "-p", pid, "-o", "/dev/null"], stderr=subprocess.PIPE, text=True
    ) as tracer:
        assert tracer.stderr is not None
        if "attached" not in tracer.stderr.readline():
            pytest.skip("strace may not attach here")
        client.send("block")
        service.wait_for("does not answer")
        time.sleep(2.0)
        assert "and is killed" not in service.log
        tracer.terminate()
    service.wait_for("was killed, because it hung")
