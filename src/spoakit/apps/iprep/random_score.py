"""The agent of HAProxy's example: one message, one variable, and chance."""

from random import random
from typing import Final

from spoakit import Action, Agent, DataType, IPAddress
from spoakit.apps.delay import DEADLINE, delayed

MAX_SCORE: Final = 100


def random_agent(delay: float = 0.0) -> Agent:
    """Return the agent that sets `sess.iprep.ip_score` by chance, whatever the address is.

    Args:
        delay: how long each message waits for its score, in seconds, without holding up others.
    """
    agent = Agent("iprep")
    ip_score = agent.variable("sess.ip_score", DataType.UINT32)

    def check_client_ip(src: IPAddress, /) -> Action:
        return ip_score.set(int(random() * (MAX_SCORE + 1)))

    name = "check-client-ip"
    if delay:
        register = agent.message(name, event="on-client-session", timeout=delay + DEADLINE)
        register(delayed(check_client_ip, delay))
    else:
        agent.message(name, event="on-client-session")(check_client_ip)
    return agent
