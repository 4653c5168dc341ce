import asyncio
import typing
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any

import pytest

from spoakit import Agent, Context
from spoakit.agent.resources import ResourceSet
from spoakit.exceptions import ConfigurationError, RegistrationError, StartupError
from spoakit.metrics.memory import SharedMetrics, WorkerMetrics


class Log(list[str]):
    """What happened, in order."""


class Redis:
    pass


class Cache:
    def __init__(self, redis: object) -> None:
        self.redis = redis


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture
def agent(log: Log) -> Agent:
    agent = Agent("rate")

    @agent.resource
    async def redis() -> AsyncIterator[Redis]:
        log.append("redis up")
        yield Redis()
        log.append("redis down")

    @agent.resource
    async def cache(server: Redis) -> AsyncGenerator[Cache, None]:
        log.append("cache up")
        yield Cache(server)
        log.append("cache down")

    return agent


def start(resources: ResourceSet) -> None:
    asyncio.run(resources.start())


def test_resources_start_in_order_and_stop_in_reverse(agent: Agent, log: Log) -> None:
    async def live() -> None:
        resources = ResourceSet(agent.resources, SharedMetrics(1).worker(0))
        await resources.start()
        assert isinstance(resources[Redis], Redis)
        await resources.aclose()

    asyncio.run(live())
    assert log == ["redis up", "cache up", "cache down", "redis down"]


def test_a_resource_gets_the_earlier_ones_it_asks_for(agent: Agent) -> None:
    resources = ResourceSet(agent.resources, SharedMetrics(1).worker(0))
    start(resources)
    assert resources[Cache].redis is resources[Redis]


def test_resources_may_be_asked_for_before_and_after_slash_and_star(agent: Agent) -> None:
    @agent.resource
    async def both(redis: Redis, /, *, cache: Cache) -> AsyncIterator[Log]:
        assert cache.redis is redis
        yield Log()

    resources = ResourceSet(agent.resources, SharedMetrics(1).worker(0))
    start(resources)
    assert resources[Log] == []


def test_an_override_is_used_and_its_resource_does_not_run(agent: Agent, log: Log) -> None:
    fake = object()
    resources = ResourceSet(agent.resources, SharedMetrics(1).worker(0), {Redis: fake})
    start(resources)
    assert resources[Cache].redis is fake
    assert log == ["cache up"]


def test_an_override_of_what_is_no_resource_is_refused(agent: Agent) -> None:
    with pytest.raises(ConfigurationError, match=r"no resource of type <class 'dict'>.*Redis"):
        ResourceSet(agent.resources, SharedMetrics(1).worker(0), {dict: {}})


def test_a_failure_at_start_names_the_resource_and_stops_those_before(
    agent: Agent, log: Log
) -> None:
    @agent.resource
    async def table() -> AsyncIterator[Log]:
        raise ConnectionError("refused")
        yield Log()

    with pytest.raises(StartupError, match=r"table did not start: ConnectionError: refused"):
        start(ResourceSet(agent.resources, SharedMetrics(1).worker(0)))
    assert log == ["redis up", "cache up", "cache down", "redis down"]


def test_a_resource_that_yields_nothing_does_not_start() -> None:
    agent = Agent("rate")

    @agent.resource
    async def redis() -> AsyncIterator[Redis]:
        for made in list[Redis]():
            yield made

    with pytest.raises(StartupError, match="redis did not start"):
        start(ResourceSet(agent.resources, SharedMetrics(1).worker(0)))


def test_a_resource_that_says_itself_why_it_does_not_start_has_the_last_word() -> None:
    agent = Agent("rate")

    @agent.resource
    async def redis() -> AsyncIterator[Redis]:
        if agent:
            raise StartupError("port 6379 is taken")
        yield Redis()

    with pytest.raises(StartupError, match=r"^port 6379 is taken$"):
        start(ResourceSet(agent.resources, SharedMetrics(1).worker(0)))


def test_a_start_that_is_cancelled_stops_what_had_started(agent: Agent, log: Log) -> None:
    entered = asyncio.Event()

    @agent.resource
    async def slow() -> AsyncIterator[Log]:
        entered.set()
        await asyncio.Event().wait()
        yield Log()

    async def live() -> None:
        task = asyncio.create_task(ResourceSet(agent.resources, SharedMetrics(1).worker(0)).start())
        await entered.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(live())
    assert log == ["redis up", "cache up", "cache down", "redis down"]


