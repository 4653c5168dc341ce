"""The walk-through of spoa-mirror works as it is written, with the files of examples/mirror."""

import http.client
import re
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from spoakit.testing.haproxy import HAProxy
from spoakit.testing.pytest_plugin import StartHAProxy
from tests.support.capture import Capture
from tests.support.ports import free_port
from tests.support.programs import Program, Start, ask, connect, get
from tests.support.waiting import TIMEOUT, wait_until

EXAMPLE = Path(__file__).parents[2] / "examples/mirror"

# What the C program's own files say, in as many words as that takes: no check of the agent, no
# arguments but the five, a prefix for variables, and "mode tcp" for every HAProxy.
PLAIN_HAPROXY_CFG = """
defaults
    mode http
    timeout connect 5000
    timeout client 50000
    timeout server 50000

frontend spoe-mirror-frontend
    bind "${FRONTEND}"
    bind "${FRONTEND_TLS}" ssl crt ssl-cert.pem
    filter spoe engine mirror config spoe.cfg
    default_backend servers-backend

backend servers-backend
    server server-1 "${ORIGIN}"

backend mirroragents
    mode tcp
    balance roundrobin
    timeout connect 5s
    timeout server 1m
    server mirror-server-1 "${AGENT}"
"""
PLAIN_SPOE_CFG = """
[mirror]
    spoe-agent mirror-agent
        log global
        messages mirror
        use-backend mirroragents
        timeout hello 500ms
        timeout idle 10s
        timeout processing 5s
        option var-prefix spoe

    spoe-message mirror
        args arg_method=method arg_path=url arg_ver=req.ver arg_hdrs=req.hdrs_bin arg_body=req.body
        event on-frontend-http-request
"""
LISTENERS = {"FRONTEND": "127.0.0.1", "FRONTEND_TLS": "127.0.0.1"}


@pytest.fixture
def origin() -> Iterator[Capture]:
    with Capture() as origin:
        yield origin


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What make_certificate.sh makes."""
    file = tmp_path_factory.mktemp("certificate") / "ssl-cert.pem"
    subprocess.run(["sh", EXAMPLE / "make_certificate.sh", file], check=True, capture_output=True)
    assert [path.name for path in file.parent.iterdir()] == [file.name]
    return file.read_text()


class Walk:
    """Start spoa-mirror as it is written, and HAProxy with the example's files."""

    def __init__(
        self, start: Start, haproxy: StartHAProxy, origin: Capture, target: Capture
    ) -> None:
        self._start = start
        self._haproxy = haproxy
        self._origin = origin
        self._target = target

    def mirror(self, *options: str) -> Program:
        port = self._target.address.rpartition(":")[2]
        return self._start(
            "spoakit.cli.mirror", "-r0", f"-uhttp://localhost:{port}/", f"-p{free_port()}", *options
        )

    def haproxy(self, program: Program, config: str, spoe: str, certificate: str) -> HAProxy:
        port = program.address.rpartition(":")[2]
        return self._haproxy(
            config,
            files={"spoe.cfg": spoe, "ssl-cert.pem": certificate},
            variables={
                "ORIGIN": self._origin.address,
                "AGENT": f"127.0.0.1:{port}",
                "CERTIFICATE": "ssl-cert.pem",
            },
            listeners=LISTENERS,
        )


@pytest.fixture
def walk(start: Start, haproxy: StartHAProxy, origin: Capture, target: Capture) -> Walk:
    return Walk(start, haproxy, origin, target)


@pytest.fixture
def program(walk: Walk) -> Program:
    return walk.mirror()


def example(name: str) -> str:
    return (EXAMPLE / name).read_text()


def well(haproxy: HAProxy) -> HAProxy:
    """Wait until HAProxy finds the agent well."""
    wait_until(
        lambda: haproxy.server_status("mirroragents", "mirror-agent").startswith("UP"),
        "a good health check",
    )
    return haproxy


@pytest.fixture
def running(walk: Walk, program: Program, certificate: str) -> HAProxy:
    return well(walk.haproxy(program, example("haproxy.cfg"), example("spoe.cfg"), certificate))


def over_tls(haproxy: HAProxy, method: str, path: str, body: bytes = b"") -> int:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    port = haproxy.ports["FRONTEND_TLS"]
    client = http.client.HTTPSConnection("127.0.0.1", port, context=context, timeout=TIMEOUT)
    with closing(client):
        client.request(method, path, body)
        with client.getresponse() as answer:
            answer.read()
            return answer.status


