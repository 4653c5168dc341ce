from __future__ import annotations

import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.processes import children_of, is_running

if TYPE_CHECKING:
    from tests.server.conftest import Service

    Start = Callable[..., Service]


linux_only = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def descriptors_of(pid: int) -> set[str]:
    found: set[str] = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # it is closed meanwhile
            found.add(os.readlink(descriptor))
    return found


def sockets_of(pid: int) -> set[str]:
    return {target for target in descriptors_of(pid) if target.startswith("socket:")}


def test_connections_are_spread_evenly(start: Start) -> None:
    service = start(workers=4).ready()
    clients = [service.connect() for _ in range(8)]
    workers = Counter(client.ask("pid") for client in clients)
    assert sorted(workers.values()) == [2, 2, 2, 2]
    assert str(service.process.pid) not in workers


def test_a_new_connection_goes_to_the_worker_that_lost_some(start: Start) -> None:
    service = start(workers=2).ready()
    clients = [service.connect() for _ in range(8)]
    by_worker: dict[str, list[int]] = {}
    for index, client in enumerate(clients):
        by_worker.setdefault(client.ask("pid"), []).append(index)
    emptied = next(iter(by_worker))
    for index in by_worker[emptied]:
        clients[index].close()

    def goes_to_the_emptied_one() -> bool:
        client = service.connect()
        here = client.ask("pid") == emptied
        if not here:
            client.close()
        return here

    service.wait_until(goes_to_the_emptied_one, "reports of closed connections")
    assert [service.connect().ask("pid") for _ in range(3)] == [emptied] * 3


def test_short_connections_use_all_workers_in_turn(start: Start) -> None:
    service = start(workers=3).ready()
    seen = set()
    for _ in range(6):
        client = service.connect()
        seen.add(client.ask("pid"))
        client.close()
    assert len(seen) == 3


def test_a_worker_that_dies_is_restarted_and_the_others_serve_on(start: Start) -> None:
    service = start(workers=2).ready()
    first, second = service.connect(), service.connect()
    dying = int(first.ask("pid"))
    surviving = second.ask("pid")
    first.send("die")
    assert first.read() == ""
    service.wait_for(f"worker 1 (process {dying}) ended unexpectedly: exit code 3")
    assert second.ask("pid") == surviving
    service.wait_until(
        lambda: service.connect().ask("pid") not in (surviving, str(dying)), "a successor"
    )
    os.kill(int(surviving), signal.SIGKILL)
    service.wait_for("ended unexpectedly: signal 9 (Killed)")
    service.signal(signal.SIGTERM)
    assert service.wait() == 0


def test_restarts_of_a_worker_that_keeps_dying_are_spaced_out(start: Start) -> None:
    service = start(workers=2).ready()
    kept = service.connect()
    survivor = kept.ask("pid")
    for delay in ("0.1", "0.2", "0.4"):
        service.wait_until(
            lambda: (
                (client := service.connect()).ask("pid") != survivor and client.ask("die") == ""
            ),
            "a successor",
        )
        service.wait_for(f"its successor follows in {delay} s")
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


@linux_only
def test_workers_leave_when_their_supervisor_is_killed(start: Start) -> None:
    service = start(workers=3).ready()
    clients = [service.connect() for _ in range(3)]
    pids = [int(client.ask("pid")) for client in clients]
    service.signal(signal.SIGKILL)
    service.wait()
    assert [client.read() for client in clients] == ["", "", ""]
    service.wait_until(lambda: not any(map(is_running, pids)), "the workers' end")
    assert service.log.count("the supervisor is gone; leaving") == 3


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
    assert "workers still run after the drain's bound; killing them" in service.log


@linux_only
def test_a_worker_that_hangs_does_not_outlive_a_second_signal(start: Start) -> None:
    service = start(workers=2).ready()
    stuck = service.connect()
    pid = int(stuck.ask("pid"))
    stuck.send("block")
    first = time.monotonic()
    service.signal(signal.SIGINT)
    service.wait_until(lambda: time.monotonic() - first > 0.6, "a pause between the signals")
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
    service.wait_for("no worker took a connection for 1 s")
    for pid in pids:
        os.kill(pid, signal.SIGCONT)
    assert {int(client.ask("pid")) for client in waiting} == set(pids)


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
    service.wait_until(lambda: service.connect().ask("pid") not in others, "a successor")

    def none_is_shared() -> bool:
        processes = [service.process.pid, *children_of(service.process.pid)]
        opened = Counter(name for pid in processes for name in sockets_of(pid))
        return len(processes) == 4 and set(opened.values()) == {1}

    # A connection that is on its way to a worker is open here and there for a moment.
    service.wait_until(none_is_shared, "descriptors of their own")


@pytest.mark.parametrize("workers", [2, 4])
def test_workers_are_ready_before_the_service_is(start: Start, workers: int) -> None:
    service = start(workers=workers, fail="hang")
    service.wait_for("hanging", times=workers)
    assert "listening on" not in service.log
