import os
import signal
import subprocess
import sys
from ipaddress import IPv6Address
from pathlib import Path

import pytest

import spoakit
from spoakit.cli import iprep
from spoakit.server import ServerSettings
from spoakit.spop import DataType
from spoakit.testing import EngineClient


def test_the_help_is_that_of_the_c_program(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        iprep.main(["-h"])
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    for line in (
        "    -h                  Print this message\n",
        "    -d                  Enable the debug mode",
        "    -p <port>           Specify the port to listen on (default: 12345)\n",
        "    -n <num-workers>    Specify the number of workers (default: 5)\n",
        "Note: A worker is a process.\n",
    ):
        assert line in shown


def test_it_tells_its_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        iprep.main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out.startswith(f"spoa-iprep v{spoakit.__version__} (")


def test_the_defaults_are_those_of_the_c_program(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[ServerSettings] = []

    def run(agents: object, settings: ServerSettings) -> int:
        given.append(settings)
        return 0

    monkeypatch.setattr(iprep, "run", run)
    monkeypatch.setattr(iprep, "configure_logging", lambda debug: None)
    assert iprep.main([]) == 0
    assert (given[0].listen.address, given[0].listen.port) == ("0.0.0.0", 12345)
    assert given[0].workers == 5


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["-p", "70000"], "ERROR: port: 70000 is not in the range 0 to 65535"),
        (["-p", "x"], "ERROR: argument -p: invalid int value: 'x'"),
        (["-n", "0"], "ERROR: workers: 0 is not in the range 1 to 1024"),
        (["-x"], "ERROR: unrecognized arguments: -x"),
    ],
)
def test_a_wrong_option_is_named_and_ends_with_64(
    arguments: list[str], error: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        iprep.main(arguments)
    assert caught.value.code == 64
    assert capsys.readouterr().err.startswith(error)


def test_it_scores_addresses_and_shows_frames_in_debug_mode() -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "spoakit.cli.iprep", "-d", "-a", "127.0.0.1", "-p0", "-n2"],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(spoakit.__file__).parent.parent)},
    ) as process:
        assert process.stderr is not None
        port = 0
        for line in process.stderr:
            if "listening on 127.0.0.1:" in line:
                port = int(line.split("127.0.0.1:")[1].split()[0])
                break
        with EngineClient(port=port) as engine:
            engine.hello()
            reply = engine.call("check-client-ip", IPv6Address("2001:db8::7"))
        [action] = reply.actions
        assert action.name == "ip_score"
        assert action.data_type is DataType.UINT32
        assert isinstance(action.value, int)
        assert 0 <= action.value <= 100
        process.send_signal(signal.SIGTERM)
        rest = process.stderr.read()
        assert process.wait(10) == 0
    assert "2001:db8::7" in rest
