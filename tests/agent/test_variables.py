from ipaddress import IPv4Address, IPv6Address
from typing import Any

import pytest

from spoakit import Agent, DataType, IPAddress
from spoakit.exceptions import RegistrationError
from spoakit.spop.constants import ActionType, Scope


@pytest.fixture
def agent() -> Agent:
    return Agent("ip-rep")


@pytest.mark.parametrize(
    ("declared", "value", "sent_as"),
    [
        (bool, True, DataType.BOOL),
        (int, -5, DataType.INT64),
        (str, "é", DataType.STRING),
        (bytes, b"\xff", DataType.BINARY),
        (IPv4Address, IPv4Address("192.0.2.1"), DataType.IPV4),
        (IPv6Address, IPv6Address("2001:db8::1"), DataType.IPV6),
        (IPAddress, IPv4Address("192.0.2.1"), DataType.IPV4),
        (IPAddress, IPv6Address("2001:db8::1"), DataType.IPV6),
        (DataType.BOOL, False, DataType.BOOL),
        (DataType.INT32, -5, DataType.INT32),
        (DataType.UINT32, 42, DataType.UINT32),
        (DataType.UINT64, 2**64 - 1, DataType.UINT64),
        (DataType.STRING, "x", DataType.STRING),
        (DataType.BINARY, b"x", DataType.BINARY),
    ],
)
def test_a_value_is_sent_in_the_declared_type(
    agent: Agent, declared: Any, value: Any, sent_as: DataType
) -> None:
    action = agent.variable("txn.it", declared).set(value)
    assert (action.type, action.data_type, action.value) == (ActionType.SET_VAR, sent_as, value)


@pytest.mark.parametrize("declared", [str, IPAddress, DataType.UINT32])
def test_none_unsets(agent: Agent, declared: Any) -> None:
    assert agent.variable("txn.it", declared).set(None).type is ActionType.UNSET_VAR


@pytest.mark.parametrize("declared", [bool, int, str, bytes, IPv4Address, IPv6Address, IPAddress])
def test_a_value_of_another_type_is_refused_where_it_is_set(agent: Agent, declared: Any) -> None:
    variable = agent.variable("txn.it", declared)
    with pytest.raises(TypeError, match=r"1\.5"):
        variable.set(1.5)


def test_an_action_has_neither_scope_nor_prefix_in_its_name(agent: Agent) -> None:
    variable = agent.variable("sess.ip.score", int)
    action = variable.set(1)
    assert (action.scope, action.name) == (Scope.SESS, "ip.score")
    assert variable.full_name == "sess.ip_rep.ip.score"
    assert repr(variable) == "<Variable sess.ip_rep.ip.score>"


@pytest.mark.parametrize("scope", ["proc", "sess", "txn", "req", "res"])
def test_every_scope_of_haproxy_is_known(agent: Agent, scope: str) -> None:
    assert agent.variable(f"{scope}.it", int).set(1).scope.name == scope.upper()


@pytest.mark.parametrize(
    "name", ["user", "txn", "txn.", "global.user", "TXN.user", "txn.a-b", "txn.é", "txn.a b"]
)
def test_a_name_that_haproxy_does_not_take_is_refused(agent: Agent, name: str) -> None:
    with pytest.raises(RegistrationError, match="a name is a scope"):
        agent.variable(name, int)


def test_a_name_with_the_prefix_in_it_is_refused(agent: Agent) -> None:
    with pytest.raises(RegistrationError, match="leave out the prefix"):
        agent.variable("txn.ip_rep.score", int)


def test_a_full_name_of_63_bytes_is_the_longest(agent: Agent) -> None:
    longest = "x" * (63 - len("txn.ip_rep."))
    assert len(agent.variable(f"txn.{longest}", int).full_name) == 63
    with pytest.raises(RegistrationError, match="at most 63 bytes, got 64"):
        agent.variable(f"txn.{longest}x", int)


def test_a_variable_is_declared_once(agent: Agent) -> None:
    agent.variable("txn.it", int)
    agent.variable("sess.it", int)
    with pytest.raises(RegistrationError, match=r"'txn\.it' is already declared"):
        agent.variable("txn.it", str)
    assert [variable.full_name for variable in agent.variables] == [
        "txn.ip_rep.it",
        "sess.ip_rep.it",
    ]


@pytest.mark.parametrize("declared", [float, dict, int | str, "int", None, DataType.NULL])
def test_a_type_that_no_variable_has_is_refused(agent: Agent, declared: Any) -> None:
    with pytest.raises(RegistrationError, match=r"variable 'txn\.it': "):
        agent.variable("txn.it", declared)
