"""Stops while something blocks, hangs or reloads."""

import os
import re
import signal
import socket
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.support.processes import children_of, is_running
from tests.support.stand_in_service import Start
from tests.support.supervised import HANG, linux_only
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("workers", [1, 2])
def test_a_resource_that_blocks_at_its_stop_ends_within_the_bound(
    start: Start, workers: int
) -> None:
    service = start(workers=workers, fail="block-close", drain={"timeout": 0.2}).ready()
    before = time.monotonic()
    service.signal(signal.SIGTERM)
    service.wait_for("blocking", times=workers)
    assert service.wait() == 1
    assert time.monotonic() - before < 5
    assert "workers still run after the drain timeout, killing them" in service.log


@linux_only
@pytest.mark.parametrize("fail", ["block-close", "block-start"])
def test_a_second_signal_ends_a_worker_that_blocks(start: Start, fail: str) -> None:
    service = start(workers=1, fail=fail)
    if fail == "block-close":
        service.ready()
        service.signal(signal.SIGTERM)
        service.wait_for("blocking")
    else:
        service.wait_for("blocking")
        service.signal(signal.SIGTERM)
    [pid] = children_of(service.process.pid)
    time.sleep(0.6)
    before = time.monotonic()
    service.signal(signal.SIGTERM)
    assert service.wait() == 128 + signal.SIGTERM
    assert time.monotonic() - before < 1
    assert not is_running(pid)


@linux_only
def test_an_orphan_that_blocks_at_its_stop_ends_itself(start: Start) -> None:
    service = start(workers=1, fail="block-close", drain={"timeout": 0}, **HANG).ready()
    [pid] = children_of(service.process.pid)
    service.signal(signal.SIGKILL)
    service.wait()
    service.wait_for("blocking")
    wait_until(lambda: not is_running(pid), "the orphan's end")


@pytest.mark.parametrize("signals", [1, 2])
def test_a_reload_that_hangs_does_not_keep_the_service_from_stopping(
    start: Start, tmp_path: Path, signals: int
) -> None:
    service = start(workers=2).ready()
    busy = service.connect()
    busy.ask("pid")
    busy.send("slow")
    os.mkfifo(tmp_path / "hanging")
    service.signal(signal.SIGHUP)
    service.wait_for("opening a FIFO")
    service.signal(signal.SIGTERM)
    service.wait_for("reload: interrupted by a signal to stop")
    service.wait_for("draining", times=2)
    if signals == 2:
        time.sleep(0.6)
        service.signal(signal.SIGTERM)
        assert service.wait() == 128 + signal.SIGTERM
    else:
        busy.close()
        assert service.wait() == 0


@linux_only
@pytest.mark.parametrize("kind", ["pipe", "socket"])
def test_an_orphan_that_hangs_ends_although_nobody_reads_its_log(start: Start, kind: str) -> None:
    if kind == "pipe":
        reader, writer = os.pipe()
    else:
        reader, writer = (end.detach() for end in socket.socketpair())
    service = start(workers=1, stderr=writer, **HANG)
    os.set_blocking(reader, False)
    log = bytearray()

    def is_ready() -> bool:
        with suppress(BlockingIOError):
            log.extend(os.read(reader, 4096))
        return b"listening on" in log and log.endswith(b"\n")

    wait_until(is_ready, "a start")
    [pid] = children_of(service.process.pid)
    found = re.search(rb"listening on 127.0.0.1:(\d+)", log)
    assert found is not None
    os.set_blocking(writer, False)
    with suppress(BlockingIOError):
        while True:
            os.write(writer, b"x")
    os.set_blocking(writer, True)
    with socket.create_connection(("127.0.0.1", int(found[1])), 10) as client:
        client.sendall(b"block\n")
        time.sleep(0.5)
        service.signal(signal.SIGKILL)
        service.wait()
        wait_until(lambda: not is_running(pid), "the orphan's end")
    os.close(reader)
    os.close(writer)


def test_a_reload_while_a_worker_starts_leaves_it_its_time(start: Start) -> None:
    service = start(workers=1, fail="hang", **HANG)
    service.wait_for("hanging")
    service.signal(signal.SIGHUP)
    service.wait_for("reloading", times=2)
    time.sleep(7.0)  # the backstop of a worker that is up
    assert service.process.poll() is None
    service.signal(signal.SIGTERM)
    assert service.wait() == 0


@pytest.mark.parametrize("count", [1, 1000])
def test_a_stop_is_not_lost_behind_reloads(start: Start, count: int) -> None:
    service = start(workers=1, env={"SLOW_RELOAD": "1"}, worker_timeout=0).ready()
    service.signal(signal.SIGHUP)
    for _ in range(count):
        service.signal(signal.SIGHUP)
    service.signal(signal.SIGTERM)
    service.wait_for("stopping: SIGTERM")
    assert service.wait() == 0
    assert service.log.count("reloading") <= 4


def test_signals_up_to_the_end_leave_no_file(start: Start, tmp_path: Path) -> None:
    socket_file, pidfile = tmp_path / "agent.sock", tmp_path / "pid"
    service = start(workers=1, listen={"unix": str(socket_file)}, pidfile=str(pidfile)).ready()
    while service.process.poll() is None:
        service.signal(signal.SIGTERM)
        service.signal(signal.SIGHUP)
    # The last one may come when all is done, and the process has only to end.
    assert service.process.returncode in (0, -signal.SIGTERM, -signal.SIGHUP)
    assert not socket_file.exists()
    assert not pidfile.exists()


def test_a_thread_that_hangs_does_not_keep_a_worker_from_ending(start: Start) -> None:
    service = start(workers=1, fail="thread").ready()
    assert service.connect().ask("pid").isdigit()
    before = time.monotonic()
    service.signal(signal.SIGTERM)
    assert service.wait() == 0
    assert time.monotonic() - before < 1.5
