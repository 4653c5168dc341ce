"""The README's first agent works as it stands there, but for the ports."""

import importlib
import re
import sys
from contextlib import closing
from pathlib import Path

import pytest

from spoakit.testing.haproxy import HAProxy, haproxy_version
from spoakit.testing.pytest_plugin import StartHAProxy
from tests.support.programs import Start, connect
from tests.support.waiting import wait_until

README = (Path(__file__).parents[2] / "README.md").read_text()
FIRST_AGENT = README.partition("\n## A first agent\n")[2].partition("\n## ")[0]


def block(beginning: str) -> str:
    """Return the block of code that begins so."""
    blocks: list[str] = re.findall(r"```\w*\n(.*?)```", FIRST_AGENT, re.DOTALL)
    [found] = (each for each in blocks if each.startswith(beginning))
    return found


def replaced(text: str, old: str, new: str) -> str:
    """Replace what has to be there."""
    assert old in text
    return text.replace(old, new)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "hello.py").write_text(block("# hello.py"))
    (tmp_path / "test_hello.py").write_text(block("# test_hello.py"))
    return tmp_path


def answer(haproxy: HAProxy) -> str:
    with closing(connect(haproxy)) as client:
        client.request("GET", "/")
        return client.getresponse().read().decode()


def test_haproxy_shows_its_score(
    folder: Path, start: Start, haproxy: StartHAProxy, haproxy_binary: Path
) -> None:
    command = block(".venv/bin/spoakit run").split()
    command[command.index("--port") + 1] = "0"
    agent = start("spoakit.cli.spoakit", *command[1:])
    config = replaced(block("defaults\n"), "bind :8080", 'bind "${FRONTEND}"')
    config = replaced(config, "127.0.0.1:12345", '"${AGENT}"')
    spoe = block("[hello]")
    if haproxy_version(haproxy_binary) < "3.1":
        config = replaced(config, "mode spop", "mode tcp")
        spoe = replaced(
            spoe, "    timeout", "    timeout hello 100ms\n    timeout idle 30s\n    timeout"
        )
    running = haproxy(config, files={"hello.cfg": spoe}, variables={"AGENT": agent.address})
    # 50 ms are not always enough on a busy machine.
    wait_until(lambda: answer(running) == "score 100\n", "the score of a private address")


def test_its_test_passes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(folder)
    tests = importlib.import_module("test_hello")
    for name in ("hello", "test_hello"):
        monkeypatch.delitem(sys.modules, name)
    tests.test_private_addresses_score_high()
