"""spoa-iprep with a configuration file scores the clients of a real HAProxy."""

import http.client
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from mmdb_writer import MMDBWriter
from netaddr import IPSet

from spoakit.testing.haproxy import HAProxy
from spoakit.testing.pytest_plugin import StartHAProxy
from tests.support.dns_server import name_server_in_thread
from tests.support.haproxy_configuration import haproxy_cfg, show, spoe_cfg
from tests.support.ports import free_port
from tests.support.programs import Program, Start, ask
from tests.support.reputation import CLI, LISTEN, command, is_let_in
from tests.support.waiting import TIMEOUT, wait_until

EXAMPLE = Path(__file__).parents[2] / "examples/ip-reputation"
CONTROL = '[control]\npath = "control.sock"\n'
CHECK = "spoe-message check-client-ip\n    args {}\n    event {}\n"
VARIABLES = "ip_score ip_list ip_asn ip_country ip_category"


def shown(haproxy: HAProxy, address: str, headers: Mapping[str, str]) -> Mapping[str, str]:
    """Return the headers of the answer to a request from an address of this machine."""
    port = haproxy.ports["FRONTEND"]
    client = http.client.HTTPConnection(
        "127.0.0.1", port, timeout=TIMEOUT, source_address=(address, 0)
    )
    with closing(client):
        return ask(client, "/", headers)


