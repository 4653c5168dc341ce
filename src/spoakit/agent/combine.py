"""Several agents behind one port."""

from collections.abc import Iterable

from spoakit.agent.agent import Agent
from spoakit.agent.handlers import Handler, HandlerKind
from spoakit.exceptions import ConfigurationError


def combine(agents: Iterable[Agent]) -> dict[str, tuple[Handler, ...]]:
    """Return the handlers of each message: the one that answers, if any, then the observers.

    Each agent stays a spoe-agent of its own in HAProxy, with its own prefix. A message
    does not say which one it is from, so its name must be in one agent only.

    Raises:
        ConfigurationError: there is no agent, two have one name, or both have one message.
        RegistrationError: a handler of one of them cannot work; see `Agent.prepare`.
    """
    names: set[str] = set()
    owners: dict[str, str] = {}
    for agent in (agents := tuple(agents)):
        if agent.name in names:
            raise ConfigurationError(f"two agents are called {agent.name!r}")
        names.add(agent.name)
        for message in agent.messages:
            owner = owners.setdefault(message, agent.name)
            if owner != agent.name:
                raise ConfigurationError(
                    f"message {message!r} is in the agents {owner!r} and {agent.name!r}; it can "
                    "be in one only"
                )
    if not owners:
        raise ConfigurationError("there is no agent with a message to serve")
    combined: dict[str, tuple[Handler, ...]] = {}
    for handler in (handler for agent in agents for handler in agent.prepare()):
        others = combined.get(handler.message, ())
        if handler.kind is HandlerKind.OBSERVER:
            combined[handler.message] = (*others, handler)
        else:
            combined[handler.message] = (handler, *others)
    return combined
