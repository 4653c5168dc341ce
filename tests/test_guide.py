"""The Python files of docs/howto/write-an-agent.md work as they are printed."""

import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from ipaddress import IPv4Address
from pathlib import Path
from types import ModuleType

import pytest

from spoakit import Headers
from spoakit.testing import Engine, Reply

GUIDE = (Path(__file__).parents[1] / "docs/howto/write-an-agent.md").read_text()
BLOCKS: list[str] = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)
FILES = {text.partition("\n")[0].removeprefix("# "): text for text in BLOCKS}
MODULES = sorted(name.removesuffix(".py") for name in FILES if not name.startswith("test_"))
ADDRESS = IPv4Address("192.0.2.1")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in MODULES:
        sys.modules.pop(name, None)


def load(name: str) -> ModuleType:
    return importlib.import_module(name)


def test_each_block_is_a_file_of_its_own() -> None:
    assert len(FILES) == len(BLOCKS)
    assert all(re.fullmatch(r"\w+\.py", name) for name in FILES)


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.usefixtures("folder")
def test_every_file_can_be_imported(name: str) -> None:
    load(name)


CALLS = [
    ("verdict", "judge", {"src": IPv4Address("127.0.0.1")}, {"sess.score": 100}),
    ("route", "route", {"src": ADDRESS, "method": "GET"}, {"txn.pool": "stable"}),
    (
        "route",
        "route",
        {"src": IPv4Address("8.8.8.8"), "method": "GET", "token": "a"},
        {"txn.pool": "canary"},
    ),
    (
        "language",
        "language",
        {"headers": Headers.of(("accept-language", "fr-CH")).raw},
        {"txn.language": "fr", "txn.extra": Headers.of(("x-language", "fr")).raw},
    ),
    (
        "trace",
        "trace",
        {"a": 1, "b": 2},
        {"txn.seen": "trace(a,b) of testing.Engine, at most 16380 bytes"},
    ),
    ("kinds", "compute", {"text": "a"}, {"txn.done": "A"}),
    ("kinds", "wait", {"text": "a"}, {"txn.done": "a"}),
    ("kinds", "block", {"text": "a"}, {"txn.done": "a"}),
    ("limit", "limit", {"src": ADDRESS}, {"txn.allowed": True}),
    ("directory", "look-up", {"name": "me"}, {"txn.allowed": True, "txn.user": "me"}),
    ("timed", "measure", {"text": "four"}, {"txn.length": 4}),
    ("motd", "motd", {}, {"txn.text": "hello"}),
    ("logins", "check-login", {"user": ""}, {"txn.allowed": False}),
]


@pytest.mark.parametrize(("name", "message", "arguments", "expected"), CALLS)
@pytest.mark.usefixtures("folder")
def test_it_answers_as_its_section_says(
    name: str,
    message: str,
    arguments: dict[str, int | str | bytes | IPv4Address],
    expected: dict[str, object],
) -> None:
    with Engine(load(name).agent) as engine:
        reply: Reply = engine.call(message, **arguments)
    assert {key: value for key, value in reply.items() if value is not None} == expected


@pytest.mark.usefixtures("folder")
def test_an_observer_sees_the_message() -> None:
    visits = load("visits")
    with Engine(visits.agent) as engine:
        engine.call("visit", path="/")
    assert visits.VISITS == {"/": 1}


@pytest.mark.usefixtures("folder")
def test_middleware_is_around_the_handler() -> None:
    timed = load("timed")
    with Engine(timed.agent) as engine:
        engine.call("measure", text="")
    assert [message for message, _ in timed.TIMES] == ["measure"]


def test_its_tests_pass(folder: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(folder)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
