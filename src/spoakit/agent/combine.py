"""Routes of several agents that share a port."""

from collections.abc import Iterable

from spoakit.agent.agent import Agent
from spoakit.agent.handlers import Handler, HandlerKind
from spoakit.exceptions import ConfigurationError


def combine(agents: Iterable[Agent]) -> dict[str, tuple[Handler, ...]]:
    """Return the handlers of each message: the one that answers, if any, then the observers.

    In HAProxy each agent is a spoe-agent of its own, with its own prefix. A NOTIFY does not name
    the spoe-agent, so the names of messages must be unique among all agents.

    Raises:
        ConfigurationError: no agent has a message, or two share a name or a message.
        RegistrationError: a handler cannot work; see `Agent.prepare`.
    """
    names: set[str] = set()
    owners: dict[str, str] = {}
    for agent in (agents := tuple(agents)):
        if agent.name in names:
            raise ConfigurationError(f"two agents have the name {agent.name!r}")
        names.add(agent.name)
        for message in agent.messages:
            owner = owners.setdefault(message, agent.name)
            if owner != agent.name:
                raise ConfigurationError(
                    f"message {message!r} is declared by the agents {owner!r} and {agent.name!r}; "
                    "rename one of the two"
                )
    if not owners:
        raise ConfigurationError("nothing to serve: none of the agents has a message")
    combined: dict[str, tuple[Handler, ...]] = {}
    for handler in (handler for agent in agents for handler in agent.prepare()):
        others = combined.get(handler.message, ())
        if handler.kind is HandlerKind.OBSERVER:
            combined[handler.message] = (*others, handler)
        else:
            combined[handler.message] = (handler, *others)
    return combined
