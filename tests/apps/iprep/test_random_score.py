import time
from ipaddress import IPv4Address, IPv6Address

import pytest

from spoakit import Argument, DataType, Message
from spoakit.apps.iprep.random_score import random_agent
from spoakit.spop import Scope
from spoakit.testing import Engine
from spoakit.testing.pytest_plugin import ConnectEngine, ServeAgents

MESSAGE = "check-client-ip"


@pytest.mark.parametrize("src", [IPv4Address("192.0.2.1"), IPv6Address("2001:db8::1")])
@pytest.mark.parametrize("delay", [0.0, 0.001])
def test_the_score_is_an_unsigned_integer_of_the_session(
    src: IPv4Address | IPv6Address, delay: float
) -> None:
    with Engine(random_agent(delay)) as engine:
        reply = engine.call(MESSAGE, src)
    [action] = reply.actions
    assert (action.scope, action.name) == (Scope.SESS, "ip_score")
    assert action.data_type is DataType.UINT32
    assert isinstance(action.value, int)
    assert 0 <= action.value <= 100


def test_the_scores_are_those_from_0_to_100() -> None:
    with Engine(random_agent()) as engine:
        scores = {
            engine.call(MESSAGE, IPv4Address("192.0.2.1")).actions[0].value for _ in range(4000)
        }
    assert scores == set(range(101))


def test_a_delay_holds_up_the_message_and_no_other(
    serve_agents: ServeAgents, connect_engine: ConnectEngine
) -> None:
    delay = 0.2
    engine = connect_engine(port=serve_agents(random_agent(delay)).port)
    engine.hello()
    message = Message(MESSAGE, (Argument.of("", IPv4Address("192.0.2.1")),))
    before = time.monotonic()
    for ids in engine.notify_each([[message]] * 50):
        assert len(engine.ack(ids).actions) == 1
    assert delay <= time.monotonic() - before < 25 * delay  # and not fifty times
