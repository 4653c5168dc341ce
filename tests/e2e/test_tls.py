"""A real HAProxy speaks SPOP over TLS, with certificates on both sides."""

from contextlib import closing
from pathlib import Path

import pytest

from spoakit.testing.haproxy import HAProxy
from spoakit.testing.pytest_plugin import StartHAProxy
from tests.support.capture import Capture
from tests.support.certificates import Pem, make_authority, make_certificate
from tests.support.haproxy_configuration import haproxy_cfg, show, spoe_cfg
from tests.support.mirror import Mirror
from tests.support.programs import Program, Serve, ask, connect, get
from tests.support.waiting import wait_until

AGENT = """
import os
from spoakit import Action, Agent

tested = Agent("tested")
value = tested.variable("txn.value", int)

@tested.message("request")
def request() -> Action:
    return value.set(os.getpid())
"""
REQUEST = "spoe-message request\n    args\n    event on-frontend-http-request\n"


@pytest.fixture
def authority(tmp_path: Path) -> Pem:
    return make_authority(tmp_path)


def tls_options(folder: Path, authority: Pem) -> tuple[str, ...]:
    """Return options for an agent with a certificate, which wants one of its engines."""
    own = make_certificate(folder, "agent", authority)
    files = (own.certificate, own.key, authority.certificate)
    return tuple(map("{}={}".format, ("--tls-cert", "--tls-key", "--tls-ca"), files))


def tls_server(trusted: Path, own: Path) -> str:
    """Return the parameters with which HAProxy speaks TLS to an agent."""
    return f"inter 100ms ssl verify required ca-file {trusted} crt {own}"


@pytest.fixture
def agent(serve: Serve, tmp_path: Path, authority: Pem) -> Program:
    return serve(AGENT, *tls_options(tmp_path, authority), "-n2")


class Balance:
    """Start a HAProxy that speaks TLS to an agent."""

    def __init__(self, haproxy: StartHAProxy, agent: Program) -> None:
        self._haproxy = haproxy
        self._agent = agent

    def __call__(self, trusted: Path, own: Path) -> HAProxy:
        return self._haproxy(
            haproxy_cfg(
                *show(x_value="var(txn.tested.value)", x_error="var(txn.tested.error)"),
                server=tls_server(trusted, own),
            ),
            files={"spoe.cfg": spoe_cfg(REQUEST, messages="request")},
            variables={"AGENT": self._agent.address},
        )


@pytest.fixture
def balance(haproxy: StartHAProxy, agent: Program) -> Balance:
    return Balance(haproxy, agent)


def test_checks_and_messages_go_over_tls(
    balance: Balance, agent: Program, authority: Pem, tmp_path: Path
) -> None:
    own = make_certificate(tmp_path, "haproxy", authority)
    running = balance(authority.certificate, own.both)
    wait_until(lambda: "L7OK" in running.command("show stat"), "a good health check")
    with closing(connect(running)) as client:
        for _ in range(50):
            answer = ask(client)
            assert int(answer["x-value"]) in agent.children
    assert agent.stop() == 0
    assert "TLS with" not in agent.log


def test_a_haproxy_with_a_strangers_certificate_gets_nothing(
    balance: Balance, agent: Program, authority: Pem, tmp_path: Path
) -> None:
    stranger = make_certificate(tmp_path, "stranger", make_authority(tmp_path, "other"))
    running = balance(authority.certificate, stranger.both)
    wait_until(
        lambda: running.server_status("agents", "agent").startswith("DOWN"), "a failed check"
    )
    answer = get(running)
    assert "x-value" not in answer or not answer["x-value"]
    agent.wait_for("TLS with 127.0.0.1:.* failed: ")


def test_an_agent_with_a_strangers_certificate_is_not_talked_to(
    balance: Balance, agent: Program, authority: Pem, tmp_path: Path
) -> None:
    own = make_certificate(tmp_path, "haproxy", authority)
    running = balance(make_authority(tmp_path, "other").certificate, own.both)
    wait_until(
        lambda: running.server_status("agents", "agent").startswith("DOWN"), "a failed check"
    )
    agent.wait_for("TLS with 127.0.0.1:.* failed: ")


def test_requests_are_copied_for_a_haproxy_with_a_certificate_and_for_no_other(
    mirror: Mirror, target: Capture, authority: Pem, tmp_path: Path
) -> None:
    program = mirror.serve(target.address, *tls_options(tmp_path, authority))
    stranger = make_certificate(tmp_path, "stranger", make_authority(tmp_path, "other"))
    refused = mirror.balance(program, server=tls_server(authority.certificate, stranger.both))
    get(refused, "/refused")
    program.wait_for("TLS with 127.0.0.1:.* failed: ")
    own = make_certificate(tmp_path, "haproxy", authority)
    running = mirror.balance(program, server=tls_server(authority.certificate, own.both))
    with closing(connect(running)) as client:
        for number in range(20):
            assert not ask(client, f"/{number}")["x-error"]
    target.wait_for(20)
    assert program.stop() == 0
    assert sorted(int(each.target[1:]) for each in target.requests) == list(range(20))