def test_a_failure_at_the_stop_is_logged_and_the_others_stop(
    agent: Agent, log: Log, caplog: pytest.LogCaptureFixture
) -> None:
    @agent.resource
    async def table() -> AsyncIterator[Log]:
        yield Log()
        raise ConnectionError("lost")

    @agent.resource
    async def endless() -> AsyncIterator[dict[str, int]]:
        yield {}
        yield {}

    async def live() -> None:
        resources = ResourceSet(agent.resources, SharedMetrics(1).worker(0))
        await resources.start()
        await resources.aclose()

    asyncio.run(live())
    assert log == ["redis up", "cache up", "cache down", "redis down"]
    assert [record.getMessage().split(".")[-1] for record in caplog.records] == [
        "endless failed while it stopped",
        "table failed while it stopped",
    ]


@pytest.mark.parametrize("error", [SystemExit(3), asyncio.CancelledError(), ValueError("x")])
def test_a_resource_cannot_end_the_loop(
    agent: Agent, log: Log, error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    @agent.resource
    async def ends() -> AsyncIterator[Log]:
        yield Log()
        raise error

    async def live() -> None:
        resources = ResourceSet(agent.resources, SharedMetrics(1).worker(0), on_error=errors.append)
        await resources.start()
        await resources.aclose()

    errors: list[BaseException] = []
    asyncio.run(live())
    assert log == ["redis up", "cache up", "cache down", "redis down"]
    assert errors == [error]
    assert "ends failed while it stopped" in caplog.text


@pytest.mark.parametrize("error", [SystemExit(3), asyncio.CancelledError(), GeneratorExit()])
def test_a_start_that_raises_anything_is_a_startup_error(agent: Agent, error: Exception) -> None:
    @agent.resource
    async def never() -> AsyncIterator[Log]:
        raise error
        yield Log()

    with pytest.raises(StartupError, match=rf"never did not start: {type(error).__name__}"):
        start(ResourceSet(agent.resources, SharedMetrics(1).worker(0)))


def test_closing_again_does_nothing(agent: Agent, log: Log) -> None:
    async def live() -> None:
        resources = ResourceSet(agent.resources, SharedMetrics(1).worker(0))
        await resources.aclose()
        await resources.start()
        await resources.aclose()
        await resources.aclose()

    asyncio.run(live())
    assert log == ["redis up", "cache up", "cache down", "redis down"]


async def no_generator() -> Redis:
    return Redis()


async def another() -> Any:
    yield Redis()


async def an_argument() -> AsyncIterator[str]:
    yield "x"


async def a_union() -> AsyncIterator[Log | Redis]:
    yield Redis()


async def a_context() -> AsyncIterator[Context]:
    yield Context("m", None, "", 1, 1, 0.0)


async def again() -> AsyncIterator[Redis]:
    yield Redis()


async def too_early(cache: dict[str, int]) -> AsyncIterator[Log]:
    yield Log()


async def in_a_frame(context: Context) -> AsyncIterator[Log]:
    yield Log()


async def bare() -> AsyncIterator[Log]:
    yield Log()


async def unhashable() -> AsyncIterator[Log]:
    yield Log()


# Type checkers do not accept these.
bare.__annotations__["return"] = typing.AsyncIterator
unhashable.__annotations__["return"] = "AsyncIterator[typing.Literal[[]]]"


@pytest.mark.parametrize(
    ("function", "why"),
    [
        (bare, "annotate it with -> AsyncIterator"),
        (unhashable, "is never a resource"),
        (no_generator, "must be an async def with a yield"),
        (another, "annotate it with -> AsyncIterator"),
        (an_argument, "type <class 'str'> is never a resource"),
        (a_union, "is never a resource"),
        (a_context, "is never a resource"),
        (again, "yields .*Redis.* already"),
        (too_early, "parameter 'cache': .* resources that are registered before it"),
        (in_a_frame, "parameter 'context': a resource takes the worker's WorkerMetrics"),
    ],
)
def test_what_is_no_resource_is_refused(
    agent: Agent, function: Callable[..., Any], why: str
) -> None:
    with pytest.raises(RegistrationError, match=why):
        agent.resource(function)


def test_a_resource_can_ask_for_the_counters_of_its_worker() -> None:
    agent = Agent("counting")
    seen: list[WorkerMetrics] = []

    @agent.resource
    async def cache(row: WorkerMetrics) -> AsyncIterator[Cache]:
        seen.append(row)
        yield Cache([])

    row = SharedMetrics(3).worker(2)
    start(ResourceSet(agent.resources, row))
    assert seen == [row]
    assert row.index == 2
