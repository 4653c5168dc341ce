"""The access log of spoa-mirror as a process: shared, moved, reopened, changed."""

import json
import os
import re
import signal
from pathlib import Path
from threading import Event, Thread

import pytest

from tests.support.mirror_program import Recorder, Service, send, send_until, serve, start, stop
from tests.support.ports import free_port
from tests.support.processes import children_of
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow


def test_access_lines_and_the_programs_go_to_one_file_in_whole_lines(tmp_path: Path) -> None:
    target = Recorder()
    log = tmp_path / "mirror.log"
    port = free_port()
    with start(
        *("-r0", "-a127.0.0.1", f"-p{port}", f"-uhttp://127.0.0.1:{target.port}/", "-n2"),
        *("-l", f"w:{log}", "-i1s"),
    ) as process:
        wait_until(lambda: log.exists() and "listening on" in log.read_text())
        for number in range(20):
            send(port, f"/{number}")
        wait_until(lambda: log.read_text().count(" ok\n") == 20)
        process.send_signal(signal.SIGUSR2)
        wait_until(
            lambda: re.search(r"target .*: .*responses 2xx \d+ \(", log.read_text()) is not None
        )
        assert stop(process) == ""
    access = re.compile(r'\[ [12]\]\[ *[\d.]+\] "GET http://127.0.0.1:\d+/\d+ HTTP/1.1" 200 .* ok')
    other = re.compile(r"\d{4}-\d\d-\d\d [\d:.]+ \[\d+\] [A-Z]+ spoakit\.\w+: .*")
    lines = log.read_text().splitlines()
    assert sum(access.fullmatch(line) is not None for line in lines) == 20
    assert all(access.fullmatch(line) or other.fullmatch(line) for line in lines)
    assert "--- start --- " in lines[0]
    assert "--- stop  --- " in lines[-1]
    target.close()


def test_an_access_log_may_be_moved_while_it_is_written_to(tmp_path: Path) -> None:
    """Without a line lost, torn, or mixed with one of the other worker."""
    target = Recorder()
    text = f"[log]\nformat = 'json'\npath = 'access.json'\n[[target]]\nurl = '{target.url}'\n"
    file, moved = tmp_path / "access.json", [tmp_path / f"{number}" for number in range(3)]
    ended = Event()
    with serve(tmp_path, text, "-n2") as service:
        senders = [Thread(target=send_until, args=(service.port, ended)) for _ in range(2)]
        for sender in senders:
            sender.start()
        try:
            for new in moved:
                wait_until(lambda: file.exists() and file.stat().st_size > 2000)
                file.rename(new)
                # Signals of the same meaning within half a second are one.
                service.process.send_signal(signal.SIGUSR1)
                wait_until(file.exists)
        finally:
            ended.set()
            for sender in senders:
                sender.join(10)
    lines = [line for path in (*moved, file) for line in path.read_text().splitlines()]
    logged = [json.loads(line) for line in lines]
    assert len(logged) == len(target.paths)
    assert {line["worker"] for line in logged} == {1, 2}
    assert {line["target"] for line in logged} == {target.url}
    assert all(path.stat().st_size for path in moved)
    assert '"GET' not in service.log
    target.close()


def test_an_access_log_that_cannot_be_reopened_goes_on_where_it_was(tmp_path: Path) -> None:
    target = Recorder()
    logs = tmp_path / "logs"
    logs.mkdir()
    text = f"[log]\npath = 'logs/access'\n[[target]]\nurl = '{target.url}'\n"
    with serve(tmp_path, text, "-n1") as service:
        logs.rename(tmp_path / "moved")
        service.file.rename(tmp_path / "mirror.log.1")
        service.process.send_signal(signal.SIGUSR1)
        service.wait_for_log(
            f"reopen logs refused, going on as before: access log '{logs}/access' cannot be "
            "opened: No such file or directory"
        )
        send(service.port, "/after")
        wait_until(lambda: "/after HTTP" in (tmp_path / "moved" / "access").read_text())
    target.close()


