"""The first agents of README and of the tutorial work as they are printed, except for ports."""

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

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
TUTORIAL = (ROOT / "docs/tutorials/first-agent.md").read_text()
PAGES = pytest.mark.parametrize(
    ("page", "expected"), [(README, "hello localhost\n"), (TUTORIAL, "score 100\n")]
)


def block(page: str, beginning: str) -> str:
    """Return the page's block of code that begins so."""
    blocks: list[str] = re.findall(r"```\w*\n(.*?)```", page, re.DOTALL)
    [found] = (each for each in blocks if each.startswith(beginning))
    return found


def replaced(text: str, old: str, new: str) -> str:
    """Replace what has to be there."""
    assert old in text
    return text.replace(old, new)


def answer(haproxy: HAProxy) -> str:
    with closing(connect(haproxy)) as client:
        client.request("GET", "/")
        return client.getresponse().read().decode()


@PAGES
def test_haproxy_gets_what_the_page_says(
    page: str,
    expected: str,
    tmp_path: Path,
    start: Start,
    haproxy: StartHAProxy,
    haproxy_binary: Path,
) -> None:
    (tmp_path / "hello.py").write_text(block(page, "# hello.py"))
    command = block(page, ".venv/bin/spoakit run").partition("\n")[0].split()
    command[command.index("--port") + 1] = "0"
    agent = start("spoakit.cli.spoakit", *command[1:])
    config = replaced(block(page, "defaults\n"), "bind :8080", 'bind "${FRONTEND}"')
    config = replaced(config, "127.0.0.1:12345", '"${AGENT}"')
    spoe = block(page, "[hello]")
    if haproxy_version(haproxy_binary) < "3.1":
        config = replaced(config, "mode spop", "mode tcp")
        old = block(TUTORIAL, "    timeout hello")
        spoe = replaced(spoe, "    timeout processing", f"{old}    timeout processing")
    running = haproxy(config, files={"hello.cfg": spoe}, variables={"AGENT": agent.address})
    # 50 ms are not always enough on a busy machine.
    wait_until(lambda: answer(running) == expected, repr(expected))


def test_its_test_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("hello.py", "test_hello.py"):
        (tmp_path / name).write_text(block(TUTORIAL, f"# {name}"))
    monkeypatch.syspath_prepend(tmp_path)
    tests = importlib.import_module("test_hello")
    for name in ("hello", "test_hello"):
        monkeypatch.delitem(sys.modules, name)
    tests.test_private_addresses_score_high()
