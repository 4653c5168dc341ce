"""spoa-mirror check: each target is tried, and nothing is bound."""

import os
import re
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from threading import Thread

import pytest

from spoakit.cli import mirror
from tests.support.certificates import make_authority, make_certificate
from tests.support.ports import free_port

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
        (["-uhttp://h", "--watch"], "--watch needs --config"),
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
