import os
import signal
import socket
from collections.abc import Iterator

import pytest

from spoakit.server.ipc import SupervisorCommand, WorkerEvent, receive_commands
from spoakit.server.worker_process import WorkerProcess, describe_exit

Pair = tuple[WorkerProcess, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    """A handle and the worker's end of its channel."""
    ours, theirs = socket.socketpair()
    handle = WorkerProcess(0)
    handle.started(1234, ours)
    theirs.setblocking(False)
    yield handle, theirs
    handle.close_channel()
    theirs.close()


def report(*reports: WorkerEvent) -> bytes:
    return bytes(reports)


def test_a_worker_is_ready_when_it_says_so(pair: Pair) -> None:
    handle, worker = pair
    assert handle.receive_events(0.0) is None
    assert not handle.is_ready
    worker.send(report(WorkerEvent.READY))
    assert handle.receive_events(0.0) == report(WorkerEvent.READY)
    assert handle.is_ready


def test_a_connection_travels_and_is_counted_until_it_is_reported_closed(pair: Pair) -> None:
    handle, worker = pair
    ours, theirs = socket.socketpair()
    with ours:
        assert handle.hand_over(theirs)
        assert theirs.fileno() == -1
        assert handle.connections == 1
        commands, [connection] = receive_commands(worker)
        assert commands == bytes((SupervisorCommand.CONNECTION,))
        with connection:
            assert not connection.get_inheritable()
            connection.send(b"hello")
        assert ours.recv(10) == b"hello"
    worker.send(report(WorkerEvent.CLOSED))
    handle.receive_events(0.0)
    assert handle.connections == 0


def test_commands_that_cannot_be_sent_wait_and_keep_their_place(pair: Pair) -> None:
    handle, worker = pair
    sent = 0
    while handle.hand_over(connection := socket.socket()):
        sent += 1
    with connection:
        handle.send_command(SupervisorCommand.DRAIN)
        assert handle.has_unsent
        assert not handle.hand_over(connection)
        assert connection.fileno() >= 0
    received = b""
    while len(received) < sent:
        commands, connections = receive_commands(worker)
        received += commands
        for each in connections:
            each.close()
    assert received == bytes((SupervisorCommand.CONNECTION,)) * sent
    handle.flush()
    assert not handle.has_unsent
    assert receive_commands(worker) == (bytes((SupervisorCommand.DRAIN,)), [])


def test_the_reason_of_a_failure_may_come_in_pieces(pair: Pair) -> None:
    handle, worker = pair
    assert handle.failure is None
    worker.send(report(WorkerEvent.FAILED) + b"no data-")
    handle.receive_events(0.0)
    worker.send(b"base +1")
    handle.receive_events(0.0)
    worker.close()
    assert handle.receive_events(0.0) == b""
    assert handle.failure == "no data-base +1"
    assert handle.connections == 0
    assert not handle.is_ready


def test_the_delay_before_a_restart_doubles_up_to_half_a_minute() -> None:
    handle = WorkerProcess(0)
    delays = []
    for _ in range(11):
        handle.ended(now=1000.0)
        assert handle.restart_at is not None
        delays.append(round(handle.restart_at - 1000.0, 1))
    assert delays == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30.0, 30.0]


@pytest.mark.parametrize(("uptime", "delay"), [(9.9, 0.4), (10.0, 0.1)])
def test_the_delay_starts_anew_after_a_stable_worker(
    pair: Pair, uptime: float, delay: float
) -> None:
    handle, worker = pair
    handle.postpone(0.0)
    handle.postpone(0.0)
    worker.send(report(WorkerEvent.READY))
    handle.receive_events(now=500.0)
    handle.ended(now=500.0 + uptime)
    assert handle.restart_at == pytest.approx(500.0 + uptime + delay)


@pytest.mark.parametrize(("code", "description"), [(0, "exit code 0"), (3, "exit code 3")])
def test_an_exit_is_described_by_its_code(code: int, description: str) -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(code)
    assert describe_exit(os.waitpid(pid, 0)[1]) == description


def test_a_death_is_described_by_its_signal() -> None:
    pid = os.fork()
    if pid == 0:
        signal.pause()
    os.kill(pid, signal.SIGKILL)
    assert describe_exit(os.waitpid(pid, 0)[1]) == "signal 9 (Killed)"


class Broken:
    """A channel that the system has no memory for."""

    def send(self, data: bytes) -> int:
        raise OSError(105, "No buffer space available")


def test_a_command_waits_where_the_system_has_no_memory(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle, worker = pair
    worker.send(report(WorkerEvent.READY))
    handle.receive_events(0.0)
    monkeypatch.setattr(handle, "channel", Broken())
    handle.send_command(SupervisorCommand.DRAIN)
    assert handle.is_ready
    assert handle.has_unsent
    monkeypatch.undo()
    handle.flush()
    assert receive_commands(worker)[0] == bytes((SupervisorCommand.DRAIN,))


def test_a_worker_that_hangs_has_no_excuse_in_a_reload(pair: Pair) -> None:
    handle, worker = pair
    handle.ping()
    handle.missed_pings = 1
    handle.send_command(SupervisorCommand.RELOAD)
    assert handle.pending_reloads == 0
    worker.send(report(WorkerEvent.PONG, WorkerEvent.RELOADED))
    handle.receive_events(0.0)
    assert handle.pending_reloads == 0
    handle.send_command(SupervisorCommand.RELOAD)
    assert handle.pending_reloads == 1
