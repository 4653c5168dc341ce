"""spoakit.run and spoakit.serve."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

import spoakit
from spoakit import Action, Agent, server
from spoakit.exceptions import ConfigurationError
from spoakit.server import Drain, Limits, Listen, ServerSettings, TcpAddress, UnixAddress
from spoakit.testing import EngineClient
from tests.support.waiting import until

pytestmark = pytest.mark.slow

PROGRAM = """
import logging, sys
import spoakit

first, second = spoakit.Agent("first"), spoakit.Agent("second")
one, two = first.variable("txn.one", int), second.variable("txn.two", int)

@first.message("one")
def answer_one() -> spoakit.Action:
    return one.set(1)

@second.message("two")
def answer_two() -> spoakit.Action:
    return two.set(2)

logging.basicConfig(level=logging.INFO)
sys.exit(spoakit.run(first, second, address="127.0.0.1", port=0, unix=sys.argv[1], workers=2))
"""


@pytest.fixture
def agent() -> Agent:
    agent = Agent("one")
    one = agent.variable("txn.one", int)

    @agent.message("one")
    def answer() -> Action:
        return one.set(1)

    return agent


def test_a_program_serves_several_agents_on_several_addresses(tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"
    environment = {**os.environ, "PYTHONPATH": str(Path(spoakit.__file__).parent.parent)}
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(path)],
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        assert process.stderr is not None
        [listening] = [next(line for line in process.stderr if "listening on" in line)]
        port = int(listening.split("127.0.0.1:")[1].split(",")[0])
        for engine in (EngineClient(port=port), EngineClient(unix=str(path))):
            with engine:
                engine.hello()
                assert engine.call("one") == {"txn.one": 1}
                assert engine.call("two") == {"txn.two": 2}
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=20)
    assert process.returncode == 0
    assert not path.exists()


def test_arguments_take_the_place_of_settings(
    agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[ServerSettings] = []

    def run(agents: tuple[Agent, ...], settings: ServerSettings) -> int:
        assert agents == (agent,)
        given.append(settings)
        return 7

    monkeypatch.setattr(server, "run", run)
    base = ServerSettings(
        Listen((UnixAddress("a"),), backlog=7), Limits(connections=9), Drain(1.0), workers=3
    )
    assert spoakit.run(agent) == 7
    spoakit.run(agent, settings=base)
    spoakit.run(agent, port=1, workers=2, settings=base)
    assert given == [
        ServerSettings(),
        base,
        replace(base, listen=Listen((TcpAddress(port=1),), backlog=7), workers=2),
    ]
    with pytest.raises(ConfigurationError, match="workers must be between 1 and 1024, got 0"):
        spoakit.run(agent, workers=0)


def test_an_agent_is_served_until_it_is_cancelled(agent: Agent, tmp_path: Path) -> None:
    path = tmp_path / "agent"

    async def live() -> None:
        serving = asyncio.create_task(spoakit.serve(agent, unix=str(path)))
        async with asyncio.timeout(10):
            await until(lambda: path.is_socket() or serving.done())
            _, writer = await asyncio.open_unix_connection(path)
            serving.cancel()
            with pytest.raises(asyncio.CancelledError):
                await serving
            writer.close()

    asyncio.run(live())
    assert not path.exists()


def test_a_setting_that_needs_a_process_is_refused_by_serve(agent: Agent) -> None:
    settings = ServerSettings(Listen.at("127.0.0.1", 0), workers=2)
    with pytest.raises(ConfigurationError, match="workers is not supported by serve"):
        asyncio.run(spoakit.serve(agent, settings=settings))


def test_declaring_an_agent_does_not_import_the_server() -> None:
    script = (
        "import sys, spoakit; sys.exit(any(n.startswith('spoakit.server') for n in sys.modules))"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'spoakit' has no attribute 'walk'"):
        vars(spoakit)["__getattr__"]("walk")


RELOADING = """
import logging, os, sys
from pathlib import Path
import spoakit
from spoakit.server import ServerSettings

agent, other = spoakit.Agent("one"), spoakit.Agent("other")
one = agent.variable("txn.one", str)
current = Path("value").read_text()

@other.on_reload
def fail() -> None:
    sys.exit("on purpose")

@agent.on_reload
def reload() -> None:
    global current
    current = Path("value").read_text()

@agent.message("one")
def answer() -> spoakit.Action:
    return one.set(current)

logging.basicConfig(level=logging.INFO)
settings = ServerSettings(watch="value" if sys.argv[1] == "watch" else None)
sys.exit(spoakit.run(other, agent, unix="agent.sock", workers=2, settings=settings))
"""


@pytest.mark.parametrize("how", ["signal", "watch"])
def test_agents_are_told_of_a_reload_in_each_worker(tmp_path: Path, how: str) -> None:
    (tmp_path / "value").write_text("before")
    environment = {**os.environ, "PYTHONPATH": str(Path(spoakit.__file__).parent.parent)}
    with subprocess.Popen(
        [sys.executable, "-c", RELOADING, how],
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env=environment,
    ) as process:
        assert process.stderr is not None
        assert any("listening on" in line for line in process.stderr)
        engines = [EngineClient(unix=str(tmp_path / "agent.sock")) for _ in range(4)]
        with ExitStack() as stack:
            for engine in engines:
                stack.enter_context(engine).hello()
                assert engine.call("one") == {"txn.one": "before"}
            (tmp_path / "new").write_text("after")
            (tmp_path / "new").rename(tmp_path / "value")
            if how == "signal":
                process.send_signal(signal.SIGHUP)
            end = time.monotonic() + 20
            while any(engine.call("one") != {"txn.one": "after"} for engine in engines):
                assert time.monotonic() < end
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=20)
    assert process.returncode == 0
    assert "fail failed, the worker keeps serving" in log
    assert "there is nothing to reload" not in log


TWICE = """
import logging, sys
import spoakit
from spoakit.server import Logfile, ServerSettings

agent = spoakit.Agent("one")

@agent.message("one")
def answer() -> None: ...

logging.basicConfig(level=logging.INFO)
for name in ("first.log", "second.log"):
    settings = ServerSettings(logfile=Logfile(name), runtime=0.1)
    assert spoakit.run(agent, address="127.0.0.1", port=0, settings=settings) == 0
failing = ServerSettings(logfile=Logfile("third.log"))
assert spoakit.run(agent, unix="absent/a.sock", settings=failing) == 1
print("done")
"""


def test_services_of_one_process_have_logfiles_of_their_own(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(spoakit.__file__).parent.parent)}
    done = subprocess.run(
        [sys.executable, "-c", TWICE],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for name in ("first.log", "second.log"):
        assert (tmp_path / name).read_text().count("listening on") == 1
    # A start that failed gives the streams back: those of the service before.
    assert "cannot start" in (tmp_path / "third.log").read_text()
    assert "done" in (tmp_path / "second.log").read_text()
