"""spoakit.server.watchdog: workers that hang, counted in unanswered pings."""

import os
import socket
from collections.abc import Iterator

import pytest

from spoakit.server.ipc import SupervisorCommand, WorkerEvent, receive_commands
from spoakit.server.watchdog import Watchdog
from spoakit.server.worker_process import WorkerProcess


class Peer:
    """A worker's process, played by the test."""

    def __init__(self) -> None:
        ours, self._channel = socket.socketpair()
        self._channel.setblocking(False)
        self.worker = WorkerProcess(0)
        self.worker.started(os.getpid(), ours)
        self.report(WorkerEvent.READY)

    def report(self, *events: WorkerEvent) -> None:
        self._channel.send(bytes(events))
        self.worker.receive_events(0.0)

    def commands(self) -> bytes:
        try:
            return receive_commands(self._channel)[0]
        except BlockingIOError:
            return b""

    def close(self) -> None:
        self.worker.close_channel()
        self._channel.close()


@pytest.fixture
def peer() -> Iterator[Peer]:
    peer = Peer()
    yield peer
    peer.close()


PING = bytes((SupervisorCommand.PING,))


def test_a_worker_that_answers_stays_available(peer: Peer) -> None:
    watchdog = Watchdog(10.0)
    for now in range(100):
        assert watchdog.ping([peer.worker], now) == []
        assert peer.commands() == PING
        peer.report(WorkerEvent.PONG)
        assert peer.worker.is_available
    assert watchdog.due == 100.0


def test_the_first_missed_ping_ends_its_share_and_the_last_one_its_life(peer: Peer) -> None:
    watchdog = Watchdog(10.0)
    assert watchdog.ping([peer.worker], 0.0) == []
    assert peer.worker.is_available
    for now in range(1, 10):
        assert watchdog.ping([peer.worker], now) == []
        assert not peer.worker.is_available
    assert watchdog.ping([peer.worker], 10.0) == [peer.worker]
    assert peer.commands() == PING  # one is enough


def test_a_late_answer_makes_all_well_again(peer: Peer) -> None:
    watchdog = Watchdog(10.0)
    for now in range(9):
        watchdog.ping([peer.worker], now)
    peer.report(WorkerEvent.PONG)
    assert peer.worker.is_available
    assert watchdog.ping([peer.worker], 9.0) == []
    assert peer.worker.is_available


def test_time_in_which_the_supervisor_did_not_run_is_not_counted(peer: Peer) -> None:
    watchdog = Watchdog(10.0)
    watchdog.ping([peer.worker], 0.0)
    assert watchdog.ping([peer.worker], 3600.0) == []
    assert peer.worker.is_available
    assert watchdog.due == 3601.0
    assert watchdog.ping([peer.worker], 3601.0) == []
    assert peer.worker.missed_pings == 1


def test_a_reload_may_take_its_time(peer: Peer) -> None:
    watchdog = Watchdog(5.0)
    watchdog.ping([peer.worker], 0.0)
    peer.worker.send_command(SupervisorCommand.RELOAD)
    peer.worker.send_command(SupervisorCommand.RELOAD)
    for now in range(1, 100):
        assert watchdog.ping([peer.worker], now) == []
    assert not peer.worker.is_available
    peer.report(WorkerEvent.RELOADED)
    assert watchdog.ping([peer.worker], 100.0) == []
    peer.report(WorkerEvent.RELOADED)
    # It has as much time again to answer the ping behind the reload.
    found = [watchdog.ping([peer.worker], 101.0 + second) for second in range(5)]
    assert found == [[], [], [], [], [peer.worker]]


def test_a_worker_that_is_starting_is_not_pinged() -> None:
    starting = WorkerProcess(1)
    watchdog = Watchdog(1.0)
    assert all(watchdog.ping([starting], now) == [] for now in range(20))
    assert starting.missed_pings == 0


def test_without_a_timeout_a_worker_may_hang_and_gets_no_connections(peer: Peer) -> None:
    watchdog = Watchdog(0.0)
    assert all(watchdog.ping([peer.worker], now) == [] for now in range(1000))
    assert not peer.worker.is_available


@pytest.mark.parametrize(("timeout", "pings"), [(1.0, 5), (4.0, 5), (5.5, 6), (60.0, 60)])
def test_pings_are_sent_once_a_second_and_at_least_five_times(timeout: float, pings: int) -> None:
    watchdog = Watchdog(timeout)
    peer = Peer()
    count = 0
    now = 0.0
    while not watchdog.ping([peer.worker], now):
        count += 1
        now = watchdog.due
    peer.close()
    assert count == pings
    assert timeout <= now < timeout + 1.0
