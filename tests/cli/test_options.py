import importlib.util
import os
import subprocess
import sys
from importlib.machinery import ModuleSpec

import pytest

from spoakit.cli.iprep import main as iprep_main
from spoakit.cli.mirror import main as mirror_main
from spoakit.cli.options import tls_settings
from spoakit.cli.spoakit import main as spoakit_main
from spoakit.compilation import form
from spoakit.exceptions import ConfigurationError
from spoakit.server.settings import ListenTls
from spoakit.spop import COMPILED


def test_the_form_agrees_with_the_hot_code() -> None:
    assert (form() == "not compiled") is not COMPILED


@pytest.mark.parametrize(
    ("origins", "expected"),
    [
        ({}, "not compiled"),
        ({"": "x.so"}, "compiled"),
        (
            {"": "x.so", "spoakit.spop._decode_cy": "x.py"},
            "compiled but for spoakit.spop._decode_cy",
        ),
    ],
)
def test_each_hot_module_counts(
    monkeypatch: pytest.MonkeyPatch, origins: dict[str, str], expected: str
) -> None:
    def find(name: str, package: str | None = None) -> ModuleSpec | None:
        origin = origins.get(name, origins.get("", "x.py"))
        return ModuleSpec(name, None, origin=origin)

    monkeypatch.setattr(importlib.util, "find_spec", find)
    assert form() == expected


def test_tls_begins_with_a_certificate() -> None:
    assert tls_settings(None, None, None) is None
    assert tls_settings("c", "k", "a") == ListenTls("c", "k", "a")
    with pytest.raises(ConfigurationError, match="--tls-key 'k' needs --tls-cert"):
        tls_settings(None, "k", None)
    with pytest.raises(ConfigurationError, match="--tls-ca 'a' needs --tls-cert"):
        tls_settings(None, None, "a")


@pytest.mark.parametrize("closed", ["0<&-", "1>&-", "2>&-", "0<&- 1>&- 2>&-"])
def test_closed_standard_streams_are_opened_on_nothing(closed: str) -> None:
    script = (
        "import os, sys; from spoakit.cli.options import open_standard_streams; "
        "open_standard_streams(); sys.stdout.flush(); sys.stderr.flush(); print('x', flush=True); "
        "sys.exit(any(os.fstat(each) is None for each in range(3)))"
    )
    command = ["sh", "-c", f'exec "$@" {closed}', "sh", sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("arguments", [["-h"], ["-V"]])
def test_one_who_reads_no_further_is_no_error(arguments: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "spoakit.cli.mirror", *arguments]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("argument", ["--port=--", "-p--", "--pidfile=--", "--tls-cert=--"])
def test_dashes_are_not_a_value(argument: str, capsys: pytest.CaptureFixture[str]) -> None:
    for main in (spoakit_main, mirror_main, iprep_main):
        with pytest.raises(SystemExit) as left:
            main(["run", argument, "hello:agent"] if main is spoakit_main else ["-r0", argument])
        assert left.value.code == 64
        option = argument.removesuffix("--").removesuffix("=")
        assert f"argument {option}: expected one argument" in capsys.readouterr().err


def test_dashes_are_not_a_value_of_a_commands_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        iprep_main(["ban", "192.0.2.7", "--for=--"])
    assert left.value.code == 64
    assert "argument --for: expected one argument" in capsys.readouterr().err
