import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address
from pathlib import Path

import pytest

import spoakit
from spoakit.cli import spoakit as command
from spoakit.cli.options import form
from spoakit.server import ServerSettings
from spoakit.spop import Argument, Message
from spoakit.testing import EngineClient

AGENTS = """
from ipaddress import IPv4Address
from spoakit import Action, Agent, DataType

first = Agent("first")
low = first.variable("sess.low", DataType.UINT32)
second = Agent("second")
high = second.variable("sess.high", DataType.UINT32)
number = 7

@first.message("low-byte")
def low_byte(src: IPv4Address, /) -> Action:
    return low.set(int(src) & 255)

@second.message("high-byte")
def high_byte(src: IPv4Address, /) -> Action:
    return high.set(int(src) >> 24)
"""


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "agents.py").write_text(AGENTS)
    (tmp_path / "broken.py").write_text("def :\n")
    (tmp_path / "wrong.py").write_text("from os import nothing\n")
    (tmp_path / "needy.py").write_text("import a_module_that_is_missing\n")
    return tmp_path


@pytest.fixture
def run(directory: Path) -> Iterator[Callable[..., tuple[subprocess.Popen[str], int]]]:
    """Run `spoakit run` on a free port; give the process and the port when it is ready."""
    processes = []

    def run(*arguments: str) -> tuple[subprocess.Popen[str], int]:
        process = subprocess.Popen(
            [sys.executable, "-m", "spoakit.cli.spoakit", "run", "-a127.0.0.1", "-p0", *arguments],
            stderr=subprocess.PIPE,
            text=True,
            cwd=directory,
            env={**os.environ, "PYTHONPATH": str(Path(spoakit.__file__).parent.parent)},
        )
        processes.append(process)
        assert process.stderr is not None
        for line in process.stderr:
            if "listening on 127.0.0.1:" in line:
                return process, int(line.split("127.0.0.1:")[1].split()[0])
        raise AssertionError(f"exit code {process.wait()}")

    yield run
    for process in processes:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("workers", ["1", "2"])
def test_it_serves_several_agents_on_one_port(
    run: Callable[..., tuple[subprocess.Popen[str], int]], workers: str
) -> None:
    process, port = run("agents:first", "agents:second", "-n", workers)
    with EngineClient(port=port) as engine:
        engine.hello()
        address = Argument.of("", IPv4Address("192.0.2.33"))
        messages = Message("low-byte", (address,)), Message("high-byte", (address,))
        reply = engine.ack(engine.notify(*messages))
    assert [(action.name, action.value) for action in reply.actions] == [("low", 33), ("high", 192)]
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 0


def test_it_drains_within_its_bound(
    run: Callable[..., tuple[subprocess.Popen[str], int]],
) -> None:
    process, port = run("agents:first", "--drain", "0.2", "--workers", "2")
    with socket.create_connection(("127.0.0.1", port), timeout=10):
        before = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
        assert time.monotonic() - before < 3


def in_process(
    arguments: list[str], directory: Path, monkeypatch: pytest.MonkeyPatch
) -> int | str | None:
    monkeypatch.chdir(directory)
    monkeypatch.setattr(sys, "path", sys.path[:])
    with pytest.raises(SystemExit) as caught:
        command.main(arguments)
    return caught.value.code


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["run"], "the following arguments are required: module:agent"),
        (["run", "agents"], "agent 'agents': give it as module:agent"),
        (["run", "missing:agent"], "agent 'missing:agent': No module named 'missing'"),
        (["run", "needy:agent"], "No module named 'a_module_that_is_missing'"),
        (["run", ".agents:first"], "agent '.agents:first': give it as module:agent"),
        (["run", "broken:agent"], "agent 'broken:agent': invalid syntax (broken.py, line 1)"),
        (["run", "wrong:agent"], "agent 'wrong:agent': cannot import name 'nothing' from 'os'"),
        (["run", "agents:third"], "no such name in agents; its agents are: first, second"),
        (["run", "agents:number"], "it is not an Agent in agents; its agents are: first, second"),
        (["run", "agents:first", "agents:first"], "two agents"),
        (["run", "-p", "65536", "agents:first"], "port must be between 0 and 65535, got 65536"),
        (["run", "-p", "http", "agents:first"], "argument -p/--port: invalid int value: 'http'"),
        (["run", "--allow", "10.0.0.1/8", "agents:first"], "allow: '10.0.0.1/8' is neither"),
        (["run", "--unix-mode", "9", "agents:first"], "invalid octal value: '9'"),
        (["run", "-n", "0", "agents:first"], "workers must be between 1 and 1024, got 0"),
    ],
)
def test_a_wrong_command_line_is_named_and_ends_with_64(
    arguments: list[str],
    error: str,
    directory: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert in_process(arguments, directory, monkeypatch) == 64
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("ERROR: ")
    assert error in shown.err


def test_the_version_tells_which_form_is_in_use(
    directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert in_process(["--version"], directory, monkeypatch) == 0
    assert capsys.readouterr().out == f"spoakit {spoakit.__version__} ({form()})\n"


def test_the_options_make_the_settings(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[ServerSettings] = []

    def run(agents: object, settings: ServerSettings) -> int:
        given.append(settings)
        return 0

    monkeypatch.chdir(directory)
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.setattr(command, "run", run)
    monkeypatch.setattr(command, "configure_logging", lambda debug: None)
    assert command.main(["run", "agents:first"]) == 0
    options = (
        "--unix a.sock --unix-mode 600 --backlog 7 --allow 10.0.0.0/8 --allow ::1 --workers 3 "
        "--loop asyncio --runtime 5 --drain 1.5 --drain-checks 2 --pidfile a.pid --daemonize "
        "--capability async --max-frame-size 1024 --frame-size-cap 4096 --max-reassembled 5000 "
        "--max-connections 8 --max-in-flight 9 --hello-timeout 3 --max-frames 10 "
        "--max-messages 11"
    )
    assert command.main(["run", "agents:first", *options.split()]) == 0
    assert given[0] == ServerSettings()
    settings = given[1]
    assert settings.listen.unix == "a.sock"
    assert settings.listen.unix_mode == 0o600
    assert settings.listen.backlog == 7
    assert [str(network) for network in settings.listen.allow] == ["10.0.0.0/8", "::1/128"]
    assert (settings.workers, settings.loop, settings.runtime) == (3, "asyncio", 5.0)
    assert (settings.drain.timeout, settings.drain.checks) == (1.5, 2.0)
    assert (settings.pidfile, settings.daemonize) == ("a.pid", True)
    assert settings.capabilities == ("fragmentation", "pipelining", "async")
    limits = settings.limits
    assert (limits.frame_size, limits.frame_size_cap, limits.reassembled_size) == (1024, 4096, 5000)
    assert (limits.connections, limits.in_flight, limits.hello_timeout) == (8, 9, 3.0)
    assert (limits.frames, limits.messages) == (10, 11)
