"""spoakit.server.service: what holds for one worker and for several."""

import os
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.stand_in_service import Start
from tests.support.waiting import wait_until

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
pytestmark = [pytest.mark.slow, pytest.mark.parametrize("workers", [1, 2])]


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_closes_quiet_connections_and_lets_busy_ones_finish(
    start: Start, workers: int, loop: str, signum: int
) -> None:
    service = start(workers=workers, loop=loop).ready()
    busy, quiet = service.connect(), service.connect()
    assert quiet.ask("pid").isdigit()
    assert busy.ask("pid").isdigit()
    busy.send("slow")
    service.signal(signum)
    service.wait_for("draining", times=workers)
    assert quiet.read() == ""
    with pytest.raises(ConnectionRefusedError):
        service.connect()
    service.signal(signal.SIGHUP)
    assert busy.read() == "finished"
    assert service.wait() == 0
    assert service.log.count("stand_in: closed") == workers


def test_a_group_signal_is_obeyed_once(start: Start, workers: int) -> None:
    service = start(workers=workers).ready()
    busy = service.connect()
    busy.ask("pid")
    busy.send("slow")
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGINT):
        service.signal_group(signum)
    service.wait_for("draining", times=workers)
    service.signal(signal.SIGHUP)
    assert busy.read() == "finished"
    assert service.wait() == 0
    assert service.log.count("stopping: ") == 1


def test_a_second_signal_ends_at_once(start: Start, workers: int) -> None:
    service = start(workers=workers).ready()
    busy = service.connect()
    busy.ask("pid")
    busy.send("slow")
    first = time.monotonic()
    service.signal(signal.SIGTERM)
    service.wait_for("draining", times=workers)
    time.sleep(0.6)  # signals within 0.5 s are one
    service.signal(signal.SIGTERM)
    assert service.wait() == 128 + signal.SIGTERM
    assert time.monotonic() - first < 3
    assert "second SIGTERM: ending at once" in service.log


def test_the_drain_is_bounded(start: Start, workers: int) -> None:
    service = start(workers=workers, drain={"timeout": 0.3}).ready()
    busy = service.connect()
    busy.ask("pid")
    busy.send("slow")
    before = time.monotonic()
    service.signal(signal.SIGTERM)
    assert busy.read() == ""
    assert service.wait() == 0
    assert 0.3 <= time.monotonic() - before < 3


def test_resources_have_a_time_of_their_own_to_finish(start: Start, workers: int) -> None:
    service = start(
        workers=workers, fail="slow-close", drain={"timeout": 0, "resources": 2}
    ).ready()
    service.signal(signal.SIGTERM)
    assert service.wait() == 0
    assert service.log.count("stand_in: closed") == workers


def test_resources_that_take_longer_are_left(start: Start, workers: int) -> None:
    service = start(workers=workers, fail="slow-close", drain={"timeout": 0}).ready()
    service.signal(signal.SIGTERM)
    assert service.wait() == 1
    assert service.log.count("the drain has not ended within 1 s; stopping anyway") == workers


def test_health_checks_are_refused_while_service_goes_on(start: Start, workers: int) -> None:
    service = start(workers=workers, drain={"checks": 0.5}).ready()
    old = service.connect()
    assert old.ask("checks") == "accepted"
    before = time.monotonic()
    service.signal(signal.SIGTERM)
    wait_until(lambda: old.ask("checks") == "refused", "refused health checks")
    for _ in range(workers):
        assert service.connect().ask("checks") == "refused"
    assert "draining" not in service.log
    assert service.wait() == 0
    assert time.monotonic() - before >= 0.5


def test_it_stops_by_itself_when_its_runtime_is_over(start: Start, workers: int) -> None:
    service = start(workers=workers, runtime=0.2)
    assert service.wait() == 0
    assert "stopping: the runtime has ended" in service.log