def balance(haproxy: StartHAProxy, program: Program) -> HAProxy:
    """Run the example's SPOE and its rule, with an origin of HAProxy's own."""
    configuration = haproxy_cfg(
        "tcp-request content reject if { var(sess.iprep.ip_score) -m int lt 20 }",
        agents=("ip-reputation",),
    )
    spoe = (EXAMPLE / "spoe.cfg").read_text()
    return haproxy(
        configuration.replace("backend agents", "backend iprep-backend"),
        # 100 ms are not always enough on a busy machine.
        files={"spoe.cfg": spoe.replace("processing 100ms", "processing 2s")},
        variables={"AGENT": program.address},
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where `start` runs programs, with the example's files."""
    for name in ("iprep.toml", "blocked.txt"):
        shutil.copy(EXAMPLE / name, tmp_path)
    return tmp_path


def test_the_example_rejects_who_is_on_its_list_and_who_is_banned(
    start: Start, haproxy: StartHAProxy, folder: Path
) -> None:
    program = start(CLI, "--config", "iprep.toml", "-n", "2", *LISTEN)
    running = balance(haproxy, program)
    assert is_let_in(running, "127.0.0.1")
    assert not is_let_in(running, "127.0.0.2")
    assert "score of 0" in command(folder, "lookup", "127.0.0.2")

    # A ban, seen by both workers, and its end.
    command(folder, "ban", "127.0.0.3", "--for", "1h")
    wait_until(lambda: not any(is_let_in(running, "127.0.0.3") for _ in range(4)), "the ban")
    command(folder, "unban", "127.0.0.3")
    wait_until(lambda: all(is_let_in(running, "127.0.0.3") for _ in range(4)), "its end")
    command(folder, "ban", "127.0.0.4", "--for", "1s")
    wait_until(lambda: is_let_in(running, "127.0.0.4"), "the end of the ban")

    # Another list, and one that is broken.
    (folder / "blocked.txt").write_text("127.0.0.5\n")
    wait_until(lambda: not is_let_in(running, "127.0.0.5"), "the new list")
    wait_until(lambda: is_let_in(running, "127.0.0.2"), "the new list in both workers")
    (folder / "blocked.txt").write_text("a\nb\n")
    program.wait_for(r"ERROR .*source mine: .*blocked\.txt: .*line 1: 'a' is not an address")
    assert not is_let_in(running, "127.0.0.5")
    assert "stays in use" in program.log
    assert program.stop() == 0
    assert not (folder / "control.sock").exists()


def test_bans_survive_a_kill(start: Start, haproxy: StartHAProxy, folder: Path) -> None:
    program = start(CLI, "--config", "iprep.toml", "-n", "3", *LISTEN)
    command(folder, "ban", "127.0.0.0/29", "--for", "1h", "--reason", "a network")
    program.kill()
    again = start(CLI, "--config", "iprep.toml", "-n", "3", *LISTEN)
    running = balance(haproxy, again)
    assert not is_let_in(running, "127.0.0.1")
    assert is_let_in(running, "127.0.0.9")
    assert "127.0.0.0/29" in command(folder, "bans")


def test_another_worker_keeps_the_sources_when_the_keeper_is_killed(
    start: Start, haproxy: StartHAProxy, folder: Path
) -> None:
    program = start(CLI, "--config", "iprep.toml", "-n", "2", *LISTEN)
    updater = program.wait_for(r"\[(\d+)\] INFO spoakit.iprep: table 1: ")[1]
    os.kill(int(updater), signal.SIGKILL)
    (folder / "blocked.txt").write_text("127.0.0.7\n")
    program.wait_for("it is replaced")
    running = balance(haproxy, program)
    wait_until(lambda: not any(is_let_in(running, "127.0.0.7") for _ in range(4)), "the new list")
    assert "score of 0" in command(folder, "lookup", "127.0.0.7")


DNSBL = """
[[source]]
name = "bl"
type = "dnsbl"
zone = "bl.example"
nameservers = ["{}"]
deadline = "5s"
"""


def test_banned_and_listed_clients_do_not_wait_for_a_dnsbl(
    start: Start, haproxy: StartHAProxy, folder: Path
) -> None:
    with name_server_in_thread() as server, (folder / "iprep.toml").open("a") as config:
        server.answers |= {f"{n}.0.0.127.bl.example": ["127.0.0.2"] for n in (2, 9)}
        config.write(DNSBL.format(server.address))
        config.flush()
        program = start(CLI, "--config", "iprep.toml", "-n", "1", *LISTEN)
        running = balance(haproxy, program)
        command(folder, "ban", "127.0.4.0/24")
        server.delay = 0.03  # as a resolver that has to ask others
        assert is_let_in(running, "127.0.0.8")
        assert not is_let_in(running, "127.0.0.9")
        assert {f"{n}.0.0.127.bl.example" for n in (8, 9)} <= set(server.asked)

        server.silent = True
        started = time.monotonic()
        assert not any(is_let_in(running, f"127.0.4.{n}") for n in range(1, 9))
        assert not is_let_in(running, "127.0.0.2")
        assert not is_let_in(running, "127.0.0.9")
        assert time.monotonic() - started < 1.9  # of 20 s, if each waited
        assert not [name for name in server.asked if name.endswith(".4.0.127.bl.example")]
        program.wait_for(r"WARNING .*'timeout processing' must be longer than 5000 ms")


class Hanging(BaseHTTPRequestHandler):
    """Answers with a list once it may."""

    may = threading.Event()

    def do_GET(self) -> None:
        self.may.wait(TIMEOUT)
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"127.0.0.2\n")

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def feed() -> Iterator[str]:
    """The address of a feed that hangs until `Hanging.may` is set."""
    Hanging.may.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), Hanging) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/list"
        Hanging.may.set()
        server.shutdown()
        thread.join()


def test_health_checks_fail_until_there_is_a_table(
    haproxy: StartHAProxy, folder: Path, feed: str
) -> None:
    (folder / "iprep.toml").write_text(
        f'cache = "cache"\n[[source]]\nname = "feed"\ntype = "list"\nurl = "{feed}"\n'
    )
    port = free_port()
    program = Program(folder, CLI, "--config", "iprep.toml", "-a127.0.0.1", f"-p{port}", "-n2")
    try:
        running = haproxy(
            haproxy_cfg(server="inter 100ms fall 1 rise 1", backend="timeout check 300ms"),
            files={
                "spoe.cfg": spoe_cfg(
                    CHECK.format("src", "on-client-session"), messages="check-client-ip"
                )
            },
            variables={"AGENT": f"127.0.0.1:{port}"},
        )
        wait_until(lambda: running.server_status("agents", "agent") == "DOWN", "failing checks")
        assert "listening" not in program.log
        Hanging.may.set()
        wait_until(lambda: running.server_status("agents", "agent") == "UP", "good checks")
        program.wait_for("1 entries of 1 sources")
        assert program.stop() == 0
    finally:
        program.kill()


