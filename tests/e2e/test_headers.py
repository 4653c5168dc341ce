"""Whole header blocks that agents return, for add-headers-bin of HAProxy 3.4."""

from http.client import HTTPConnection

import pytest

from spoakit.testing.pytest_plugin import StartHAProxy
from tests.support.haproxy_configuration import haproxy_cfg, spoe_cfg
from tests.support.programs import Serve
from tests.support.waiting import TIMEOUT

AGENT = """
from typing import Annotated
from spoakit import Action, Agent, Fetch, Headers

tested = Agent("tested")
more = tested.variable("txn.more", bytes)

@tested.message("request")
def request(user: Annotated[str, Fetch("url_param(user),url_dec")]) -> Action:
    return more.set(Headers.of(("X-User", user), ("X-Seen", "1"), ("x-seen", "2")).encode())
"""
MESSAGE = """
spoe-message request
    args user=url_param(user),url_dec
    event on-frontend-http-request
"""


@pytest.mark.parametrize("haproxy_binary", ["3.4"], indirect=True)
def test_a_block_of_headers_is_set_and_an_injection_refused(
    serve: Serve, haproxy: StartHAProxy
) -> None:
    program = serve(AGENT)
    running = haproxy(
        haproxy_cfg("http-response add-headers-bin var(txn.tested.more)"),
        files={"spoe.cfg": spoe_cfg(MESSAGE, messages="request", names="more")},
        variables={"AGENT": program.address},
    )

    def headers(user: str) -> list[tuple[str, str]]:
        connection = HTTPConnection("127.0.0.1", running.ports["FRONTEND"], timeout=TIMEOUT)
        connection.request("GET", f"/?user={user}")
        response = connection.getresponse()
        response.read()
        connection.close()
        assert response.status == 200
        return [(name.lower(), value) for name, value in response.getheaders() if name[0] in "xX"]

    assert headers("alice%20b") == [("x-user", "alice b"), ("x-seen", "1"), ("x-seen", "2")]
    assert headers("alice%0d%0aX-Admin:%201") == []
    program.wait_for("header X-User: the value must not contain")
