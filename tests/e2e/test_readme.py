"""The first agents of README and of the tutorial work as they are printed, except for ports."""

import asyncio
import importlib
import re
import sys
from contextlib import closing
from ipaddress import IPv4Address
from pathlib import Path
from types import ModuleType

import pytest
from aiodns import DNSResolver

from spoakit.testing import Engine
from spoakit.testing.haproxy import HAProxy, haproxy_version
from spoakit.testing.pytest_plugin import StartHAProxy
from tests.support.programs import Start, connect
from tests.support.waiting import TIMEOUT, wait_until

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
TUTORIAL = (ROOT / "docs/tutorials/first-agent.md").read_text()
# /etc/hosts may have another name than localhost.
PAGES = pytest.mark.parametrize(
    ("page", "expected"), [(README, r"hello (?!unknown)\S+\n"), (TUTORIAL, r"score 100\n")]
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
    wait_until(lambda: re.fullmatch(expected, answer(running)) is not None, expected)


def load(page: str, name: str, folder: Path) -> ModuleType:
    """Import a module of a page; those that it imports are written to the folder, too."""
    for each in re.findall(r"^# (\w+)\.py$", page, re.MULTILINE):
        (folder / f"{each}.py").write_text(block(page, f"# {each}.py"))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        try:
            return importlib.import_module(name)
        finally:
            sys.modules.pop(name, None)
            sys.modules.pop("hello", None)


def test_its_test_passes(tmp_path: Path) -> None:
    tests = load(TUTORIAL, "test_hello", tmp_path)
    tests.test_private_addresses_score_high()


class SilentResolver:
    """Stand-in for a resolver whose name server does not respond."""

    async def gethostbyaddr(self, name: str) -> None:
        await asyncio.sleep(TIMEOUT)


def test_a_name_server_that_does_not_respond_gives_the_fallback(tmp_path: Path) -> None:
    hello = load(README, "hello", tmp_path)
    resources = {DNSResolver: SilentResolver()}
    with Engine(hello.agent, resources=resources, raise_errors=False) as engine:
        assert engine.call("find-host", src=IPv4Address("192.0.2.1")) == {"txn.host": "unknown"}
