"""spoakit.agent.runtime: agents at work in one worker."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from types import MappingProxyType
from typing import Any

import pytest

from spoakit import Action, Agent, Argument, Message
from spoakit.agent.runtime import Runtime
from spoakit.exceptions import (
    ConfigurationError,
    MismatchError,
    RegistrationError,
    StartupError,
)
from tests.support.agent_frames import EngineLink, notify

NOTHING: Mapping[Any, object] = MappingProxyType({})


class Log(list[str]):
    """What happened, in order."""


class Cache:
    def __init__(self, owner: str) -> None:
        self.owner = owner


def make_agent(name: str, log: Log) -> Agent:
    """Return an agent whose resource is in each answer."""
    agent = Agent(name)
    owner = agent.variable("txn.owner", str)

    @agent.resource
    async def cache() -> AsyncIterator[Cache]:
        log.append(f"{name} up")
        yield Cache(name)
        log.append(f"{name} down")

    @agent.message(f"{name}-whose")
    def whose(cache: Cache, *, suffix: str = "") -> Action:
        return owner.set(cache.owner + suffix)

    @agent.observe(f"{name}-seen")
    def see(cache: Cache) -> None:
        log.append(f"seen by {cache.owner}")

    return agent


@pytest.fixture
def log() -> Log:
    return Log()


def call(runtime: Runtime, message: str, *args: Argument) -> list[Any]:
    """Return the values set in the answer to a message."""
    link = EngineLink()
    runtime.dispatcher.dispatch([notify(1, Message(message, args))], 0, link)
    [(_, actions)] = link.acks()
    return [each.value for each in actions]


def test_each_agents_handlers_get_its_own_resources(log: Log) -> None:
    async def live() -> None:
        runtime = Runtime([make_agent("one", log), make_agent("two", log)])
        assert log == []
        await runtime.start()
        assert log == ["one up", "two up"]
        assert call(runtime, "one-whose") == ["one"]
        assert call(runtime, "two-whose", Argument.of("suffix", "!")) == ["two!"]
        await runtime.aclose()

    asyncio.run(live())
    assert log == ["one up", "two up", "two down", "one down"]


def test_observers_that_are_due_run_before_their_resources_go(log: Log) -> None:
    async def live() -> None:
        runtime = Runtime([make_agent("one", log)])
        await runtime.start()
        assert call(runtime, "one-seen") == []
        await runtime.aclose()

    asyncio.run(live())
    assert log == ["one up", "seen by one", "one down"]


def test_an_object_stands_in_for_the_resources_of_all_agents(log: Log) -> None:
    async def live() -> None:
        agents = [make_agent("one", log), make_agent("two", log)]
        runtime = Runtime(agents, {Cache: Cache("fake")})
        await runtime.start()
        assert call(runtime, "one-whose") == call(runtime, "two-whose") == ["fake"]
        await runtime.aclose()

    asyncio.run(live())
    assert log == []


def test_an_object_of_a_type_that_no_agent_uses_is_refused(log: Log) -> None:
    with pytest.raises(ConfigurationError, match="no agent has a resource of type <class 'int'>"):
        Runtime([make_agent("one", log)], {int: 5})


def test_a_resource_that_fails_takes_those_before_it_down(log: Log) -> None:
    broken = Agent("broken")

    @broken.resource
    async def never() -> AsyncIterator[Log]:
        raise OSError("no route to host")
        yield log

    @broken.observe("message")
    def see(log: Log) -> None: ...

    with pytest.raises(StartupError, match="no route to host"):
        asyncio.run(Runtime([make_agent("one", log), broken]).start())
    assert log == ["one up", "one down"]


def test_what_cannot_work_is_refused_before_anything_starts(log: Log) -> None:
    agent = make_agent("one", log)

    @agent.message("message")
    def handle(log: Log) -> None: ...

    with pytest.raises(RegistrationError, match="has no resource of type"):
        Runtime([agent])
    with pytest.raises(ConfigurationError, match="two agents have the name 'two'"):
        Runtime([make_agent("two", log), make_agent("two", log)])


def test_errors_of_calls_are_handed_on(log: Log) -> None:
    errors: list[BaseException] = []

    async def live() -> None:
        runtime = Runtime([make_agent("one", log)], NOTHING, errors.append)
        await runtime.start()
        assert call(runtime, "one-whose", Argument.of("suffix", 5)) == []
        await runtime.aclose()

    asyncio.run(live())
    [error] = errors
    assert isinstance(error, MismatchError)
    assert str(error).endswith("argument 'suffix' must be STRING or BINARY, got INT64")


def test_a_runtime_can_start_again(log: Log) -> None:
    async def live() -> None:
        runtime = Runtime([make_agent("one", log)])
        for _ in range(2):
            await runtime.start()
            assert call(runtime, "one-whose") == ["one"]
            await runtime.aclose()

    asyncio.run(live())
    assert log == ["one up", "one down"] * 2
