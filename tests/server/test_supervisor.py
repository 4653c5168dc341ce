import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest

from tests.support.processes import children_of, is_running
from tests.support.stand_in_service import Start
from tests.support.waiting import wait_until

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
    service.wait_for(f"(process {pid}) had in its hands, as it last published: frames in flight 1")
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
    wait_until(lambda: not any(map(is_running, pids)), "the workers' end")
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


HANG = {"worker_timeout": 1.0}


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
    service.wait_for(f"worker 1 (process {pid}) does not answer, and gets no connections")
    service.wait_for(f"worker 1 (process {pid}) was killed, because it hung; its successor follows")
    assert hanging.read() == ""
    log = service.log
    assert f"worker 1 (process {pid}) has not answered for 1 s; killing it" in log
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
    assert "killing it" not in service.log


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
        assert "killing it" not in service.log
        tracer.terminate()
    service.wait_for("was killed, because it hung")


def test_a_handler_that_prints_to_a_dead_pipe_changes_no_exit_code(start: Start) -> None:
    reader, writer = os.pipe()
    service = start(workers=2, env={"PYTHONUNBUFFERED": ""}, stdout=writer).ready()
    os.close(writer)
    os.close(reader)
    assert service.connect().ask("say") == "said"
    service.signal(signal.SIGTERM)
    assert service.wait() == 0


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
    service.wait_for("cannot fork worker 1: Too many open files; the limit of")
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
    service.wait_for("its successor follows")


def test_a_hook_that_exits_does_not_end_the_service(start: Start) -> None:
    service = start(workers=1, env={"BAD_HOOK": "exit"}).ready()
    service.signal(signal.SIGUSR1)
    service.wait_for("reopen logs failed; going on as before")
    assert service.connect().ask("pid").isdigit()


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
    assert "workers still run after the drain's bound; killing them" in service.log


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
