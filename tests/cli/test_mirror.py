import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from threading import Thread

import pytest

import spoakit
from spoakit.agent import Agent
from spoakit.cli import mirror
from spoakit.exceptions import ConfigurationError
from spoakit.server import ServerSettings
from spoakit.testing import EngineClient

USAGE = """
Usage: spoa-mirror { -h --help }
       spoa-mirror { -V --version }
       spoa-mirror { -r --runtime=TIME } [OPTION]...

For help type: spoa-mirror -h

"""


def test_the_help_is_that_of_the_c_program(capsys: pytest.CaptureFixture[str]) -> None:
    assert mirror.main(["-h"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(USAGE.removesuffix("For help type: spoa-mirror -h\n\n"))
    for line in (
        '  -a, --address=NAME              Specify the address to listen on (default: "0.0.0.0").',
        "  -b, --connection-backlog=VALUE  Specify the connection backlog size (default: 1024).",
        "  -p, --port=VALUE                Specify the port to listen on (default: 12345).",
        "  -u, --mirror-url=URL            Specify the URL for the HTTP mirroring.",
        "in any other unit if the number is suffixed by a unit (us, ms, s, m, h, d).",
    ):
        assert f"{line}\n" in shown


def test_the_version_tells_the_form(capsys: pytest.CaptureFixture[str]) -> None:
    assert mirror.main(["--version"]) == 0
    shown = capsys.readouterr().out
    assert re.fullmatch(rf"\nspoa-mirror v{spoakit.__version__} \(.*compiled.*\)\n\n", shown)


@pytest.mark.parametrize(
    ("arguments", "errors"),
    [
        ([], ["runtime value not set"]),
        (["-u", "http://h/"], ["runtime value not set"]),
        (["-r0", "-p0"], ["invalid port '0'"]),
        (["-r0", "-p", "99999"], ["invalid port '99999'"]),
        (["-r0", "--port=x"], ["invalid port 'x'"]),
        (["-r0", "-n0"], ["invalid number of workers '0'"]),
        (["-r0", "-n", "1001"], ["invalid number of workers '1001'"]),
        (["-r0", "-b-1"], ["invalid connection backlog '-1'"]),
        (["-r0", "-m511"], ["max-frame-size cannot be less than 512"]),
        (["-r0", "-mx"], ["invalid max-frame-size 'x'"]),
        (["-r0", "-c", "foo"], ["unsupported capability 'foo'"]),
        (["-rabc"], ["invalid time format: 'abc'"]),
        (["-r-1"], ["wrong amount of time (allowed range [0, 604800.00s]): '-1'"]),
        (["-r8d"], ["wrong amount of time (allowed range [0, 604800.00s]): '8d'"]),
        (
            ["-r0", "-ufoo"],
            ["invalid mirror URL 'foo': it does not start with http:// or https://"],
        ),
        (["-r0", "-Z"], ["unrecognized arguments: -Z"]),
        (["-r0", "--bogus"], ["unrecognized arguments: --bogus"]),
        (["-r0", "stray"], ["unrecognized arguments: stray"]),
        (["-r0", "-a", ""], ["invalid address ''"]),
        (["-r"], ["argument -r/--runtime: expected one argument"]),
        (
            ["-r0", "-p0", "-n0", "-cfoo"],
            ["unsupported capability 'foo'", "invalid number of workers '0'", "invalid port '0'"],
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
    assert shown.err.splitlines() == [f"ERROR: {error}" for error in errors]
    assert shown.out == USAGE


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> list[ServerSettings]:
    """The settings that the program runs with, instead of running."""
    given: list[ServerSettings] = []

    def run(agents: Sequence[Agent], settings: ServerSettings) -> int:
        assert [agent.name for agent in agents] == ["mirror"]
        given.append(settings)
        return 0

    monkeypatch.setattr(mirror, "run", run)
    monkeypatch.setattr(mirror, "configure_logging", lambda: None)
    return given


def test_the_defaults(given: list[ServerSettings]) -> None:
    assert mirror.main(["-r0"]) == 0
    [settings] = given
    assert (settings.listen.address, settings.listen.port) == ("0.0.0.0", 12345)
    assert settings.listen.backlog == 1024
    assert settings.limits.frame_size == 0
    assert settings.runtime is None
    assert 1 <= settings.workers <= (os.cpu_count() or 1)
    assert settings.capabilities == ("fragmentation", "pipelining")


@pytest.mark.parametrize(
    "arguments",
    [
        "-r500 -u http://h/ -a ::1 -p 1 -n 2 -b 3 -m 2097152 -c async -c pipelining",
        "-r500 -uhttp://h/ -a::1 -p1 -n2 -b3 -m2097152 -casync -casync",
        "--runtime=500ms --mirror-url=http://h/ --address=::1 --port=1 --num-workers=2 "
        "--connection-backlog=3 --max-frame-size=2097152 --capability=async",
        "--runtime 0.5s --mirror-url http://h/ --address ::1 --port 1 --num-workers 2 "
        "--connection-backlog 3 --max-frame-size 2097152 --capability async",
    ],
)
def test_values_may_be_attached_or_separate(given: list[ServerSettings], arguments: str) -> None:
    assert mirror.main(arguments.split()) == 0
    [settings] = given
    assert settings.runtime == 0.5
    assert (settings.listen.address, settings.listen.port) == ("::1", 1)
    assert (settings.workers, settings.listen.backlog) == (2, 3)
    assert settings.limits.frame_size == 2097152
    assert settings.capabilities == ("fragmentation", "pipelining", "async")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0),
        ("250us", 0.00025),
        ("5", 0.005),
        ("5ms", 0.005),
        ("2s", 2),
        ("1.5m", 90),
        ("2h", 7200),
        ("7d", 604800),
    ],
)
def test_times_have_units(text: str, seconds: float) -> None:
    assert mirror.parse_time(text, 604800) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "s", "1 s", "1w", "1e3", "0x1", "\u0661", "1s\n", "nan"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match="invalid time format"):
        mirror.parse_time(text, 10)


def serve_once(server: socket.socket, received: list[bytes]) -> None:
    """Answer one request."""
    connection, _ = server.accept()
    with connection:
        received.append(connection.recv(65536))
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        connection.recv(1)


def start(*arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "spoakit.cli.mirror", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(spoakit.__file__).parent.parent)},
    )


def test_it_copies_a_request_and_logs_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
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
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with start("-r100", "-a127.0.0.1", f"-p{port}", "-n1") as process:
        _, err = process.communicate(timeout=20)
        assert process.returncode == 0
    assert "without a URL (-u) requests are acknowledged and not mirrored" in err
    assert "the runtime is over" in err
