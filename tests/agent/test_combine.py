import pytest

from spoakit import Agent
from spoakit.agent.combine import combine
from spoakit.exceptions import ConfigurationError, RegistrationError


def nothing() -> None: ...


def other() -> None: ...


def test_the_handler_that_answers_comes_before_the_observers() -> None:
    agent = Agent("a")
    agent.observe("check")(nothing)
    agent.message("check")(other)
    agent.observe("check")(nothing)
    agent.observe("see")(nothing)
    combined = combine([agent])
    assert {name: [each.function for each in handlers] for name, handlers in combined.items()} == {
        "check": [other, nothing, nothing],
        "see": [nothing],
    }


def test_handlers_of_several_agents_know_theirs() -> None:
    agents = Agent("a"), Agent("b")
    agents[0].message("check")(nothing)
    agents[1].message("score")(nothing)
    combined = combine(agents)
    assert {name: handlers[0].agent for name, handlers in combined.items()} == {
        "check": "a",
        "score": "b",
    }


def test_a_message_in_two_agents_is_refused_even_if_one_only_observes() -> None:
    agents = Agent("a"), Agent("b")
    agents[0].message("check")(nothing)
    agents[1].observe("check")(nothing)
    with pytest.raises(ConfigurationError, match="'check' is declared by the agents 'a' and 'b'"):
        combine(agents)


def test_two_agents_of_one_name_are_refused() -> None:
    agent = Agent("a")
    agent.message("check")(nothing)
    with pytest.raises(ConfigurationError, match="two agents have the name 'a'"):
        combine([agent, agent])


def test_nothing_to_serve_is_refused() -> None:
    for agents in ([], [Agent("a")]):
        with pytest.raises(ConfigurationError, match="none of the agents has a message"):
            combine(agents)


def test_a_handler_that_cannot_work_is_refused() -> None:
    def handler(value: float) -> None: ...

    agent = Agent("a")
    agent.message("check")(handler)
    with pytest.raises(RegistrationError, match="parameter 'value'"):
        combine([agent])