def test_signals_call_the_hooks_in_each_process(start: Start, workers: int) -> None:
    processes = workers + 1
    service = start(workers=workers).ready()
    service.signal_group(signal.SIGHUP)
    service.wait_for("reloading", times=processes)
    service.signal_group(signal.SIGUSR1)
    service.wait_for("reopening", times=processes)
    assert service.connect().ask("pid").isdigit()


def test_observers_have_seen_what_came_before_a_reload(start: Start, workers: int) -> None:
    processes = workers + 1
    service = start(workers=workers).ready()
    service.signal(signal.SIGHUP)
    service.wait_for("reloading", times=processes)
    assert service.log.count("observing") == workers
    assert service.log.rindex("observing") < service.log.rindex("reloading")


def test_a_reload_that_is_refused_reaches_no_worker(
    start: Start, workers: int, tmp_path: Path
) -> None:
    service = start(workers=workers).ready()
    (tmp_path / "refuse").touch()
    service.signal(signal.SIGHUP)
    service.wait_for("reload refused, going on as before: the stand-in was told to refuse")
    (tmp_path / "refuse").unlink()
    service.signal(signal.SIGUSR1)
    service.wait_for("reopening", times=workers + 1)
    assert "reloading" not in service.log
    assert service.log.count("reload refused") == 1


def test_a_change_of_the_watched_file_is_a_reload(
    start: Start, workers: int, tmp_path: Path
) -> None:
    processes = workers + 1
    file = tmp_path / "watched"
    service = start(workers=workers, watch="watched").ready()

    def change() -> bool:
        file.write_text(f"{time.monotonic()}")
        time.sleep(0.05)
        return service.log.count("reloading") >= processes

    wait_until(change, "a reload")


def test_sigusr2_asks_for_all_counters(start: Start, workers: int) -> None:
    service = start(workers=workers).ready()
    client = service.connect()
    client.ask("pid")

    def shown() -> bool:
        service.signal_group(signal.SIGUSR2)
        return "stand in lines 1 (+" in service.log

    # What is counted is published with the next answer to a ping.
    wait_until(shown, "the line counted")


def test_the_monitor_logs_what_there_is_to_tell(start: Start, workers: int) -> None:
    service = start(workers=workers, monitor=0.1).ready()
    client = service.connect()
    client.ask("pid")
    service.wait_for("stand in lines 1 (+1, ")
    service.wait_for("nothing", times=2)
    assert service.log.count("stand in lines") == 1


def test_a_failing_hook_stops_nothing(start: Start, workers: int) -> None:
    service = start(workers=workers, env={"BAD_HOOK": "1"}).ready()
    service.signal(signal.SIGUSR1)
    service.wait_for("reopen logs failed; going on as before")
    assert service.connect().ask("pid").isdigit()


@pytest.mark.parametrize(
    ("fail", "reason"),
    [
        ("startup", "the stand-in was told to fail"),
        ("exception", "LookupError: no such thing"),
    ],
)
def test_a_resource_that_fails_at_the_start_ends_with_1_and_the_reason(
    start: Start, workers: int, fail: str, reason: str
) -> None:
    service = start(workers=workers, fail=fail)
    assert service.wait() == 1
    last = service.log.splitlines()[-1]
    assert "cannot start: " in last
    assert reason in last
    assert "listening" not in service.log


def test_a_start_that_hangs_can_be_stopped(start: Start, workers: int) -> None:
    service = start(workers=workers, fail="hang")
    service.wait_for("hanging", times=workers)
    service.signal(signal.SIGTERM)
    assert service.wait() == 0


