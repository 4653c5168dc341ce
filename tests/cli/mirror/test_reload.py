"""Reloads of spoa-mirror's file, by signal and by watching it."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from tests.support.mirror_program import Recorder, send, serve, start, stop
from tests.support.ports import free_port
from tests.support.processes import children_of
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("workers", ["-n1", "-n2"])
@pytest.mark.parametrize("how", ["signal", "watch"])
def test_a_reload_changes_the_targets_and_a_bad_one_does_not(
    tmp_path: Path, workers: str, how: str
) -> None:
    one, two = Recorder(), Recorder()
    file, log = tmp_path / "mirror.toml", tmp_path / "mirror.log"

    def write(*ports: int, rest: str = "") -> None:
        tables = (f'[[target]]\nurl = "http://127.0.0.1:{port}/"\n' for port in ports)
        (tmp_path / "new").write_text("".join(tables) + rest)
        os.replace(tmp_path / "new", file)

    def reload(text: str) -> None:
        # Signals of the same meaning within half a second are one.
        before = log.read_text().count(text)
        while log.read_text().count(text) == before:
            if how == "signal":
                process.send_signal(signal.SIGHUP)
            else:
                os.utime(file)
            time.sleep(0.1)

    write(one.port)
    port = free_port()
    options = ["-r0", "-a127.0.0.1", f"-p{port}", f"--config={file}", f"-l{log}", workers]
    with start(*options, *(["--watch"] if how == "watch" else [])) as process:
        wait_until(lambda: log.exists() and "listening on" in log.read_text())
        send(port, "/first")
        wait_until(lambda: one.paths == ["/first"])
        write(two.port, rest="[[target]\n")
        reload("reload refused, going on as before: ")
        assert str(file) in log.read_text()
        send(port, "/second")
        wait_until(lambda: one.paths == ["/first", "/second"])
        write(two.port)
        reload("reloaded: 1 targets, 1 new, 1 removed")
        wait_until(
            lambda: (
                log.read_text().count("reloaded: 1 targets, 1 new, 1 removed") == int(workers[2])
            )
        )
        send(port, "/third")
        wait_until(lambda: two.paths == ["/third"])
        stop(process)
    assert one.paths == ["/first", "/second"]
    one.close()
    two.close()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_successor_of_a_worker_has_the_settings_in_force(tmp_path: Path) -> None:
    one, two = Recorder(), Recorder()
    file, log = tmp_path / "mirror.toml", tmp_path / "mirror.log"
    file.write_text(f'[[target]]\nurl = "http://127.0.0.1:{one.port}/"\n')
    port = free_port()
    with start(
        *("-r0", "-a127.0.0.1", f"-p{port}", f"--config={file}", f"-l{log}", "-n2")
    ) as process:
        wait_until(lambda: log.exists() and "listening on" in log.read_text())
        file.write_text(f'[[target]]\nurl = "http://127.0.0.1:{two.port}/"\n')
        process.send_signal(signal.SIGHUP)
        wait_until(lambda: log.read_text().count("1 new, 1 removed") == 2)
        for worker in children_of(process.pid):
            os.kill(worker, signal.SIGKILL)
        wait_until(lambda: log.read_text().count("ended unexpectedly") == 2)
        send(port, "/after")
        wait_until(lambda: two.paths == ["/after"])
        stop(process)
    assert one.paths == []
    one.close()
    two.close()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_writing_beside_a_watched_file_reloads_nothing(tmp_path: Path) -> None:
    """The log, the access log and the pidfile may be in the folder of the configuration."""
    target = Recorder()
    text = f"[log]\npath = 'access'\n[[target]]\nurl = '{target.url}'\n"
    options = ("-n1", "-d1", "--watch", f"-F{tmp_path / 'pid'}")
    with serve(tmp_path, text, *options) as service:
        began = time.monotonic()
        number = 0
        while time.monotonic() < began + 1.5:  # the file is looked at four times a second
            number += 1
            send(service.port, f"/{number}")
            (tmp_path / "beside").write_text(str(number))
        wait_until(lambda: len((tmp_path / "access").read_text().splitlines()) == number)
        assert "reload" not in service.log
        before = service.file.stat().st_size
        cpu = cpu_of(service.process.pid)
        began = time.monotonic()
        while time.monotonic() < began + 1:  # nothing comes of what was written
            time.sleep(0.05)
        assert service.file.stat().st_size == before
        assert cpu_of(service.process.pid) - cpu < 0.2
        os.utime(tmp_path / "mirror.toml")
        service.wait_for_log("reloaded: ")
    target.close()


def cpu_of(pid: int) -> float:
    """Return the CPU time of a process in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
