"""The agent: one message, one variable."""

from random import random
from typing import Final

from spoakit.agent.agent import Agent
from spoakit.agent.parameters import IPAddress
from spoakit.spop._encode_cy import Action
from spoakit.spop.constants import DataType

MAX_SCORE: Final = 100

iprep = Agent("iprep")
ip_score = iprep.variable("sess.ip_score", DataType.UINT32)


@iprep.message("check-client-ip", event="on-client-session")
def check_client_ip(src: IPAddress, /) -> Action:
    """Set `sess.iprep.ip_score` to a random score, 0 (worst) to 100, whatever the address."""
    return ip_score.set(int(random() * (MAX_SCORE + 1)))