def test_a_port_in_use_is_named(start: Start, workers: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        service = start(workers=workers, listen={"port": port})
        assert service.wait() == 1
    assert f"cannot listen on 127.0.0.1 port {port}: Address already in use" in service.log


def test_an_address_that_is_not_allowed_is_turned_away(start: Start, workers: int) -> None:
    service = start(workers=workers, allow=["127.0.0.2/32", "2001:db8::/32"]).ready()
    assert service.connect().read() == ""
    service.wait_for("connection from 127.0.0.1 closed: the address is not allowed")


def test_connections_over_the_limit_are_turned_away(start: Start, workers: int) -> None:
    service = start(workers=workers, limits={"connections": 3}).ready()
    clients = [service.connect() for _ in range(3)]
    assert all(client.ask("pid").isdigit() for client in clients)
    assert service.connect().read() == ""
    service.wait_for("connection closed: the limit of 3 connections is reached")
    clients.pop().close()
    wait_until(lambda: service.connect().ask("checks") == "accepted", "a free place")


def test_it_listens_on_a_unix_socket_and_removes_it(
    start: Start, workers: int, tmp_path: Path
) -> None:
    path = tmp_path / "agent.sock"
    service = start(workers=workers, listen={"unix": str(path), "unix_mode": 0o600}).ready()
    assert service.address == str(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        client.sendall(b"pid\n")
        assert client.recv(100).strip().isdigit()
    service.signal(signal.SIGTERM)
    assert service.wait() == 0
    assert not path.exists()


def test_the_service_manager_is_told(start: Start, workers: int, tmp_path: Path) -> None:
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(path))
        manager.settimeout(10)
        service = start(workers=workers, env={"NOTIFY_SOCKET": str(path)})
        assert manager.recv(100) == b"READY=1"
        assert "listening on" in service.log
        service.signal(signal.SIGTERM)
        assert manager.recv(100) == b"STOPPING=1"
    assert service.wait() == 0


def test_the_pidfile_is_written_locked_and_removed(
    start: Start, workers: int, tmp_path: Path
) -> None:
    path = tmp_path / "pid"
    path.write_text("99999999\n")  # stale: nobody holds it
    service = start(workers=workers, pidfile=str(path)).ready()
    assert path.read_text() == f"{service.process.pid}\n"
    second = start(workers=workers, pidfile=str(path))
    assert second.wait() == 1
    assert f"pidfile {path}: process {service.process.pid} holds it" in second.log
    assert path.read_text() == f"{service.process.pid}\n"
    service.signal(signal.SIGTERM)
    assert service.wait() == 0
    assert not path.exists()


@linux_only
def test_a_daemon_lets_its_starter_go_when_it_is_ready(
    start: Start, workers: int, tmp_path: Path
) -> None:
    log, pidfile = tmp_path / "daemon.log", tmp_path / "pid"
    starter = start(workers=workers, daemonize=True, pidfile=str(pidfile), log_file=str(log))
    assert starter.wait() == 0
    pid = int(pidfile.read_text())
    try:
        assert "listening on" in log.read_text()
        assert pid != starter.process.pid
        assert os.getsid(pid) not in (os.getsid(0), starter.process.pid)
        assert {os.readlink(f"/proc/{pid}/fd/{fd}") for fd in (0, 1, 2)} == {"/dev/null"}
    finally:
        os.kill(pid, signal.SIGTERM)
    wait_until(lambda: not pidfile.exists(), "the daemon's end")


def test_a_daemon_that_fails_tells_its_starter_why(
    start: Start, workers: int, tmp_path: Path
) -> None:
    starter = start(workers=workers, daemonize=True, fail="startup")
    assert starter.wait() == 1
    last = starter.log.splitlines()[-1]
    assert last.startswith("ERROR: ")
    assert last.endswith("the stand-in was told to fail")


@linux_only
def test_an_agent_process_leaves_no_descriptor_to_its_children(start: Start, workers: int) -> None:
    service = start(workers=workers).ready()
    client = service.connect()
    pid = int(client.ask("pid"))
    listed = subprocess.run(
        ["ls", f"/proc/{pid}/fd"], capture_output=True, text=True, check=True
    ).stdout.split()
    for descriptor in listed:
        flags = Path(f"/proc/{pid}/fdinfo/{descriptor}").read_text().split("flags:\t")[1].split()[0]
        assert int(descriptor) <= 2 or int(flags, 8) & os.O_CLOEXEC, descriptor


def test_the_limit_of_select_is_said_at_the_start(start: Start, workers: int) -> None:
    service = start(workers=workers, loop="select").ready()
    assert "loop select: the limit is 900 connections" in service.log
