"""Connections of the supervisor: the worker with the least work gets the next."""

import os
import signal
from collections import Counter

import pytest

from tests.support.stand_in_service import Start
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow


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

    wait_until(goes_to_the_emptied_one, "reports of closed connections")
    assert [service.connect().ask("pid") for _ in range(3)] == [emptied] * 3


def test_short_connections_use_all_workers_in_turn(start: Start) -> None:
    service = start(workers=3).ready()
    seen = set()
    for _ in range(6):
        client = service.connect()
        seen.add(client.ask("pid"))
        client.close()
    assert len(seen) == 3


def test_the_only_worker_accepts_while_the_supervisor_cannot(start: Start) -> None:
    service = start(workers=1).ready()
    os.kill(service.process.pid, signal.SIGSTOP)
    try:
        assert service.connect().ask("pid") != str(service.process.pid)
    finally:
        os.kill(service.process.pid, signal.SIGCONT)


@pytest.mark.parametrize("workers", [1, 2])
def test_what_a_killed_worker_had_in_its_hands_is_told_and_counted(
    start: Start, workers: int
) -> None:
    service = start(workers=workers).ready()
    client = service.connect()
    pid = client.ask("pid")
    client.send("slow")

    def shown(text: str) -> bool:
        service.signal(signal.SIGUSR2)
        return text in service.log

    wait_until(lambda: shown("frames in flight 1"), "a published frame in flight")
    os.kill(int(pid), signal.SIGKILL)
    service.wait_for(f"(process {pid}) lost, by its last figures: frames in flight 1")
    wait_until(lambda: shown("frames lost 1 (+"), "the frame that was lost")
    service.signal(signal.SIGTERM)
    assert service.wait() == 0


def test_reloads_and_workers_that_ended_are_counted(start: Start) -> None:
    service = start(workers=1, env={"SLOW_RELOAD": "no number"}).ready()
    good = start(workers=1).ready()
    good.signal(signal.SIGHUP)
    good.wait_for("reloading", times=2)
    pid = good.connect().ask("pid")
    os.kill(int(pid), signal.SIGKILL)
    good.wait_for("ended unexpectedly")
    good.signal(signal.SIGUSR2)
    good.wait_for("reloads loaded 1 (+")
    good.wait_for("workers ended died 1 (+")
    service.signal(signal.SIGHUP)
    service.wait_for("reload failed; going on as before")
    service.signal(signal.SIGUSR2)
    service.wait_for("reloads refused 1 (+")


def test_connections_between_two_only_workers_wait(start: Start) -> None:
    service = start(workers=1).ready()
    first = service.connect()
    pid = first.ask("pid")
    os.kill(int(pid), signal.SIGKILL)
    assert first.read() == ""
    assert [service.connect().ask("pid") for _ in range(3)].count(pid) == 0
