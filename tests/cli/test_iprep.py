import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from ipaddress import IPv4Address, IPv6Address, ip_network
from pathlib import Path

import pytest

import spoakit
from spoakit.agent import Agent
from spoakit.cli import common_options, iprep
from spoakit.server import (
    Drain,
    Hooks,
    Limits,
    Listen,
    ListenTls,
    Logfile,
    ServerSettings,
    TcpAddress,
    UnixAddress,
)
from spoakit.spop import DataType
from spoakit.testing import Engine, EngineClient
from tests.support.processes import wait_for_line

pytestmark = pytest.mark.slow

USAGE = """
Usage: spoa-iprep { -h --help }
       spoa-iprep { -V --version }
       spoa-iprep [OPTION]...
       spoa-iprep { ban | unban | bans | lookup | sources | update } [-h]

For help type: spoa-iprep -h

"""


def test_the_help_has_the_options_of_the_c_program_and_goes_on(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert iprep.main(["-h"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(USAGE.removesuffix("For help type: spoa-iprep -h\n\n"))
    for line in (
        "  -d, --debug                     Enable the debug mode: log each frame.",
        "  -f, --frames=VALUE              Close a connection after this many frames "
        "(default: never).",
        "  -h, --help                      Show this text.",
        "  -m, --max-frame-size=VALUE      Specify the maximum frame size (default: HAProxy's).",
        "  -n, --num-workers=VALUE         Specify the number of workers (default: 5).",
        "  -p, --port=VALUE                Specify the port to listen on (default: 12345; 0: any).",
        "  -t, --processing-delay=TIME     Set a delay to process a message (default: 0).",
        "      --config=FILE               The configuration, a TOML file.",
        "Supported event backends: auto, uvloop, asyncio, select, poll, epoll, linuxaio.",
    ):
        assert f"{line}\n" in shown
    assert max(map(len, shown.splitlines())) <= 100


def test_the_version_tells_the_form(capsys: pytest.CaptureFixture[str]) -> None:
    assert iprep.main(["--version"]) == 0
    shown = capsys.readouterr().out
    assert re.fullmatch(rf"\nspoa-iprep v{spoakit.__version__} \(.*compiled.*\)\n\n", shown)


@pytest.mark.parametrize(
    ("arguments", "errors"),
    [
        (["-p", "70000"], ["invalid port '70000' (--port: allowed range [0, 65535])"]),
        (["-p", "x"], ["invalid port 'x' (--port: allowed range [0, 65535])"]),
        (["-n", "0"], ["invalid num workers '0' (--num-workers: allowed range [1, 1000])"]),
        (["-f-1"], ["invalid frames '-1' (--frames: allowed range [0, 1000000000])"]),
        (
            ["-m1"],
            ["invalid max frame size '1' (--max-frame-size: allowed range [512, 268435456])"],
        ),
        (
            ["-t", "1001ms"],
            ["invalid processing delay '1001ms' (--processing-delay: allowed range [0, 1.00s])"],
        ),
        (
            ["-t", "1w"],
            [
                "invalid processing delay '1w' (--processing-delay: allowed: a number with us, ms, "
                "s, m, h, d or none of these)"
            ],
        ),
        (
            ["-Bfoo", "-c", "foo"],
            [
                "invalid event backend 'foo' (--event-backend: allowed: auto, uvloop, asyncio, "
                "select, poll, epoll, linuxaio)",
                "invalid capability 'foo' (--capability: allowed: fragmentation, pipelining, "
                "async, and no- before any of them)",
            ],
        ),
        (
            ["--allow=1.2.3.4/8"],
            [
                "--allow: '1.2.3.4/8' is neither an address nor a CIDR network: 1.2.3.4/8 has host "
                "bits set"
            ],
        ),
        (["-x"], ["unrecognized arguments: -x"]),
        (["stray"], ["unrecognized arguments: stray"]),
        (["-p"], ["argument -p/--port: expected one argument"]),
    ],
)
def test_all_that_is_wrong_is_named_and_the_exit_code_is_64(
    arguments: list[str], errors: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        iprep.main(arguments)
    assert caught.value.code == 64
    shown = capsys.readouterr()
    assert shown.err.splitlines() == [f"ERROR: {error}" for error in errors]
    assert shown.out == USAGE


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--tls-key=x"], "--tls-key 'x' needs --tls-cert"),
        (["--watch"], "--watch needs --config"),
        (["--control=x"], "--control needs --config"),
        (["--config=/absent/i.toml"], "/absent/i.toml: No such file or directory"),
        (
            ["--config=i.toml", "--random"],
            "--random: scores come from --config 'i.toml'; use one of the two",
        ),
    ],
)
def test_what_does_not_go_together_is_named_without_a_usage_block(
    arguments: list[str], error: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert iprep.main(arguments) == 64
    shown = capsys.readouterr()
    assert (shown.err, shown.out) == (f"ERROR: {error}\n", "")


class Given:
    """What the program runs with, instead of running."""

    agent: Agent
    settings: ServerSettings
    hooks: Hooks
    debug: bool


Run = Callable[[str], Given]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    given = Given()

    def pretend(agents: Sequence[Agent], settings: ServerSettings, hooks: Hooks) -> int:
        [given.agent] = agents
        given.settings, given.hooks = settings, hooks
        return 0

    def configure(level: str, format: str) -> None:
        given.debug = level == "debug"

    monkeypatch.setattr(iprep, "run", pretend)
    monkeypatch.setattr(common_options, "configure_logging", configure)
    monkeypatch.setattr(common_options, "begin_logfile", lambda settings: None)

    def run(arguments: str) -> Given:
        assert iprep.main(arguments.split()) == 0
        return given

    return run


@pytest.mark.parametrize("arguments", ["", "--random"])
def test_the_defaults_are_those_of_the_c_program(run: Run, arguments: str) -> None:
    given = run(arguments)
    assert given.settings == ServerSettings(workers=5)
    assert given.settings.listen.addresses == (TcpAddress("0.0.0.0", 12345),)
    assert given.settings.limits.frames == 0
    assert given.hooks == Hooks()
    assert not given.debug
    with Engine(given.agent) as engine:
        assert engine.call("check-client-ip", IPv4Address("192.0.2.1")).keys() == {"sess.ip_score"}


SHORT = "-a {0} -b {1} -B {2} -c {3} -F {4} -f {5} -i {6} -l {7} -m {8} -n {9} -p {10} -r {11} -dD"
LONG = (
    "--address={0} --connection-backlog={1} --event-backend={2} --capability={3} --pidfile={4} "
    "--frames={5} --monitor-interval={6} --logfile={7} --max-frame-size={8} --num-workers={9} "
    "--port={10} --runtime={11} --debug --daemonize"
)
VALUES = ("::1", "3", "POLL", "async", "a.pid", "7", "2s", "w:a.log", "2097152", "2", "0", "500")


@pytest.mark.parametrize("form", [SHORT, SHORT.replace(" {", "{"), LONG, LONG.replace("=", " ")])
def test_all_that_the_server_offers_can_be_said(run: Run, form: str) -> None:
    given = run(form.format(*VALUES))
    assert given.settings == ServerSettings(
        listen=Listen((TcpAddress("::1", 0),), backlog=3),
        limits=Limits(frame_size=2097152, frame_size_cap=2097152, frames=7),
        workers=2,
        capabilities=("fragmentation", "pipelining", "async"),
        runtime=0.5,
        pidfile="a.pid",
        daemonize=True,
        logfile=Logfile("a.log", truncate=True),
        monitor=2.0,
        loop="poll",
    )
    assert given.debug


def test_the_listening_socket_and_the_end(run: Run) -> None:
    given = run(
        "--unix=/run/i.sock --allow=192.0.2.0/24 --allow=::1 --tls-cert=c --tls-key=k --tls-ca=a "
        "--drain=3s --drain-checks=500ms --max-messages=7"
    )
    assert given.settings.listen == Listen(
        (UnixAddress("/run/i.sock"),),
        allow=(ip_network("192.0.2.0/24"), ip_network("::1")),
        tls=ListenTls("c", "k", "a"),
    )
    assert given.settings.drain == Drain(3.0, 0.5)
    assert given.settings.limits.messages == 7


@pytest.mark.parametrize(("arguments", "is_warned"), [("", True), ("--random", False)])
def test_scores_that_are_random_without_being_asked_for_are_warned_of(
    run: Run, arguments: str, is_warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    run(arguments)
    assert ("without --config scores are random; use --random" in caplog.text) is is_warned


@contextmanager
def start(folder: Path, *arguments: str) -> "Iterator[subprocess.Popen[str]]":
    """Run it; whatever happens to the test, it ends."""
    with subprocess.Popen(
        [sys.executable, "-m", "spoakit.cli.iprep", *arguments],
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(Path(spoakit.__file__).parent.parent)},
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def test_it_scores_addresses_and_shows_frames_in_debug_mode(tmp_path: Path) -> None:
    with start(tmp_path, "-d", "-a", "127.0.0.1", "-p0", "-n2") as process:
        line = wait_for_line(process, "listening on 127.0.0.1:")
        with EngineClient(port=int(line.split("127.0.0.1:")[1].split()[0])) as engine:
            engine.hello()
            reply = engine.call("check-client-ip", IPv6Address("2001:db8::7"))
        [action] = reply.actions
        assert action.name == "ip_score"
        assert action.data_type is DataType.UINT32
        assert isinstance(action.value, int)
        assert 0 <= action.value <= 100
        process.send_signal(signal.SIGTERM)
        _, rest = process.communicate(timeout=20)
        assert process.returncode == 0
    assert "check-client-ip(2001:db8::7)" in rest
    assert f"ACK 1/1: sess.ip_score={action.value}" in rest


def test_on_a_unix_socket_it_closes_connections_after_so_many_frames(tmp_path: Path) -> None:
    with start(tmp_path, "--unix=i.sock", "-n1", "-f2", "-t1ms") as process:
        wait_for_line(process, "listening on")
        for _ in range(3):
            with EngineClient(unix=str(tmp_path / "i.sock")) as engine:
                engine.hello()
                for _ in range(2):
                    reply = engine.call("check-client-ip", IPv4Address("192.0.2.1"))
                    assert reply.keys() == {"sess.ip_score"}
                farewell = engine.wait_for_disconnect()
                assert farewell.message == "the connection has had its 2 frames"
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=20)
        assert process.returncode == 0


@pytest.mark.parametrize(("status", "message"), [(0, "bye"), (2, "I timed out"), (99, "")])
def test_a_status_in_haproxys_disconnect_comes_back(
    tmp_path: Path, status: int, message: str
) -> None:
    with start(tmp_path, "--unix=i.sock", "-n1") as process:
        wait_for_line(process, "listening on")
        with EngineClient(unix=str(tmp_path / "i.sock")) as engine:
            engine.hello()
            engine.call("check-client-ip", IPv4Address("192.0.2.1"))
            assert engine.disconnect(status, message).status_code == status
            engine.wait_for_close()


def test_check_has_a_line_for_each_source_and_writes_nothing(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("192.0.2.7\n")
    config = tmp_path / "iprep.toml"
    config.write_text(
        'cache = "cache"\nbans.path = "bans"\naudit.path = "${AUDIT:-audit.log}"\n'
        '[[source]]\nname = "mine"\ntype = "list"\npath = "list.txt"\n'
    )
    before = sorted(tmp_path.iterdir())

    def check(**environment: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-m", "spoakit.cli.iprep", "--check", "--config", "iprep.toml"],
            cwd=tmp_path,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=30,
        )

    ended = check()
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout == "source mine: list.txt ok: 10 bytes\n"
    ended = check(AUDIT="none/audit.log")
    assert (ended.returncode, ended.stdout) == (64, "")
    assert ended.stderr.startswith("ERROR: audit.path: 'none/audit.log' cannot be written: ")
    with config.open("a") as file:
        file.write('[[source]]\nname = "f"\ntype = "list"\nurl = "http://name.invalid/"\n')
    ended = check()
    assert ended.returncode == 1
    assert ended.stdout.splitlines()[1].startswith("source f: http://name.invalid/ failed: it ")
    assert sorted(tmp_path.iterdir()) == before


def test_without_a_file_there_is_nothing_to_check(capsys: pytest.CaptureFixture[str]) -> None:
    assert iprep.main(["--check"]) == 64
    assert capsys.readouterr().err == "ERROR: --check needs --config\n"