def uncommented(spoe: str, *lines: str) -> str:
    """Take away what makes these lines comments."""
    for line in lines:
        assert f"# {line}" in spoe
        spoe = spoe.replace(f"# {line}", line)
    return spoe


def test_requests_arrive_at_both(running: HAProxy, origin: Capture, target: Capture) -> None:
    get(running, "/one?two")
    target.wait_for(1)
    assert target.requests[0].essence() == origin.requests[0].essence()


def test_so_they_do_from_an_https_frontend(
    running: HAProxy, origin: Capture, target: Capture
) -> None:
    assert over_tls(running, "POST", "/secret?x", b"body") == 200
    target.wait_for(1)
    assert target.requests[0].essence() == origin.requests[0].essence()
    assert target.requests[0].body == b"body"


def test_the_body_of_a_put_is_there(running: HAProxy, origin: Capture, target: Capture) -> None:
    with closing(connect(running)) as client:
        client.request("PUT", "/item/7", bytes(range(256)) * 16)
        client.getresponse().read()
    target.wait_for(1)
    assert target.requests[0].method == b"PUT"
    assert target.requests[0].body == origin.requests[0].body == bytes(range(256)) * 16


def test_marked_requests_are_not_mirrored(running: HAProxy, target: Capture) -> None:
    get(running, "/marked", {"X-Mirrored": "1"})
    get(running, "/plain")
    target.wait_for(1)
    assert [each.target for each in target.requests] == [b"/plain"]


def test_headers_as_a_string_go_through_regsub(
    walk: Walk, program: Program, certificate: str, target: Capture
) -> None:
    spoe = example("spoe.cfg")
    binary = next(line for line in spoe.splitlines() if line.strip().startswith("args arg_method"))
    spoe = uncommented(spoe.replace(binary, ""), "args arg_method")
    running = well(walk.haproxy(program, example("haproxy.cfg"), spoe, certificate))
    get(running, "/foo", {"X-Text": "a foo and foo"})
    target.wait_for(1)
    assert target.requests[0].target == b"/foo"
    assert target.requests[0].field(b"x-text") == b"a bar and bar"


def test_the_messages_for_trying_things_out(
    walk: Walk, program: Program, certificate: str, target: Capture
) -> None:
    spoe = uncommented(example("spoe.cfg"), "messages check-client-ip", "messages test")
    config = example("haproxy.cfg").replace(
        "    default_backend origins",
        "    http-response set-header X-Score %[var(sess.mirror.ip_score)]\n"
        "    default_backend origins",
    )
    running = well(walk.haproxy(program, config, spoe, certificate))
    assert 0 <= int(get(running, "/path?query")["x-score"]) <= 100
    target.wait_for(1)
    program.wait_for(r"test\[16\] name='arg17' type=")
    shown = dict(re.findall(r"test\[(\d+)\] name='arg\d+' (type=.*)", program.log))
    assert len(shown) == 17
    assert shown["4"] == "type=STRING: 'GET'"
    assert shown["5"] == "type=STRING: '/path'"
    assert shown["11"] == "type=IPV4: IPv4Address('127.0.0.1')"
    assert shown["13"] == "type=BOOL: False"
    assert shown["15"].startswith("type=BINARY: b'\\x04host")


@pytest.mark.parametrize(
    "options", [(), ("-n2", "-t50", "-cno-pipelining"), ("-Bepoll", "-casync")]
)
def test_files_in_the_style_of_the_c_program_work_too(
    walk: Walk, certificate: str, target: Capture, options: tuple[str, ...]
) -> None:
    program = walk.mirror(*options)
    running = walk.haproxy(program, PLAIN_HAPROXY_CFG, PLAIN_SPOE_CFG, certificate)
    get(running, "/plain")
    assert over_tls(running, "GET", "/tls") == 200
    target.wait_for(2)
    assert [each.target for each in target.requests] == [b"/plain", b"/tls"]


def test_with_linux_aio_too(walk: Walk, certificate: str, target: Capture) -> None:
    program = walk.mirror("-Blinuxaio")
    running = well(walk.haproxy(program, example("haproxy.cfg"), example("spoe.cfg"), certificate))
    with closing(connect(running)) as client:
        for _ in range(100):
            ask(client)
    target.wait_for(100)
    assert program.stop() == 0