@pytest.fixture
def databases(folder: Path) -> None:
    """Put a database of countries and one of autonomous systems into the folder."""
    for name, record in (
        ("country", {"country": {"iso_code": "XX"}}),
        ("asn", {"autonomous_system_number": 64500}),
    ):
        writer = MMDBWriter(6, "Test", ipv4_compatible=True)
        writer.insert_network(IPSet(["203.0.113.0/24"]), record)
        writer.to_db_file(str(folder / f"{name}.mmdb"))


@pytest.mark.usefixtures("databases")
def test_all_variables_of_the_client_behind_trusted_proxies(
    start: Start, haproxy: StartHAProxy, folder: Path
) -> None:
    (folder / "drop.json").write_text('{"asn": 64500}\n{"type": "metadata", "records": 1}\n')
    names = VARIABLES.split()
    (folder / "iprep.toml").write_text(
        f"""
        [policy]
        block-private = true
        [answers]
        variables = {names}
        scope = "txn"
        [forwarded]
        argument = "xff"
        trusted = ["127.0.0.8/30"]
        [[source]]
        name = "country"
        type = "mmdb"
        path = "country.mmdb"
        provides = "country"
        scores = {{ XX = 60 }}
        [[source]]
        name = "asn"
        type = "mmdb"
        path = "asn.mmdb"
        provides = "asn"
        [[source]]
        name = "drop"
        type = "drop"
        path = "drop.json"
        score = 7
        category = "hijacked"
        """
    )
    program = start(CLI, "--config", "iprep.toml", "-n", "1", *LISTEN)
    arguments = "src xff=req.fhdr(x-forwarded-for)"
    running = haproxy(
        haproxy_cfg(
            *show(**{f"x_{name}": f"var(txn.iprep.{name})" for name in names}), agents=("iprep",)
        ),
        files={
            "spoe.cfg": spoe_cfg(
                CHECK.format(arguments, "on-frontend-http-request"),
                messages="check-client-ip",
                agent="iprep",
            )
        },
        variables={"AGENT": program.address},
    )

    def seen(address: str, forwarded: str) -> list[str]:
        headers = shown(running, address, {"X-Forwarded-For": forwarded})
        return [headers.get(f"x-{name.replace('_', '-')}", "").strip() for name in names]

    listed = ["7", "drop", "64500", "XX", "hijacked"]
    assert seen("127.0.0.9", "198.51.100.1, 203.0.113.5") == listed
    assert seen("127.0.0.9", "198.51.100.1, 203.0.113.5:4711, 127.0.0.10") == listed
    assert seen("127.0.0.9", "203.0.113.5, 198.51.100.1") == ["100", "", "", "", ""]
    assert seen("127.0.0.1", "203.0.113.5") == ["100", "", "", "", ""]


def answer(haproxy: HAProxy, address: str, *headers: tuple[str, str]) -> tuple[str, str]:
    """Return the score and the list of a request with header lines, from this machine's address."""
    client = http.client.HTTPConnection(
        "127.0.0.1", haproxy.ports["FRONTEND"], timeout=TIMEOUT, source_address=(address, 0)
    )
    with closing(client):
        client.putrequest("GET", "/")
        for name, value in headers:
            client.putheader(name, value)
        client.endheaders()
        response = client.getresponse()
        response.read()
        return response.headers.get("x-score", "").strip(), response.headers.get("x-list", "")


