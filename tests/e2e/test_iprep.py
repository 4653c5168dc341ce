"""spoa-iprep scores the clients of a real HAProxy, configured as its document says."""

import csv
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from http.client import RemoteDisconnected
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from spoakit.testing.haproxy import HAProxy
from spoakit.testing.pytest_plugin import StartHAProxy
from tests.support.programs import Program, Start, ask, connect
from tests.support.waiting import wait_until

EXAMPLE = Path(__file__).parents[2] / "examples/ip-reputation"

# As in the README of the C program, but for the port.
SPOE = """
    [ip-reputation]

    spoe-agent iprep-agent
        messages check-client-ip

        option var-prefix iprep

        timeout hello      100ms
        timeout idle       30s
        timeout processing 15ms

        use-backend iprep-backend

    spoe-message check-client-ip
        args src
        event on-client-session
"""
CONFIG = """
    defaults
        mode http
        timeout connect 1s
        timeout client 5s
        timeout server 5s

    frontend my-front
        bind "${FRONTEND}"
        filter spoe engine ip-reputation config spoe-ip-reputation.conf
        %s
        http-request return status 200 hdr x-score "%%[var(sess.iprep.ip_score)]"

    backend iprep-backend
        mode tcp
        timeout server 1m
        server iprep-srv "${AGENT}" check maxconn 5
"""
REJECT = "tcp-request content reject if { var(sess.iprep.ip_score) -m int lt 20 }"
CONNECTIONS = 60


@pytest.fixture
def agent(start: Start) -> Program:
    return start("spoakit.cli.iprep", "-a", "127.0.0.1", "-p", "0", "-n", "2", "--random")


def scores(haproxy: HAProxy, host: str = "127.0.0.1") -> Counter[str]:
    """Return how often each score was shown, "" for connections without, "rejected" if so."""
    shown: Counter[str] = Counter()
    for _ in range(CONNECTIONS):
        with closing(connect(haproxy, host)) as client:
            try:
                shown[ask(client).get("x-score", "")] += 1
            except (RemoteDisconnected, ConnectionResetError):
                shown["rejected"] += 1
    return shown


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_it_scores_every_client_from_0_to_100(
    haproxy: StartHAProxy, agent: Program, host: str
) -> None:
    running = haproxy(
        CONFIG % "",
        files={"spoe-ip-reputation.conf": SPOE},
        variables={"AGENT": agent.address},
        listeners={"FRONTEND": host},
    )
    shown = scores(running, host)
    # 15 ms are not always enough on a busy machine.
    assert shown.pop("", 0) < CONNECTIONS / 2
    assert {int(score) for score in shown} <= set(range(101))
    assert len(shown) > 10
    assert "WARNING" not in agent.log  # for the checks, which connect and close


def test_haproxy_rejects_some_and_lets_the_others_through(
    haproxy: StartHAProxy, agent: Program
) -> None:
    running = haproxy(
        CONFIG % REJECT, files={"spoe-ip-reputation.conf": SPOE}, variables={"AGENT": agent.address}
    )
    shown = scores(running)
    assert 0 < shown.pop("rejected") < CONNECTIONS
    assert min(int(score) for score in shown if score) >= 20


def test_connections_that_are_closed_every_few_frames_cost_no_score(
    haproxy: StartHAProxy, start: Start
) -> None:
    agent = start("spoakit.cli.iprep", "-d", "-a127.0.0.1", "-p0", "-n1", "-f3")
    patient = SPOE.replace("15ms", "5s").replace("100ms", "5s")
    running = haproxy(
        CONFIG % "", files={"spoe-ip-reputation.conf": patient}, variables={"AGENT": agent.address}
    )
    shown = scores(running)
    assert {int(score) for score in shown} <= set(range(101))
    assert agent.log.count(": HELLO ") >= CONNECTIONS / 3


class Origin(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def origin() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Origin) as server:
        thread = Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_the_example_works_and_its_checks_find_the_agent_well(
    haproxy: StartHAProxy, agent: Program, origin: str
) -> None:
    running = haproxy(
        (EXAMPLE / "haproxy.cfg").read_text(),
        files={"spoe.cfg": (EXAMPLE / "spoe.cfg").read_text()},
        variables={"AGENT": agent.address, "ORIGIN": origin},
    )
    wait_until(lambda: check_result(running) == "L7OK", "a good check")
    assert running.server_status("iprep-backend", "iprep-srv") == "UP"
    served = rejected = 0
    for _ in range(CONNECTIONS):
        with closing(connect(running)) as client:
            try:
                ask(client)
                served += 1
            except (RemoteDisconnected, ConnectionResetError):
                rejected += 1
    assert served > 0
    assert rejected > 0


def check_result(haproxy: HAProxy) -> str:
    statistics = haproxy.command("show stat").removeprefix("# ").splitlines()
    [status] = [
        row["check_status"] for row in csv.DictReader(statistics) if row["svname"] == "iprep-srv"
    ]
    return status
