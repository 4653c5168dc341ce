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
from spoakit.cli import common_options
from spoakit.cli import spoakit as command
from spoakit.compilation import form
from spoakit.server import Logfile, ServerSettings, TcpAddress, UnixAddress
from spoakit.spop import Argument, Message
from spoakit.testing import EngineClient

pytestmark = pytest.mark.slow

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
    (tmp_path / "failing.py").write_text(
        "def connect():\n    raise ValueError('no database')\n\nconnect()\n"
    )
    (tmp_path / "unregistered.py").write_text(
        "from spoakit import Agent\n\nagent = Agent('a')\n@agent.message('x y')\ndef f(): ...\n"
    )
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


@pytest.mark.parametrize(
    ("options", "addresses"),
    [
        ("", [TcpAddress("0.0.0.0", 12345)]),
        ("-p 7", [TcpAddress("0.0.0.0", 7)]),
        ("--unix a.sock", [UnixAddress("a.sock")]),
        ("-a ::1 --unix a.sock", [TcpAddress("::1", 12345), UnixAddress("a.sock")]),
        ("--listen unix:a.sock", [UnixAddress("a.sock")]),
        (
            "--listen tcp://[::1]:7 --listen=tcp://localhost:8 -p9 --unix=b.sock",
            [
                TcpAddress("0.0.0.0", 9),
                UnixAddress("b.sock"),
                TcpAddress("::1", 7),
                TcpAddress("localhost", 8),
            ],
        ),
    ],
)
def test_addresses_to_listen_on_add_up(
    options: str, addresses: list[object], directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[ServerSettings] = []

    def run(agents: object, settings: ServerSettings) -> int:
        given.append(settings)
        return 0

    monkeypatch.setattr(command, "run", run)
    assert in_process(["run", "agents:first", *options.split()], directory, monkeypatch) == 0
    assert list(given[0].listen.addresses) == addresses


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
    process, port = run("agents:first", "--drain", "200ms", "--workers", "2")
    with socket.create_connection(("127.0.0.1", port), timeout=10):
        before = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
        assert time.monotonic() - before < 3


def in_process(arguments: list[str], directory: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.chdir(directory)
    monkeypatch.setattr(sys, "path", sys.path[:])
    try:
        return command.main(arguments)
    except SystemExit as left:
        return int(str(left.code))


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ([], "no command"),
        (["serve"], "unknown command 'serve' (allowed: run)"),
        (["run"], "no agent: give one as MODULE:AGENT, such as iprep:agent"),
        (["run", "-p", "65536"], "invalid port '65536' (--port: allowed range [0, 65535])"),
        (["run", "-p", "http"], "invalid port 'http' (--port: allowed range [0, 65535])"),
        (["run", "-p", "\u0661"], "invalid port '\u0661' (--port: allowed range [0, 65535])"),
        (["run", "--allow", "10.0.0.1/8"], "--allow: '10.0.0.1/8' is neither"),
        (["run", "--unix-mode", "9"], "invalid unix mode '9' (--unix-mode: allowed: octal digits"),
        (["run", "-n", "0"], "invalid num workers '0' (--num-workers: allowed range [1, 1000])"),
        (
            ["run", "--listen", "http://x"],
            "--listen: must be tcp://HOST:PORT or unix:PATH, got 'http://x'",
        ),
        (
            ["run", "--listen", "tcp://::1:7"],
            "--listen: must be tcp://HOST:PORT or unix:PATH, got 'tcp://::1:7'",
        ),
        (["run", "--listen", "unix:"], "--listen: unix must be a path"),
        (["run", "--listen", "tcp://h:65536"], "--listen: port must be between 0 and 65535"),
        (["run", "--drain", "10"], "invalid drain '10' (--drain: say 10s or 10ms)"),
        (["run", "-r", "5"], "invalid runtime '5' (--runtime: say 5s or 5ms)"),
        (["run", "-i", "1.5"], "invalid monitor interval '1.5' (--monitor-interval: say 1.5s or"),
        (["run", "--hello-timeout", "0"], "invalid hello timeout '0' (--hello-timeout: allowed"),
        (["run", "--max-reassembled", "1"], "invalid max reassembled '1' (--max-reassembled: allo"),
    ],
)
def test_a_wrong_command_line_is_named_with_how_to_call_it(
    arguments: list[str],
    error: str,
    directory: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if len(arguments) > 1:
        arguments = [*arguments, "agents:first"]
    assert in_process(arguments, directory, monkeypatch) == 64
    shown = capsys.readouterr()
    assert shown.err.startswith(f"ERROR: {error}")
    assert "Usage: spoakit " in shown.out


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["agents"], "agent 'agents': give it as module:agent"),
        (["missing:agent"], "agent 'missing:agent': No module named 'missing'"),
        (["agents.inner:agent"], "agent 'agents.inner:agent': No module named 'agents.inner'"),
        ([".agents:first"], "agent '.agents:first': give it as module:agent"),
        (["agents:third"], "agent 'agents:third': the name is missing in agents; its agents are"),
        (["agents:number"], "agent 'agents:number': it is not an Agent in agents; its agents are"),
        (["agents:first", "agents:first"], "two agents have the name 'first'"),
        (["agents:first", "--tls-key=x"], "--tls-key 'x' needs --tls-cert"),
    ],
)
def test_a_wrong_agent_or_setting_is_named(
    arguments: list[str],
    error: str,
    directory: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert in_process(["run", *arguments], directory, monkeypatch) == 64
    shown = capsys.readouterr()
    assert shown.err.startswith(f"ERROR: {error}")
    assert shown.err.count("\n") == 1
    assert shown.out == ""


@pytest.mark.parametrize(
    ("name", "place", "error"),
    [
        ("needy", 'needy.py", line 1', "ModuleNotFoundError: No module named 'a_module_that_is"),
        ("broken", 'broken.py", line 1', "SyntaxError: invalid syntax"),
        ("wrong", 'wrong.py", line 1', "ImportError: cannot import name 'nothing' from 'os'"),
        ("failing", 'failing.py", line 4', "ValueError: no database"),
        ("unregistered", 'unregistered.py", line 4', "spoakit.exceptions.RegistrationError: "),
    ],
)
def test_a_module_that_cannot_be_imported_shows_its_traceback_alone(
    name: str,
    place: str,
    error: str,
    directory: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert in_process(["run", f"{name}:agent"], directory, monkeypatch) == 1
    shown = capsys.readouterr()
    lines = shown.err.splitlines()
    [file] = [line for line in lines if line.startswith("  File")][:1]
    assert place in file
    assert lines[-1].startswith(error)
    assert shown.out == ""


def test_what_a_module_logs_while_it_is_imported_is_written(directory: Path) -> None:
    (directory / "talking.py").write_text(
        "import logging\nlogging.getLogger('talking').info('hello')\nagent = 7\n"
    )
    arguments = [sys.executable, "-m", "spoakit.cli.spoakit", "run", "talking:agent"]
    environment = {**os.environ, "PYTHONPATH": str(Path(spoakit.__file__).parent.parent)}
    done = subprocess.run(
        arguments, capture_output=True, text=True, cwd=directory, env=environment, check=False
    )
    assert done.returncode == 64
    assert "INFO talking: hello" in done.stderr


def test_the_version_tells_which_form_is_in_use(
    directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert in_process(["--version"], directory, monkeypatch) == 0
    assert capsys.readouterr().out == f"\nspoakit v{spoakit.__version__} ({form()})\n\n"


def test_the_options_make_the_settings(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[ServerSettings] = []

    def run(agents: object, settings: ServerSettings) -> int:
        given.append(settings)
        return 0

    monkeypatch.chdir(directory)
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.setattr(command, "run", run)
    monkeypatch.setattr(common_options, "configure_logging", lambda level, format: None)
    monkeypatch.setattr(common_options, "begin_logfile", lambda settings: None)
    assert command.main(["run", "agents:first"]) == 0
    options = (
        "--unix a.sock --unix-mode 600 --unix-owner root --unix-group 0 "
        "--backlog 7 --allow 10.0.0.0/8 --allow ::1 --workers 3 "
        "--monitor-interval 2s --logfile a.log --watch a.toml "
        "--loop asyncio --runtime 5s --drain 1500ms --drain-checks 2s --pidfile a.pid --daemonize "
        "--capability async --max-frame-size 1024 --frame-size-cap 4096 --max-reassembled 5000 "
        "--max-connections 8 --max-in-flight 9 --hello-timeout 3s --max-frames 10 "
        "--max-messages 11"
    )
    assert command.main(["run", "agents:first", *options.split()]) == 0
    assert given[0] == ServerSettings()
    settings = given[1]
    assert settings.listen.addresses == (UnixAddress("a.sock"),)
    assert (settings.listen.unix_owner, settings.listen.unix_group) == ("root", "0")
    assert settings.listen.unix_mode == 0o600
    assert settings.listen.backlog == 7
    assert [str(network) for network in settings.listen.allow] == ["10.0.0.0/8", "::1/128"]
    assert (settings.workers, settings.loop, settings.runtime) == (3, "asyncio", 5.0)
    assert (settings.drain.timeout, settings.drain.checks) == (1.5, 2.0)
    assert (settings.pidfile, settings.daemonize) == ("a.pid", True)
    assert (settings.monitor, settings.watch) == (2.0, "a.toml")
    assert settings.logfile == Logfile("a.log")
    assert settings.capabilities == ("fragmentation", "pipelining", "async")
    limits = settings.limits
    assert (limits.frame_size, limits.frame_size_cap, limits.reassembled_size) == (1024, 4096, 5000)
    assert (limits.connections, limits.in_flight, limits.hello_timeout) == (8, 9, 3.0)
    assert (limits.frames, limits.messages) == (10, 11)
