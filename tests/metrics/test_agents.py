"""Metrics that an agent of anybody's declares, in handlers of every kind."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from spoakit import Action, Agent, metrics
from spoakit.testing import Engine

LOGINS = metrics.counter("agents_logins_total", "Logins by result.", labels=("result",))
OPEN = metrics.gauge("agents_open", "Open sessions.")
LOOKUP = metrics.histogram("agents_lookup_seconds", "Time of a lookup.")


class Directory:
    pass


@pytest.fixture
def agent() -> Agent:
    agent = Agent("logins")
    found = agent.variable("txn.found", bool)

    @agent.resource
    async def directory() -> AsyncIterator[Directory]:
        OPEN.set(1)
        yield Directory()
        OPEN.set(0)

    @agent.message("inline")
    def inline(user: str, directory: Directory) -> Action:
        LOGINS.add(result="inline")
        return found.set(bool(user))

    @agent.message("async")
    async def waiting(user: str) -> Action:
        await asyncio.sleep(0)
        LOGINS.add(2, result="async")
        LOOKUP.observe(0.02)
        return found.set(bool(user))

    @agent.message("threaded", threaded=True)
    def threaded(user: str) -> Action:
        LOGINS.add(3, result="threaded")
        return found.set(bool(user))

    @agent.observe("inline")
    def observer(user: str) -> None:
        LOGINS.add(4, result="observer")

    return agent


def test_handlers_of_every_kind_count(agent: Agent) -> None:
    with Engine(agent) as engine:
        for message in ("inline", "async", "threaded"):
            assert engine.call(message, user="me") == {"txn.found": True}
        counted = engine.metrics
        for amount, kind in enumerate(("inline", "async", "threaded", "observer"), 1):
            assert counted.value("agents_logins_total", result=kind) == amount
        assert counted.value("agents_logins_total") == 10
        assert counted.value("agents_open") == 1
        assert counted.distribution("agents_lookup_seconds").quantile(0.5) == pytest.approx(
            0.02, rel=0.08
        )
        assert counted.distribution("spoakit_handler_seconds", message="async").count == 1
        assert counted.distribution("spoakit_ack_seconds", message="threaded").count == 1
    assert engine.metrics.value("agents_open") == 0


def test_each_engine_has_figures_of_its_own(agent: Agent) -> None:
    with Engine(agent) as first:
        first.call("inline", user="me")
        with Engine(agent) as second:
            second.call("async", user="me")
        assert first.metrics.value("agents_logins_total", result="async") == 0
        assert second.metrics.value("agents_logins_total", result="async") == 2
        first.call("inline", user="me")
        assert first.metrics.value("agents_logins_total", result="inline") == 2


def test_what_there_is_not_says_so(agent: Agent) -> None:
    with Engine(agent) as engine:
        with pytest.raises(KeyError, match="metric agents_logouts_total is not declared"):
            engine.metrics.value("agents_logouts_total")
        with pytest.raises(TypeError, match="labels must be result, got who"):
            engine.metrics.value("agents_logins_total", who="me")
        with pytest.raises(KeyError, match="agents_open is not a histogram"):
            engine.metrics.distribution("agents_open")