def test_a_successor_of_a_worker_copies_without_its_access_log(tmp_path: Path) -> None:
    target = Recorder()
    logs = tmp_path / "logs"
    logs.mkdir()
    text = f"[log]\npath = 'logs/access'\n[[target]]\nurl = '{target.url}'\n"
    with serve(tmp_path, text, "-n1") as service:
        logs.rename(tmp_path / "moved")
        [worker] = children_of(service.process.pid)
        os.kill(worker, signal.SIGKILL)
        service.wait_for_log("its lines go to standard output until it is reopened")
        send(service.port, "/after")
        service.wait_for_log("/after HTTP")
        logs.mkdir()
        service.process.send_signal(signal.SIGUSR1)
        wait_until((logs / "access").exists)
        send(service.port, "/reopened")
        wait_until(lambda: "/reopened HTTP" in (logs / "access").read_text())
    target.close()


@pytest.mark.parametrize(
    ("option", "named", "reason"),
    [
        ("--access-log={}/absent/a", "{}/absent/a", "No such file or directory"),
        ("--access-log={}", "{}", "Is a directory"),
        ("--config={}/mirror.toml", "{}/absent/b", "No such file or directory"),
    ],
)
def test_an_access_log_that_cannot_be_opened_is_named(
    tmp_path: Path, option: str, named: str, reason: str
) -> None:
    (tmp_path / "mirror.toml").write_text(
        "[log]\npath = 'absent/b'\n[[target]]\nurl = 'http://h/'\n"
    )
    with start("-r0", "-n1", option.format(tmp_path)) as process:
        _, err = process.communicate(timeout=20)
        assert process.returncode == 64
    named = named.format(tmp_path)
    assert err == f"ERROR: access log {named!r} cannot be opened: {reason}\n"


def test_a_reload_changes_the_access_log(tmp_path: Path) -> None:
    target = Recorder()
    config = tmp_path / "mirror.toml"
    targets = f"[[target]]\nurl = '{target.url}'\n"

    def reload(log: str, targets: str, service: Service, text: str = "reloaded: ") -> None:
        count = service.log.count(text)
        (tmp_path / "new").write_text(f"[log]\n{log}\n{targets}")
        os.replace(tmp_path / "new", config)
        service.wait_for_log(text, count + 1)

    def lines(name: str) -> list[str]:
        path = tmp_path / name
        return path.read_text().splitlines() if path.exists() else []

    with serve(tmp_path, f"[log]\npath = 'a'\n{targets}", "-n1", "--watch") as service:
        send(service.port, "/1")
        wait_until(lambda: len(lines("a")) == 1)
        reload("path = 'b'\nformat = 'json'", targets, service)
        send(service.port, "/2")
        wait_until(lambda: len(lines("b")) == 1)
        reload("path = 'absent/c'", targets, service, "reload refused, going on as before: ")
        assert "access log" in service.log
        send(service.port, "/3")
        wait_until(lambda: len(lines("b")) == 2)
        reload("path = 'b'", targets + f"[[target]]\nname = 'two'\nurl = '{target.url}'", service)
        send(service.port, "/4")
        wait_until(lambda: len(lines("b")) == 4)
        reload("path = 'b'\nquiet = true", targets, service)
        send(service.port, "/5")
        wait_until(lambda: "/5" in target.paths)
        reload("", targets, service)
        send(service.port, "/6")
        service.wait_for_log("/6 HTTP")
    assert "needs a restart" not in service.log
    assert [line.split("] ")[1].split(" HTTP")[0] for line in lines("a")] == [f'"GET {target.url}1']
    assert [json.loads(line)["url"] for line in lines("b")[:2]] == [
        f"{target.url}{path}" for path in (2, 3)
    ]
    assert {line.split("] ")[1].split(" HTTP")[0] for line in lines("b")[2:]} == {
        f'"{target.url}" "GET {target.url}4',
        f'"two" "GET {target.url}4',
    }
    target.close()
