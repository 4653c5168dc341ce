import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from ipaddress import ip_network
from pathlib import Path
from threading import Event, Thread

import pytest

import spoakit
from spoakit.agent import Agent
from spoakit.apps.mirror.config.settings import (
    LogSettings,
    MirrorSettings,
    PoolSettings,
    Rewrite,
    Selection,
    TargetSettings,
    TlsSettings,
)
from spoakit.apps.mirror.url import TargetURL
from spoakit.cli import common_options, mirror
from spoakit.exceptions import ConfigurationError
from spoakit.server import Drain, Hooks, ListenTls, Logfile, ServerSettings, TcpAddress, UnixAddress
from spoakit.server.reloadable_settings import ReloadableSettings
from spoakit.testing import EngineClient
from tests.support.certificates import make_authority, make_certificate
from tests.support.ports import free_port
from tests.support.processes import children_of
from tests.support.waiting import wait_until

USAGE = """
Usage: spoa-mirror { -h --help }
       spoa-mirror { -V --version }
       spoa-mirror { -r --runtime=TIME } [OPTION]...

For help type: spoa-mirror -h

"""


def test_the_help_is_that_of_the_c_program_and_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    assert mirror.main(["-h"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(USAGE.removesuffix("For help type: spoa-mirror -h\n\n"))
    for line in (
        '  -a, --address=NAME              Specify the address to listen on (default: "0.0.0.0").',
        "  -b, --connection-backlog=VALUE  Specify the connection backlog size (default: 1024).",
        "  -D, --daemonize                 Run this program as a daemon.",
        "  -F, --pidfile=FILE              Specifies a file to write the process-id to.",
        "  -l, --logfile=[MODE:]FILE       Log all messages to logfile (default: stdout/stderr).",
        "  -p, --port=VALUE                Specify the port to listen on (default: 12345).",
        "  -I, --mirror-interface=NAME     Specify the interface/address for outgoing connections.",
        "      --config=FILE               Read the targets from a TOML file, instead of -u.",
        "Supported capabilities: fragmentation, pipelining, async.  The first two are",
        "in any other unit if the number is suffixed by a unit (us, ms, s, m, h, d).",
    ):
        assert f"{line}\n" in shown
    assert max(map(len, shown.splitlines())) <= 100


def test_the_version_tells_the_form(capsys: pytest.CaptureFixture[str]) -> None:
    assert mirror.main(["--version"]) == 0
    shown = capsys.readouterr().out
    assert re.fullmatch(rf"\nspoa-mirror v{spoakit.__version__} \(.*compiled.*\)\n\n", shown)


NO_RUNTIME = "runtime value not set: give -r, with 0 for unlimited"


@pytest.mark.parametrize(
    ("arguments", "errors"),
    [
        ([], [NO_RUNTIME]),
        (["-u", "http://h/"], [NO_RUNTIME]),
        (["-r0", "-p0"], ["invalid port '0' (--port: allowed range [1, 65535])"]),
        (
            ["-r0", "-n1001"],
            ["invalid num workers '1001' (--num-workers: allowed range [1, 1000])"],
        ),
        (
            ["-r0", "-b-1"],
            ["invalid connection backlog '-1' (--connection-backlog: allowed range [1, 65535])"],
        ),
        (
            ["-r0", "-m511"],
            ["invalid max frame size '511' (--max-frame-size: allowed range [512, 268435456])"],
        ),
        (
            ["-r8d"],
            ["invalid runtime '8d' (--runtime: allowed range [0, 604800.00s])"],
        ),
        (
            ["-r0", "-i999"],
            [
                "invalid monitor interval '999' "
                "(--monitor-interval: allowed range [1.00s, 3600.00s])"
            ],
        ),
        (
            ["-r0", "-t", "2s"],
            ["invalid processing delay '2s' (--processing-delay: allowed range [0, 1.00s])"],
        ),
        (
            ["-r0", "-ufoo"],
            ["--mirror-url: invalid mirror URL 'foo': it does not start with http:// or https://"],
        ),
        (["-r0", "-lx:file"], ["--logfile: invalid logfile mode 'x' (allowed: a, w, A, W)"]),
        (["-r0", "-lw:"], ["--logfile: must be a path, got an empty one"]),
        (["-r0", "-Z"], ["unrecognized arguments: -Z"]),
        (["-r0", "--bogus"], ["unrecognized arguments: --bogus"]),
        (["-r0", "stray"], ["unrecognized arguments: stray"]),
        (
            ["-r0", "http://me:secret@h"],
            ["unrecognized arguments: http://***@h"],
        ),
        (
            ["-r0", "--mirror=http://me:secret@h"],
            [
                "ambiguous option: --mirror=http://***@h could match --mirror-url, "
                "--mirror-interface, --mirror-local-port"
            ],
        ),
        (
            ["-r0", "-u", "http://me:sec/ret@h"],
            [
                "--mirror-url: invalid mirror URL 'http://***@h': its host or its port (1 to "
                "65535) is malformed"
            ],
        ),
        (["-r0", "-a", ""], ["--address: the value is empty"]),
        (["-r"], ["argument -r/--runtime: expected one argument"]),
        (
            ["-p0", "-n0", "-cfoo"],
            [
                "invalid capability 'foo' (--capability: allowed: fragmentation, pipelining, "
                "async, and no- before any of them)",
                "invalid num workers '0' (--num-workers: allowed range [1, 1000])",
                "invalid port '0' (--port: allowed range [1, 65535])",
                NO_RUNTIME,
            ],
        ),
        (
            ["-p0", "-Z"],
            [
                "unrecognized arguments: -Z",
                "invalid port '0' (--port: allowed range [1, 65535])",
                NO_RUNTIME,
            ],
        ),
        (
            ["-r0", "-Bfoo"],
            [
                "invalid libev backend 'foo' (--libev-backend: allowed: auto, uvloop, asyncio, "
                "select, poll, epoll, linuxaio)"
            ],
        ),
    ],
)
def test_all_that_is_wrong_is_named_and_the_exit_code_is_64(
    arguments: list[str], errors: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        mirror.main(arguments)
    assert caught.value.code == 64
    shown = capsys.readouterr()
    found = [line.removeprefix("ERROR: ") for line in shown.err.splitlines() if "ERROR: " in line]
    assert found == errors
    assert shown.out == USAGE


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["-r0", "--tls-ca=x"], "--tls-ca 'x': --tls-cert is missing"),
        (
            ["-r0", "-uhttp://me:secret@h", "-uhttp://me:other@h"],
            "--mirror-url: http://h/ is given twice; in a file (--config), two targets with names "
            "of their own may have one URL",
        ),
        (["-r0", "--watch"], "--watch: there is nothing to watch without --config"),
        (
            ["-r0", "--config=m.toml", "-uhttp://h/"],
            "--mirror-url: with --config, 'm.toml' is where targets are described",
        ),
        (
            ["-r0", "--config=m.toml", "--insecure"],
            "--insecure: with --config, 'm.toml' is where targets are described",
        ),
        (
            ["-r0", "--config=/absent/m.toml"],
            "/absent/m.toml: No such file or directory",
        ),
        (
            ["-r0", "--tls-cert=/absent/c.pem"],
            "tls certificate /absent/c.pem: No such file or directory",
        ),
    ],
)
def test_what_does_not_go_together_is_named_without_a_usage_block(
    arguments: list[str], error: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert mirror.main(arguments) == 64
    shown = capsys.readouterr()
    errors = [line for line in shown.err.splitlines() if " WARNING spoakit.mirror: " not in line]
    assert (errors, shown.out) == ([f"ERROR: {error}"], "")


class Given:
    """What the program runs with, instead of running."""

    settings: ServerSettings
    live: ReloadableSettings[MirrorSettings]
    hooks: Hooks

    @property
    def mirror(self) -> MirrorSettings:
        return self.live.current

    @property
    def target(self) -> TargetSettings:
        [target] = self.mirror.targets
        return target


Run = Callable[[str], Given]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    given = Given()

    def pretend(agents: Sequence[Agent], settings: ServerSettings, hooks: Hooks) -> int:
        assert [agent.name for agent in agents] == ["mirror"]
        given.settings, given.hooks = settings, hooks
        return 0

    def create(live: ReloadableSettings[MirrorSettings]) -> Agent:
        given.live = live
        return Agent("mirror")

    def configure(level: str, format: str) -> None:
        pass

    monkeypatch.setattr(mirror, "run", pretend)
    monkeypatch.setattr(mirror, "create_agent", create)
    monkeypatch.setattr(common_options, "configure_logging", configure)
    monkeypatch.setattr(common_options, "begin_logfile", lambda settings: None)

    def run(arguments: str) -> Given:
        assert mirror.main(arguments.split()) == 0
        return given

    return run


def test_the_defaults(run: Run) -> None:
    given = run("-r0 -uhttp://h/")
    assert given.settings == ServerSettings(
        workers=given.settings.workers, drain=Drain(resources=10.0)
    )
    assert given.settings.listen.backlog == 1024
    assert given.settings.capabilities == ("fragmentation", "pipelining")
    assert 1 <= given.settings.workers <= (os.cpu_count() or 1)
    assert given.mirror == MirrorSettings((TargetSettings(TargetURL.parse("http://h/")),))
    assert run("-r0").mirror == MirrorSettings()


SHORT = (
    "-r {0} -u {1} -a {2} -p {3} -n {4} -b {5} -m {6} -c {7} -F {8} -i {9} -l {10} -t {11} "
    "-I {12} -P {13} -B {14} -D"
)
LONG = (
    "--runtime {0} --mirror-url {1} --address {2} --port {3} --num-workers {4} "
    "--connection-backlog {5} --max-frame-size {6} --capability {7} --pidfile {8} "
    "--monitor-interval {9} --logfile {10} --processing-delay {11} --mirror-interface {12} "
    "--mirror-local-port {13} --libev-backend {14} --daemonize"
)
VALUES = (
    *("500ms", "http://h/", "::1", "1", "2", "3", "2097152", "async", "a.pid", "2s"),
    *("W:a.log", "250", "eth0", "40000-40999", "POLL"),
)


@pytest.mark.parametrize(
    "form",
    [
        SHORT,
        SHORT.replace(" {", "{"),
        LONG,
        LONG.replace(" {", "={"),
        LONG.replace("--libev-backend", "--event-backend"),
        SHORT.replace("-D", "").replace("-r {0}", "-Dr{0}"),
    ],
)
def test_values_may_be_attached_or_separate(run: Run, form: str) -> None:
    given = run(form.format(*VALUES))
    settings = given.settings
    assert settings.runtime == 0.5
    assert settings.listen.addresses == (TcpAddress("::1", 1),)
    assert (settings.workers, settings.listen.backlog) == (2, 3)
    assert settings.limits.frame_size == 2097152
    assert settings.capabilities == ("fragmentation", "pipelining", "async")
    assert (settings.pidfile, settings.monitor) == ("a.pid", 2.0)
    assert settings.logfile == Logfile("a.log", truncate=True, line_buffered=True)
    assert settings.loop == "poll"
    assert settings.daemonize
    assert given.mirror.processing_delay == 0.25
    assert given.target.pool == PoolSettings(interface="eth0", local_ports=(40000, 40999))


def test_the_line_of_the_c_projects_program_section_works(run: Run) -> None:
    given = run("-d511 -r0 -uhttp://localhost:8100/ -lw:_log-spoa-mirror")
    assert given.settings.logfile == Logfile("_log-spoa-mirror", truncate=True)
    assert str(given.target.url) == "http://localhost:8100/"


@pytest.mark.parametrize(
    ("switches", "announced"),
    [
        ("", ("fragmentation", "pipelining")),
        ("-cno-pipelining", ("fragmentation",)),
        ("-c !fragmentation -c async", ("pipelining", "async")),
        ("-c NO-PIPELINING -c Pipelining", ("fragmentation", "pipelining")),
        ("-casync -casync -c no-async", ("fragmentation", "pipelining")),
    ],
)
def test_capabilities_are_switched_on_and_off(
    run: Run, switches: str, announced: tuple[str, ...]
) -> None:
    assert run(f"-r0 {switches}").settings.capabilities == announced


def test_what_is_said_of_targets_holds_for_each(run: Run) -> None:
    given = run(
        "-r0 -uhttp://one/ -u https://two/base --http=2 --insecure --truncated=mark "
        "--truncated-suspect=skip --sample=0.5 --host=target --marker=X-Mirrored -Ilo -P1000"
    )
    one = TargetSettings(
        TargetURL.parse("http://one/"),
        http="2",
        selection=Selection(sample=0.5),
        rewrite=Rewrite(
            host="target",
            marker=("X-Mirrored", "1"),
            truncated="mark",
            truncated_suspect="skip",
        ),
        pool=PoolSettings(interface="lo", local_ports=(1000, 1000)),
        tls=TlsSettings(verify=False),
    )
    assert given.mirror.targets == (
        one,
        replace(one, url=TargetURL.parse("https://two/base"), name=""),
    )


def test_the_log_the_listening_socket_and_the_end(run: Run) -> None:
    given = run(
        "-r0 -uhttp://h/ --log-format=json --log-sample=10 --quiet --unix=/run/m.sock "
        "--allow=192.0.2.0/24 --allow=::1 --tls-cert=c --tls-key=k --tls-ca=a "
        "--drain=3s --drain-checks=500ms --max-messages=7 --access-log=/dev/null"
    )
    assert given.mirror.log == LogSettings("json", 10.0, quiet=True, path="/dev/null")
    assert given.mirror.drain == 3.0
    assert given.settings.drain == Drain(3.0, 0.5, resources=3.0)
    assert given.settings.limits.messages == 7
    assert given.settings.listen.addresses == (UnixAddress("/run/m.sock"),)
    assert given.settings.listen.allow == (ip_network("192.0.2.0/24"), ip_network("::1"))
    assert given.settings.listen.tls == ListenTls("c", "k", "a")


def test_a_configuration_file_is_read_again_and_options_prevail(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = TargetSettings(TargetURL.parse("http://one/"))
    files = [MirrorSettings(drain=1.0), MirrorSettings((one,), drain=1.0)]
    monkeypatch.setattr(mirror, "read_config", lambda path: files.pop(0))
    given = run("-r0 --config=m.toml --watch --quiet")
    assert given.settings.watch == "m.toml"
    assert given.mirror == MirrorSettings(drain=1.0, log=LogSettings(quiet=True))
    given.hooks.reload()
    assert given.mirror == MirrorSettings((one,), 1.0, log=LogSettings(quiet=True))


def test_a_file_that_went_wrong_leaves_the_settings(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror, "read_config", lambda path: MirrorSettings(drain=1.0))
    given = run("-r0 --config=m.toml")

    def refuse(path: str) -> MirrorSettings:
        raise ConfigurationError("m.toml: line 1")

    monkeypatch.setattr(mirror, "read_config", refuse)
    with pytest.raises(ConfigurationError, match="line 1"):
        given.hooks.reload()
    assert given.mirror.drain == 1.0


def serve_once(server: socket.socket, received: list[bytes]) -> None:
    """Answer one request."""
    connection, _ = server.accept()
    with connection:
        received.append(connection.recv(65536))
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        connection.recv(1)


@contextmanager
def start(*arguments: str) -> "Iterator[subprocess.Popen[str]]":
    """Run it; whatever happens to the test, it ends."""
    with subprocess.Popen(
        [sys.executable, "-m", "spoakit.cli.mirror", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(spoakit.__file__).parent.parent)},
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def test_it_copies_a_request_and_logs_it() -> None:
    port = free_port()
    received: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(10)
        url = f"http://127.0.0.1:{server.getsockname()[1]}/"
        answering = Thread(target=serve_once, args=(server, received))
        answering.start()
        with start("-r0", "-a127.0.0.1", f"-p{port}", f"-u{url}", "-n2") as process:
            assert process.stderr is not None
            assert process.stdout is not None
            assert any("listening on" in line for line in process.stderr)
            with EngineClient(port=port) as engine:
                engine.hello()
                engine.call(
                    "mirror",
                    arg_method="GET",
                    arg_path="/a",
                    arg_ver="1.1",
                    arg_hdrs=b"\4host\1h\0\0",
                    arg_body=b"",
                )
            process.send_signal(signal.SIGTERM)
            out, err = process.communicate(timeout=20)
            assert process.returncode == 0, err
        answering.join(10)
    assert received == [b"GET /a HTTP/1.1\r\nhost: h\r\n\r\n"]
    line = rf'\[ ?\d+\]\[ *\d+\.\d{{6}}\] "GET {url}a HTTP/1.1" 200 0/2 \d+\.\d{{3}} ok\n'
    assert re.fullmatch(line, out), err


def test_it_ends_after_its_runtime_and_says_what_it_lacks() -> None:
    with start("-r100", "-a127.0.0.1", f"-p{free_port()}", "-n1") as process:
        _, err = process.communicate(timeout=20)
        assert process.returncode == 0
    assert "without a URL (-u) requests are acknowledged and not mirrored" in err
    assert "the runtime is over" in err


def stop(process: "subprocess.Popen[str]") -> str:
    """End it, and return what it has written to standard error."""
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 0, err
    return err


def send(port: int, path: str) -> None:
    """Send a request of this path to the mirror."""
    with EngineClient(port=port) as engine:
        engine.hello()
        engine.call(
            "mirror",
            arg_method="GET",
            arg_path=path,
            arg_ver="1.1",
            arg_hdrs=b"\4host\1h\0\0",
            arg_body=b"",
        )


def send_until(port: int, ended: Event) -> None:
    while not ended.is_set():
        send(port, "/")


class Recorder:
    """A target that keeps the paths it is asked for."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/"
        self.paths: list[str] = []
        self._thread = Thread(target=self._accept, daemon=True)
        self._thread.start()

    def _accept(self) -> None:
        try:
            while True:
                connection, _ = self._listener.accept()
                Thread(target=self._serve, args=(connection,), daemon=True).start()
        except OSError:
            pass

    def _serve(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as stream:
            while line := stream.readline():
                self.paths.append(line.split()[1].decode())
                while stream.readline() != b"\r\n":
                    pass
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(10)


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


@contextmanager
def serve(folder: Path, text: str, *options: str) -> "Iterator[Service]":
    """Run one with this configuration file and its log in a folder."""
    (folder / "mirror.toml").write_text(text)
    port = free_port()
    listening = ("-r0", "-a127.0.0.1", f"-p{port}", f"--config={folder / 'mirror.toml'}")
    with start(*listening, f"-l{folder / 'mirror.log'}", *options) as process:
        service = Service(process, port, folder / "mirror.log")
        service.wait_for_log("listening on")
        yield service
        stop(process)


@dataclass
class Service:
    process: "subprocess.Popen[str]"
    port: int
    file: Path

    @property
    def log(self) -> str:
        return self.file.read_text() if self.file.exists() else ""

    def wait_for_log(self, text: str, count: int = 1) -> None:
        wait_until(lambda: self.log.count(text) >= count)


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
    assert "takes a restart" not in service.log
    assert [line.split("] ")[1].split(" HTTP")[0] for line in lines("a")] == [f'"GET {target.url}1']
    assert [json.loads(line)["url"] for line in lines("b")[:2]] == [
        f"{target.url}{path}" for path in (2, 3)
    ]
    assert {line.split("] ")[1].split(" HTTP")[0] for line in lines("b")[2:]} == {
        f'"{target.url}" "GET {target.url}4',
        f'"two" "GET {target.url}4',
    }
    target.close()


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


def test_it_serves_tls(tmp_path: Path) -> None:
    pem = make_certificate(tmp_path, "agent", make_authority(tmp_path))
    port = free_port()
    with start("-r0", "-a127.0.0.1", f"-p{port}", f"--tls-cert={pem.both}", "-n2") as process:
        assert process.stderr is not None
        assert any("listening on" in line for line in process.stderr)
        with (
            socket.create_connection(("127.0.0.1", port), 10) as plain,
            ssl.create_default_context(cafile=tmp_path / "authority.crt").wrap_socket(
                plain, server_hostname="127.0.0.1"
            ) as engine,
        ):
            assert engine.version() == "TLSv1.3"
        stop(process)


def uses_linux_aio(pid: int) -> bool:
    """Return whether strace sees a process submit asynchronous polls within a second."""
    seen = subprocess.run(
        ["timeout", "1", "strace", "-f", "-e", "trace=io_submit,io_getevents", "-p", str(pid)],
        capture_output=True,
        text=True,
        check=False,
    ).stderr
    if "Operation not permitted" in seen or "ptrace" in seen:
        pytest.skip("strace may not attach here")
    return "io_submit(" in seen and "IOCB_CMD_POLL" in seen and "io_getevents(" in seen


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_linuxaio_is_really_that() -> None:
    target = Recorder()
    port = free_port()
    url = f"http://127.0.0.1:{target.port}/"
    with start("-r0", "-a127.0.0.1", f"-p{port}", f"-u{url}", "-Blinuxaio", "-n1") as process:
        assert process.stderr is not None
        lines: list[str] = []
        for line in process.stderr:
            lines.append(line)
            if "listening on" in line:
                break
        if any("refuses linuxaio" in line for line in lines):
            pytest.skip(lines[0])
        assert "(1 worker, linuxaio, " in lines[-1]
        ended = Event()
        sending = Thread(target=send_until, args=(port, ended))
        sending.start()
        try:
            [worker] = children_of(process.pid)
            assert uses_linux_aio(worker)
        finally:
            ended.set()
            sending.join()
        wait_until(lambda: bool(target.paths))
        stop(process)
    target.close()


def test_the_logfile_has_everything_from_the_first_line_on(tmp_path: Path) -> None:
    file = tmp_path / "b.log"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with start("-r0", "-D", "-a127.0.0.1", f"-p{port}", f"-lA:{file}") as process:
            out, err = process.communicate(timeout=20)
            assert process.returncode == 1
    reason = f"cannot start: cannot listen on 127.0.0.1 port {port}: Address already in use"
    assert (out, err) == ("", f"ERROR: {reason}\n")
    begin, warning, error = file.read_text().splitlines()
    assert "--- start" in begin
    assert warning.endswith("without a URL (-u) requests are acknowledged and not mirrored")
    assert error.endswith(reason)


def test_a_logfile_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with start("-r0", f"-l{tmp_path}/absent/b.log") as process:
        _, err = process.communicate(timeout=20)
        assert process.returncode == 1
    assert err == f"ERROR: logfile {tmp_path}/absent/b.log: No such file or directory\n"


# --check


@pytest.fixture
def listening() -> Iterator[int]:
    """Port of a socket that takes connections, and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


@pytest.fixture
def _does_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*arguments: object) -> int:
        raise AssertionError("--check must not run anything")

    monkeypatch.setattr(mirror, "run", run)


def check(*arguments: str) -> int:
    return mirror.main(["--check", *arguments])


@pytest.mark.usefixtures("_does_not_run")
def test_a_check_shows_each_target_and_binds_nothing(
    listening: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"http://127.0.0.1:{listening}"
    log = tmp_path / "mirror.log"
    # Its own port is that of the target, and neither that nor -r are needed.
    assert check("-u", url, "-u", f"{url}/b", f"-p{listening}", "-a127.0.0.1", f"-l{log}") == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    assert not log.exists()
    for line, base in zip(shown.out.splitlines(), ("", "/b"), strict=True):
        assert re.fullmatch(rf"target {url}{base} ok: 127\.0\.0\.1, http/1\.1, \d+ ms", line)


@pytest.mark.usefixtures("_does_not_run")
def test_a_check_ends_with_1_if_one_target_is_not_reached(
    listening: int, capsys: pytest.CaptureFixture[str]
) -> None:
    dead, well = f"http://127.0.0.1:{free_port()}", f"http://me:secret@127.0.0.1:{listening}"
    assert check("-r0", "-u", dead, "-u", well) == 1
    shown = capsys.readouterr()
    first, second = shown.out.splitlines()
    assert re.fullmatch(rf"target {dead} failed: .*efused \(is it running, .*\)", first)
    assert second.startswith(f"target http://127.0.0.1:{listening} ok: ")
    assert "secret" not in shown.out + shown.err


@pytest.mark.usefixtures("_does_not_run")
@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--config=/absent/m.toml"], "/absent/m.toml: No such file or directory"),
        (["-uhttp://h", "-l/absent/a.log"], "--logfile: '/absent/a.log' cannot be written: there"),
        (["-uhttp://h", "-F/absent/a.pid"], "--pidfile: '/absent/a.pid' cannot be written: there"),
        (["-uhttp://h", "--tls-cert=/absent.pem"], "tls certificate /absent.pem: No such file"),
        (["-uhttp://h", "--watch"], "--watch: there is nothing to watch without --config"),
    ],
)
def test_a_check_of_a_wrong_configuration_ends_with_64(
    arguments: list[str], error: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check(*arguments) == 64
    assert capsys.readouterr().err.startswith(f"ERROR: {error}")


@pytest.mark.usefixtures("_does_not_run")
@pytest.mark.parametrize(
    ("keys", "error"),
    [
        ("tls.ca-file = 'none.pem'", "none.pem' cannot be read"),
        ("tls.ca-file = 'm.toml'", "tls ca-file: "),
        ("tls.certificate = 'm.toml'", "tls certificate: "),
        ("sample = 101", "target[1].sample: 101.0 is not in the range"),
        ("interface = '${NO_INTERFACE}'", "target[1].interface: the variable NO_INTERFACE is not"),
    ],
)
def test_a_check_of_a_wrong_file_ends_with_64(
    keys: str, error: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "m.toml"
    file.write_text(f"[[target]]\nurl = 'https://h'\n{keys}\n")
    assert check("--config", str(file)) == 64
    assert error in capsys.readouterr().err


def test_a_check_without_targets_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert check() == 0
    assert "no target" in capsys.readouterr().out


def test_a_check_is_a_command_that_ends(listening: int, tmp_path: Path) -> None:
    authority = make_authority(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(make_certificate(tmp_path, "server", authority).both)
    port = free_port()

    def shake_hands(listener: socket.socket) -> None:
        for _ in range(2):
            accepted, _ = listener.accept()
            with (
                accepted,
                suppress(OSError),
                context.wrap_socket(accepted, server_side=True) as tls,
            ):
                tls.recv(1)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        secure = listener.getsockname()[1]
        thread = Thread(target=shake_hands, args=(listener,))
        thread.start()
        (tmp_path / "mirror.toml").write_text(
            f"""
            defaults.timeouts.connect = "${{CONNECT:-1s}}"
            [[target]]
            name = "plain"
            url = "http://${{HOST}}:{listening}"
            [[target]]
            name = "old"
            url = "http://${{HOST}}:{listening}"
            http = "2"
            [[target]]
            name = "dead"
            url = "http://${{HOST}}:{port}"
            [[target]]
            name = "unknown"
            url = "http://name.invalid"
            [[target]]
            name = "strange"
            url = "https://${{HOST}}:{secure}"
            [[target]]
            name = "trusted"
            url = "https://${{HOST}}:{secure}/base"
            tls.ca-file = "{authority.certificate.name}"
            """
        )
        ended = subprocess.run(
            [sys.executable, "-m", "spoakit.cli.mirror", "--check", "--config", "mirror.toml"],
            cwd=tmp_path,
            env={**os.environ, "HOST": "127.0.0.1"},
            capture_output=True,
            text=True,
            timeout=30,
        )
        thread.join(10)
    assert (ended.returncode, ended.stderr) == (1, "")
    patterns = (
        rf"plain: http://127\.0\.0\.1:{listening} ok: 127\.0\.0\.1, http/1\.1, \d+ ms",
        rf"old: http://127\.0\.0\.1:{listening} failed: no SETTINGS within 1 s: .*http = .*",
        rf"dead: http://127\.0\.0\.1:{port} failed: .*refused.*",
        r"unknown: http://name\.invalid failed: .*check the name.*",
        rf"strange: https://127\.0\.0\.1:{secure} failed: .*verify failed.*tls\.ca-file.*",
        rf"trusted: https://127\.0\.0\.1:{secure}/base ok: 127\.0\.0\.1, TLSv1\.3, http.*",
    )
    for line, pattern in zip(ended.stdout.splitlines(), patterns, strict=True):
        assert re.fullmatch(f"target {pattern}", line)
