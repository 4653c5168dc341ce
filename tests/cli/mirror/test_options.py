"""Options of spoa-mirror, in and settings out."""

import os
import re
from collections.abc import Callable, Sequence
from ipaddress import ip_network

import pytest
from msgspec import structs

import spoakit
from spoakit.agent import Agent
from spoakit.apps.mirror.config.schema import (
    LogSettings,
    MirrorSettings,
    TargetSettings,
    TlsSettings,
)
from spoakit.apps.mirror.url import TargetURL
from spoakit.cli import common_options, mirror
from spoakit.exceptions import ConfigurationError
from spoakit.server import Drain, Hooks, ListenTls, Logfile, ServerSettings, TcpAddress, UnixAddress
from spoakit.server.reloadable_settings import ReloadableSettings

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
        (["-r0", "-a", ""], ["--address: the value must not be empty"]),
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
        (["-r0", "--tls-ca=x"], "--tls-ca 'x' needs --tls-cert"),
        (
            ["-r0", "-uhttp://me:secret@h", "-uhttp://me:other@h"],
            "--mirror-url: http://h/ is given twice; in a file (--config), two targets with "
            "different names may have one URL",
        ),
        (["-r0", "--watch"], "--watch needs --config"),
        (
            ["-r0", "--config=m.toml", "-uhttp://h/"],
            "--mirror-url: with --config, set this in 'm.toml'",
        ),
        (
            ["-r0", "--config=m.toml", "--insecure"],
            "--insecure: with --config, set this in 'm.toml'",
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
    assert given.target.interface == "eth0"
    assert given.target.local_ports == (40000, 40999)


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
        sample=0.5,
        host="target",
        marker=("X-Mirrored", "1"),
        truncated="mark",
        truncated_suspect="skip",
        interface="lo",
        local_ports=(1000, 1000),
        tls=TlsSettings(verify=False),
    )
    assert given.mirror.targets == (
        one,
        structs.replace(one, url=TargetURL.parse("https://two/base"), name=""),
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
