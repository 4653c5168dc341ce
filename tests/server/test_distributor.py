"""spoakit.server.distributor: each connection goes to the worker with the least work."""

import selectors
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from spoakit.metrics.memory import SharedMetrics
from spoakit.server.distributor import Distributor
from spoakit.server.ipc import WorkerEvent, receive_commands
from spoakit.server.settings import Limits, Listen, ServerSettings
from spoakit.server.sockets import Listeners
from spoakit.server.worker_process import WorkerProcess


class House:
    """A distributor with real sockets, and workers that are played by the test."""

    def __init__(self, workers: int, limits: Limits) -> None:
        listen = Listen.at("127.0.0.1", 0)
        self.listeners = Listeners(listen)
        self.selector = selectors.DefaultSelector()
        self.workers = [WorkerProcess(index) for index in range(workers)]
        self.channels = []
        for worker in self.workers:
            ours, theirs = socket.socketpair()
            theirs.setblocking(False)
            worker.started(1, ours)
            self.channels.append(theirs)
            self.report(worker, WorkerEvent.READY)
        row = SharedMetrics(1).worker(0)
        settings = ServerSettings(listen, limits)
        self.distributor = Distributor(self.workers, self.listeners, self.selector, settings, row)
        self.distributor.open()
        self._clients: list[socket.socket] = []

    def report(self, worker: WorkerProcess, *events: WorkerEvent) -> None:
        self.channels[worker.index].send(bytes(events))
        worker.receive_events(0.0)

    def connect(self) -> socket.socket:
        client = socket.create_connection(self.listeners.sockets[0].getsockname(), 10)
        self._clients.append(client)
        return client

    def run_once(self) -> None:
        self.distributor.run_once(0.0)
        for key, _ in self.selector.select(0):
            key.data()

    def where(self) -> int:
        """Connect once more, and return the index of the worker that got it."""
        before = [worker.connections for worker in self.workers]
        self.connect()
        self.run_once()
        after = [worker.connections for worker in self.workers]
        [index] = [index for index in range(len(after)) if after[index] > before[index]]
        return index

    def close(self) -> None:
        self.distributor.close()
        self.selector.close()
        for each in (*self._clients, *self.channels):
            each.close()
        for worker in self.workers:
            worker.close_channel()


@pytest.fixture
def house() -> Iterator[Callable[[int], House]]:
    houses = []

    def make(workers: int) -> House:
        houses.append(House(workers, Limits()))
        return houses[-1]

    yield make
    for each in houses:
        each.close()


def test_idle_workers_get_the_same_number(house: Callable[[int], House]) -> None:
    three = house(3)
    assert sorted(three.where() for _ in range(6)) == [0, 0, 1, 1, 2, 2]


def test_the_worker_with_the_least_work_comes_first(house: Callable[[int], House]) -> None:
    two = house(2)
    for _ in range(4):
        two.where()
    busy, idle = two.workers
    busy.report_work(frames=1000, in_flight=0)
    idle.report_work(frames=10, in_flight=0)
    # An average connection has a quarter of 1,010 frames: four of them make up for the difference.
    assert [two.where() for _ in range(6)] == [1, 1, 1, 1, 0, 1]


def test_frames_in_flight_are_work(house: Callable[[int], House]) -> None:
    two = house(2)
    for _ in range(2):
        two.where()
    slow, quick = two.workers
    slow.report_work(frames=10, in_flight=50)
    quick.report_work(frames=20, in_flight=0)
    assert two.where() == 1


def test_only_frames_since_the_last_report_are_work(house: Callable[[int], House]) -> None:
    two = house(2)
    for _ in range(2):
        two.where()
    for worker, frames in zip(two.workers, (1_000_000, 10), strict=True):
        worker.report_work(frames, 0)
    for worker, frames in zip(two.workers, (1_000_001, 500), strict=True):
        worker.report_work(frames, 0)
    assert two.where() == 0


def test_a_burst_is_spread_evenly_whatever_was_reported(house: Callable[[int], House]) -> None:
    two = house(2)
    for _ in range(10):
        two.where()
    for worker, frames in zip(two.workers, (100, 101), strict=True):
        worker.report_work(frames, 0)
    gained = [two.where() for _ in range(40)]
    assert abs(gained.count(0) - gained.count(1)) <= 1


def test_health_checks_are_not_work(house: Callable[[int], House]) -> None:
    two = house(2)
    for _ in range(2):
        two.where()
    busy, idle = two.workers
    busy.report_work(frames=100, in_flight=0)
    idle.report_work(frames=0, in_flight=0)
    for _ in range(20):
        assert two.where() == 1
        two.report(idle, WorkerEvent.CLOSED)


def test_a_worker_that_misses_a_ping_gets_none(house: Callable[[int], House]) -> None:
    two = house(2)
    two.workers[0].ping()
    two.workers[0].missed_pings = 1
    assert [two.where() for _ in range(4)] == [1] * 4
    two.report(two.workers[0], WorkerEvent.PONG)
    assert two.where() == 0


def test_connections_wait_to_be_accepted_while_no_worker_is_available(
    house: Callable[[int], House],
) -> None:
    two = house(2)
    two.run_once()
    for worker in two.workers:
        worker.ping()
        worker.missed_pings = 1
    two.connect()
    for _ in range(3):
        two.run_once()
    assert [worker.connections for worker in two.workers] == [0, 0]
    two.report(two.workers[0], WorkerEvent.PONG)
    two.run_once()
    two.run_once()
    assert [worker.connections for worker in two.workers] == [1, 0]
    _, [connection] = receive_commands(two.channels[0])
    connection.close()


def test_accepting_goes_on_when_registering_failed_half_way(
    house: Callable[[int], House], monkeypatch: pytest.MonkeyPatch
) -> None:
    two = house(2)
    failing = [OSError(12, "Cannot allocate memory")]
    register = two.selector.register

    def register_or_fail(*args: Any) -> Any:
        key = register(*args)
        if failing:
            raise failing.pop()
        return key

    monkeypatch.setattr(two.selector, "register", register_or_fail)
    with pytest.raises(OSError, match="Cannot allocate memory"):
        two.run_once()
    monkeypatch.undo()
    assert two.where() == 0


def test_an_only_worker_accepts_by_itself(house: Callable[[int], House]) -> None:
    one = house(1)
    one.connect()
    one.run_once()
    assert one.workers[0].connections == 0
    assert one.distributor.leave_to_worker() is one.listeners
    assert one.listeners.sockets[0].fileno() >= 0


def test_one_of_several_workers_keeps_no_listener(house: Callable[[int], House]) -> None:
    two = house(2)
    listener = two.listeners.sockets[0]
    assert two.distributor.leave_to_worker() is None
    assert listener.fileno() == -1