def behind_proxies(
    start: Start, haproxy: StartHAProxy, folder: Path, arguments: str, forwarded: str = ""
) -> HAProxy:
    """Run an agent that trusts 127.0.0.0/24, and HAProxy, with arguments of check-client-ip."""
    (folder / "list.txt").write_text("203.0.113.0/24\n")
    (folder / "iprep.toml").write_text(
        f"""
        [policy]
        block-private = true
        [answers]
        variables = ["ip_score", "ip_list"]
        scope = "txn"
        [forwarded]
        argument = "xff"
        trusted = ["127.0.0.0/24"]
        {forwarded}
        [bans]
        path = "bans.db"
        message = true
        [control]
        path = "control.sock"
        [[source]]
        name = "mine"
        type = "list"
        path = "list.txt"
        """
    )
    program = start(CLI, "--config", "iprep.toml", "-n", "1", *LISTEN)
    ban = (
        f"spoe-message ban-client-ip\n    args src int(3600) {arguments.partition(' ')[2]}\n"
        "    event on-frontend-http-request if { path /wp-login.php }\n"
    )
    return haproxy(
        haproxy_cfg(
            *show(x_score="var(txn.iprep.ip_score)", x_list="var(txn.iprep.ip_list)"),
            agents=("iprep",),
        ),
        files={
            "spoe.cfg": spoe_cfg(
                CHECK.format(arguments, "on-frontend-http-request") + ban,
                messages="check-client-ip ban-client-ip",
                agent="iprep",
            )
        },
        variables={"AGENT": program.address},
    )


XFF = "X-Forwarded-For"
LINES = "xff=req.fhdr(x-forwarded-for,-{})"
LISTED, UNKNOWN = ("0", "mine"), ("100", "")


@pytest.mark.parametrize(
    "arguments", ["src xff=req.hdrs_bin", f"src {LINES.format(2)} {LINES.format(1)}"]
)
def test_all_lines_of_the_header_count(
    start: Start, haproxy: StartHAProxy, folder: Path, arguments: str
) -> None:
    running = behind_proxies(start, haproxy, folder, arguments)
    for lines, expected in (
        (("203.0.113.5", "127.0.0.7"), LISTED),
        (("198.51.100.1, 203.0.113.5", "127.0.0.8, 127.0.0.7"), LISTED),
        (("203.0.113.5", "198.51.100.1"), UNKNOWN),
        (("203.0.113.5",), LISTED),
        (("198.51.100.1",), UNKNOWN),
        ((), UNKNOWN),
    ):
        headers = [(XFF, line) for line in lines]
        assert answer(running, "127.0.0.9", *headers) == expected
    assert answer(running, "127.0.1.9", (XFF, "203.0.113.5")) == UNKNOWN  # not a trusted one


def test_the_fetches_give_what_the_documentation_says(haproxy: StartHAProxy) -> None:
    expressions = {
        "x_last": "req.fhdr(x-forwarded-for)",
        "x_value": "req.hdr(x-forwarded-for)",
        "x_before": "req.fhdr(x-forwarded-for,-2)",
        "x_none": "req.fhdr(x-forwarded-for,-3)",
    }
    rules = [f"http-request set-var(txn.{name}) {fetch}" for name, fetch in expressions.items()]
    shown = show(**{name: f"var(txn.{name})" for name in expressions})
    running = haproxy(haproxy_cfg(*rules, *shown, agents=()), variables={"AGENT": "127.0.0.1:1"})
    port = running.ports["FRONTEND"]
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT)) as client:
        client.putrequest("GET", "/")
        for line in ("a, b", "c, d"):
            client.putheader(XFF, line)
        client.endheaders()
        headers = client.getresponse().headers
    found = {name: headers.get(name.replace("_", "-"), "").strip() for name in expressions}
    assert found == {"x_last": "c, d", "x_value": "d", "x_before": "a, b", "x_none": ""}


def test_forwarded_of_rfc_7239_names_the_client(
    start: Start, haproxy: StartHAProxy, folder: Path
) -> None:
    running = behind_proxies(start, haproxy, folder, "src xff=req.hdrs_bin", 'header = "forwarded"')
    for lines, expected in (
        (("for=203.0.113.5;proto=https",), LISTED),
        (('for=198.51.100.1, For="203.0.113.5:4711"', "for=127.0.0.7"), LISTED),
        (('for="198.51.100.1', "for=203.0.113.5", "by=_a;for=127.0.0.7"), LISTED),
        (("for=203.0.113.5, for=_hidden",), UNKNOWN),
    ):
        headers = [("Forwarded", line) for line in lines]
        assert answer(running, "127.0.0.9", *headers, (XFF, "198.51.100.1")) == expected


