import pytest

from spoakit import Action, Agent


@pytest.fixture
def agent() -> Agent:
    return Agent("agent")


@pytest.fixture
def echoing(agent: Agent) -> Agent:
    number = agent.variable("txn.number", int)

    @agent.message("echo")
    def echo(n: int) -> Action:
        return number.set(n)

    return agent