def test_an_address_comes_as_text(start: Start, haproxy: StartHAProxy, folder: Path) -> None:
    running = behind_proxies(start, haproxy, folder, "req.hdr(x-real-ip)")
    assert answer(running, "127.0.1.9", ("X-Real-IP", "203.0.113.5")) == LISTED
    assert answer(running, "127.0.1.9", ("X-Real-IP", "[64:ff9b::203.0.113.5]:80")) == LISTED
    assert answer(running, "127.0.1.9", ("X-Real-IP", "198.51.100.1")) == UNKNOWN
    assert answer(running, "127.0.1.9", ("X-Real-IP", "unknown")) == ("", "")


def test_a_message_bans_the_client_behind_proxies_and_not_the_proxy(
    start: Start, haproxy: StartHAProxy, folder: Path
) -> None:
    running = behind_proxies(start, haproxy, folder, "src xff=req.hdrs_bin")
    port = running.ports["FRONTEND"]
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT)) as client:
        ask(client, "/wp-login.php", {XFF: "2001:db8:7::1"})
        ask(client, "/wp-login.php", {})  # from the proxy itself, which is trusted
    wait_until(lambda: "2001:db8:7::/64" in command(folder, "bans"), "the ban")
    assert answer(running, "127.0.0.9", (XFF, "2001:db8:7::2")) == ("0", "ban")
    assert answer(running, "127.0.0.9", (XFF, "2001:db8:8::2")) == UNKNOWN
    assert answer(running, "127.0.0.1") == UNKNOWN
    assert "127.0.0.1" not in command(folder, "bans")


def test_haproxys_own_rules_ban(start: Start, haproxy: StartHAProxy, folder: Path) -> None:
    (folder / "iprep.toml").write_text('[bans]\npath = "bans.db"\nmessage = true\n' + CONTROL)
    start(CLI, "--config", "iprep.toml", "-n", "2", "--unix", "agent.sock")
    ban = (
        "spoe-message ban-client-ip\n    args src int(3600)\n"
        "    event on-frontend-http-request if { path /wp-login.php }\n"
    )
    running = haproxy(
        haproxy_cfg(
            "http-request deny if { var(sess.iprep.ip_score) -m int 0 }", agents=("iprep",)
        ),
        files={
            "spoe.cfg": spoe_cfg(
                CHECK.format("src", "on-client-session") + ban,
                messages="check-client-ip ban-client-ip",
                agent="iprep",
            )
        },
        variables={"AGENT": f"unix@{folder / 'agent.sock'}"},
    )
    assert is_let_in(running, "127.0.0.2")
    port = running.ports["FRONTEND"]
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT)) as client:
        ask(client, "/wp-login.php")
    wait_until(lambda: not any(is_let_in(running, "127.0.0.1") for _ in range(4)), "the ban")
    assert is_let_in(running, "127.0.0.2")
    assert "127.0.0.1" in command(folder, "bans")


def test_a_reload_changes_scores_and_a_bad_one_nothing(
    start: Start, haproxy: StartHAProxy, folder: Path
) -> None:
    program = start(CLI, "--config", "iprep.toml", "-n", "2", *LISTEN)
    running = balance(haproxy, program)
    good = (folder / "iprep.toml").read_text()
    (folder / "iprep.toml").write_text(good.replace("score = 0", "score = 101"))
    program.process.send_signal(signal.SIGHUP)
    program.wait_for(r"reload refused.*iprep\.toml: source\[1\]\.score: 101 is not in the range")
    assert not is_let_in(running, "127.0.0.2")
    (folder / "iprep.toml").write_text(good.replace("score = 0", "score = 50"))
    program.process.send_signal(signal.SIGHUP)
    wait_until(lambda: all(is_let_in(running, "127.0.0.2") for _ in range(4)), "the new score")
    assert program.stop() == 0
