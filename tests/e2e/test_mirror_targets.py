"""Several targets behind a real HAProxy: each gets what it is to get, whatever the others do."""

import json
import os
import re
import signal
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from time import monotonic

import pytest

from benchmarks.resetting import resetting
from spoakit.testing.haproxy import HAProxy
from spoakit.testing.pytest_plugin import StartHAProxy
from tests.support.capture import Capture, Received, answer_ok
from tests.support.certificates import make_authority, make_certificate
from tests.support.dns_server import name_server_in_thread
from tests.support.haproxy_versions import REQUIRED
from tests.support.load import Load
from tests.support.mirror import Mirror, request, send
from tests.support.ports import free_port
from tests.support.processes import children_of
from tests.support.programs import Program, ask, connect
from tests.support.waiting import wait_until

# Where nothing depends on the version.
with_one_haproxy = pytest.mark.parametrize("haproxy_binary", [REQUIRED], indirect=True)

EXAMPLE = Path(__file__).parents[2] / "examples/mirror"
# Has a program look names up in a file of the test's.
RECEIVED = (
    *("not selected", "rate limited", "looped", "malformed", "body cut"),
    *("dropped", "answered", "failed"),
)


def table(name: str, address: str, *lines: str, scheme: str = "http") -> str:
    """Return a target's table of a configuration file."""
    return "\n".join(
        ("[[target]]", f"name = '{name}'", f"url = '{scheme}://{address}'", *lines, "")
    )


def figures(program: Program, name: str) -> dict[str, int]:
    """Return a target's counters as the program told them at its end."""
    [line] = re.findall(rf"INFO spoakit.mirror: {name}: (\d+ received, .*)", program.log)
    found = {name: int(number) for number, name in re.findall(r"(\d+) ([a-z ]+)", line)}
    assert found["received"] == sum(found[name] for name in RECEIVED)
    return found


def get_all(haproxy: HAProxy, *paths: str, **headers: str) -> list[str]:
    """Send GETs over one connection; return what went wrong according to HAProxy."""
    with closing(connect(haproxy)) as client:
        return [ask(client, path, headers)["x-error"] for path in paths]


# Where they go.


@with_one_haproxy
def test_a_name_that_has_a_new_address_is_followed(mirror: Mirror) -> None:
    with Capture(host="127.0.0.1") as before, name_server_in_thread() as dns:
        _, port = before.address.split(":")
        with Capture(int(port), host="127.0.0.2") as after:
            dns.ttl = 0
            dns.answers["target.example"] = ["127.0.0.1"]
            settings = f"lifetime = '50ms'\nnameservers = ['{dns.address}']"
            program = mirror.serve_configured(table("named", f"target.example:{port}", settings))
            running = mirror.balance(program)
            get_all(running, *["/before"] * 10)
            before.wait_for(10)
            dns.answers["target.example"] = ["127.0.0.2"]

            def is_followed() -> bool:
                get_all(running, "/between")
                return bool(after.requests)

            wait_until(is_followed, "a copy at the new address")
            assert program.stop() == 0
            received = [*before.requests, *after.requests]
            assert {each.target for each in after.requests} == {b"/between"}
    assert figures(program, "named")["answered"] == len(received)


# Which requests.


def test_a_sample_by_a_cookie_takes_whole_sessions(mirror: Mirror) -> None:
    with Capture() as half, Capture() as same, Capture() as everything:
        program = mirror.serve_configured(
            table("half", half.address, "sample = 50", "sample-by = 'cookie:session'")
            + table("same", same.address, "sample = 50", "sample-by = 'key'")
            + table("everything", everything.address),
            "-n2",
        )
        running = mirror.balance(program, arg_key="req.cook(session)")
        sessions = 40
        for number in range(sessions):
            cookie = f"a=b; session=user-{number}"
            assert not any(get_all(running, *["/login", "/shop", "/pay"], Cookie=cookie))
        everything.wait_for(3 * sessions)
        assert program.stop() == 0
        taken = Counter(each.field(b"cookie") for each in half.requests)
        assert set(taken.values()) == {3}
        assert 5 < len(taken) < 35
        assert Counter(each.field(b"cookie") for each in same.requests) == taken
        assert len(everything.requests) == 3 * sessions


@with_one_haproxy
def test_a_target_gets_what_matches_all_of_its_rules(mirror: Mirror) -> None:
    with Capture() as matched, Capture() as others:
        rules = (
            "match.methods = ['GET', 'PURGE']",
            r"match.path = '^/api/v\d+/'",
            "match.host = ['*.example.org', 'example.net']",
            "match.header = { x-tenant = '^acme$', accept = 'json' }",
        )
        program = mirror.serve_configured(
            table("matched", matched.address, *rules) + table("others", others.address)
        )
        running = mirror.balance(program)

        def offer(*request: str) -> None:
            method, path, host, tenant, accept = request
            lines = (f"Host: {host}", f"X-Tenant: {tenant}", f"Accept: {accept}", "", "")
            send(running, "\r\n".join((f"{method} {path} HTTP/1.1", *lines)).encode())

        wanted = ("GET", "/api/v1/x?y", "www.example.org", "acme", "application/json")
        offer(*wanted)
        offer("PURGE", "/api/v22/", "EXAMPLE.net:8080", "acme", "text/html, application/json")
        for place, other in enumerate(("POST", "/v1/x", "example.com", "acme2", "text/html")):
            offer(*wanted[:place], other, *wanted[place + 1 :])
        others.wait_for(7)
        assert program.stop() == 0
        assert sorted(each.method for each in matched.requests) == [b"GET", b"PURGE"]
        assert len(others.requests) == 7
    assert figures(program, "matched")["not selected"] == 5


# What is changed.


def test_copies_are_rewritten_as_each_target_wants_them(mirror: Mirror) -> None:
    with Capture() as changed, Capture() as kept:
        rules = (
            "host = 'target'",
            "marker = 'X-Mirrored: yes'",
            "forwarded-for = true",
            "request-id = true",
            "[target.headers]",
            "secrets = 'strip'",
            "remove = ['X-Internal', 'accept']",
            "set = { X-Stage = 'shadow' }",
            "add = { Via = 'mirror' }",
            "[target.path]",
            "strip-prefix = '/shop'",
            r"pattern = '^/item/(\d+)'",
            r"replace = '/items/\1'",
            "add-prefix = '/v2'",
        )
        program = mirror.serve_configured(
            table("changed", changed.address + "/base/", *rules) + table("kept", kept.address)
        )
        running = mirror.balance(
            program,
            "unique-id-format %[uuid()]",
            "http-response set-header x-id %[unique-id]",
            arg_src="src",
            arg_id="unique-id",
        )
        secrets = {
            "Authorization": "Bearer abc",
            "Proxy-Authorization": "Basic abc",
            "Cookie": "session=1",
            "X-Api-Key": "k",
        }
        headers = {
            "Accept": "*/*",
            "X-Internal": "1",
            "X-Stage": "production",
            "X-Forwarded-For": "192.0.2.1",
            "Via": "1.1 front",
        }
        with closing(connect(running)) as client:
            shown = ask(client, "/shop/item/7?a=%2F", headers | secrets)
            changed.wait_for(1)  # Copies that go at the same time arrive in any order.
            kept.wait_for(1)
            ask(client, "/shopping", {"X-Request-Id": "given"})
        changed.wait_for(2)
        copy, other = changed.requests
        assert copy.target == b"/base/v2/items/7?a=%2F"
        assert other.target == b"/base/v2/shopping"
        assert [field for field in copy.fields if field[0] != b"accept-encoding"] == [
            (b"host", changed.address.encode()),
            (b"x-forwarded-for", b"192.0.2.1, 127.0.0.1"),
            (b"via", b"1.1 front"),
            (b"x-request-id", shown["x-id"].encode()),
            (b"x-stage", b"shadow"),
            (b"via", b"mirror"),
            (b"x-mirrored", b"yes"),
        ]
        assert other.field(b"x-request-id") == b"given"
        assert other.field(b"x-forwarded-for") == b"127.0.0.1"
        untouched = kept.requests[0]
        assert untouched.target == b"/shop/item/7?a=%2F"
        assert dict(untouched.fields).keys() >= {name.lower().encode() for name in secrets}
        assert not untouched.has(b"x-mirrored")


@with_one_haproxy
def test_user_and_password_of_a_url_are_sent_and_not_shown(mirror: Mirror) -> None:
    with Capture() as capture:
        user = "http://me:s3cret%21@"
        dead = f"{user}127.0.0.1:{free_port()}/"
        program = mirror.run("-u", dead, "-u", f"{user}{capture.address}/base/", "-d1", "-i1s")
        running = mirror.balance(program)
        get_all(running, "/a", authorization="Bearer of-the-client")
        capture.wait_for(1)
        program.wait_for("cannot be reached")
        for pid in (program.process.pid, *children_of(program.process.pid)):
            shown = Path(f"/proc/{pid}/cmdline").read_text()
            assert f"-u\0http://{'*' * len('me:s3cret%21')}@{capture.address}/base/\0" in shown
            assert "s3cret" not in shown
        program.wait_for(f"target http://{capture.address}/base/")
        assert program.stop() == 0
        [copy] = capture.requests
        assert f'"GET http://{capture.address}/base/a HTTP/1.1" 200' in program.log
    fields = [field for field in copy.fields if field[0].lower() == b"authorization"]
    assert fields == [(b"authorization", b"Basic bWU6czNjcmV0IQ==")]
    for secret in ("s3cret", "me:", "bWU6czNjcmV0IQ", "of-the-client"):
        assert secret not in program.log


@pytest.mark.parametrize("knows_the_marker", ["haproxy", "mirror"])
def test_marked_copies_that_come_back_to_haproxy_are_not_copied_again(
    mirror: Mirror, haproxy: StartHAProxy, knows_the_marker: str
) -> None:
    spoe = (EXAMPLE / "spoe.cfg").read_text()
    if knows_the_marker == "mirror":
        spoe = spoe.replace("unless { req.hdr(x-mirrored) -m found }", "")

    def configured(address: str) -> str:
        return table("loop", address, "marker = 'X-Mirrored: 1'")

    # The target is the HAProxy that sends the copies, whose port is known only when it runs.
    program = mirror.serve_configured(configured(f"127.0.0.1:{free_port()}"))
    with Capture() as origin:
        running = haproxy(
            (EXAMPLE / "haproxy.cfg").read_text(),
            files={"spoe.cfg": spoe},
            variables={"ORIGIN": origin.address, "AGENT": program.address},
        )
        mirror.configure(configured(f"127.0.0.1:{running.ports['FRONTEND']}"))
        program.process.send_signal(signal.SIGHUP)
        program.wait_for("reloaded: 1 targets, 1 new, 1 removed")
        for number in range(5):
            send(running, request(f"GET /{number}"))
        origin.wait_for(10)
        assert program.stop() == 0
        assert len(origin.requests) == 10
        marked = [each.target for each in origin.requests if each.has(b"x-mirrored")]
        assert sorted(marked) == [b"/0", b"/1", b"/2", b"/3", b"/4"]
    looped = 5 if knows_the_marker == "mirror" else 0
    assert re.search(
        f" {5 + looped} received, .* {looped} looped, .* 5 answered, 0 failed", program.log
    )
    assert ("has the marker 'X-Mirrored: 1' already" in program.log) == (looped > 0)


# Reloads.


@pytest.mark.parametrize("workers", ["-n1", "-n2"])
def test_nothing_is_lost_by_reloads_under_load(mirror: Mirror, workers: str) -> None:
    with Capture() as first, Capture() as second, Capture() as always:
        steady = table("always", always.address)
        program = mirror.serve_configured(table("first", first.address) + steady, workers)
        running = mirror.balance(program)
        count = int(workers[2:])
        with Load(running) as load:
            load.wait_for(30)
            mirror.configure("drain = '11s'\n" + table("second", second.address) + steady)
            program.process.send_signal(signal.SIGHUP)
            wait_until(lambda: program.log.count("reloaded: ") >= count, "a reload")
            load.wait_for(30)
            mirror.configure("[[target]]\nurl = 'ftp://nowhere'\n")

            def refused() -> bool:
                # Signals within half a second of each other are one.
                program.process.send_signal(signal.SIGHUP)
                return (
                    re.search(r"ERROR .*mirror\.toml: target\[1\]\.url: .*ftp", program.log)
                    is not None
                )

            wait_until(refused, "a refused reload")
            load.wait_for(30)
        assert program.stop() == 0
        assert program.log.count("another drain takes a restart") == 1
        total = len(load.answers)
        assert not any(answer.error for answer in load.answers)
        assert len(always.requests) == total
        assert len(first.requests) + len(second.requests) == total
        assert len(first.requests) >= 30
        assert len(second.requests) >= 60
    for name in ("first", "second", "always"):
        assert f"{name}: " in program.log
    assert " dropped, " in program.log
    assert not re.search("[1-9][0-9]* (dropped|failed|refused)", program.log)


@with_one_haproxy
def test_a_watched_file_is_reloaded_when_it_changes(mirror: Mirror) -> None:
    with Capture() as first, Capture() as second:
        program = mirror.serve_configured(table("first", first.address), "--watch")
        running = mirror.balance(program)
        get_all(running, "/1")
        first.wait_for(1)

        def changed() -> bool:
            # What changes before it is watched is not noticed.
            mirror.configure(table("second", second.address))
            return "reloaded: " in program.log

        wait_until(changed, "a reload")
        get_all(running, "/2")
        second.wait_for(1)
        mirror.configure("[[target]]\nurl = 1\n")
        program.wait_for(r"mirror\.toml: target\[1\]\.url: .*str")
        get_all(running, "/3")
        second.wait_for(2)
    assert len(first.requests) == 1


# Targets in trouble.


@with_one_haproxy
def test_a_dead_target_is_told_of_once_and_the_other_never_notices(mirror: Mirror) -> None:
    port = free_port()
    with Capture() as well:
        program = mirror.serve_configured(
            table("dead", f"127.0.0.1:{port}", "timeouts.max-backoff = '200ms'")
            + table("well", well.address)
        )
        running = mirror.balance(program)
        before = memory(program)
        for number in range(200):
            assert not any(get_all(running, f"/{number}"))
        well.wait_for(200)
        program.wait_for(r"WARNING .*dead: .*; copies wait")
        assert memory(program) - before < 6 * 1024 * 1024
        with Capture(port) as back:
            back.wait_for(200)
            program.wait_for(
                r"INFO .*dead: can be reached again after \d+\.\d s; \d+ copies waiting"
            )
            assert {each.target for each in back.requests} == {
                each.target for each in well.requests
            }
    assert program.stop() == 0
    assert program.log.count("; copies wait\n") == 1
    assert program.log.count("reached again") == 1
    assert "well: " not in program.log.partition("stopping")[0]
    dead, good = figures(program, "dead"), figures(program, "well")
    assert (dead["answered"], dead["failed"], dead["dropped"]) == (200, 0, 0)
    assert dead["connect failures"] > 0
    assert (good["answered"], good["connect failures"], good["retried"]) == (200, 0, 0)


def memory(program: Program) -> int:
    """Return the bytes that its only process has in use."""
    pages = Path(f"/proc/{program.process.pid}/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def slow(seconds: float) -> Iterator[Capture]:
    """Run a target that takes so long for each answer, until its block ends."""
    over = threading.Event()

    def answer(received: Received) -> bytes:
        over.wait(seconds)
        return answer_ok(received)

    with Capture(answer=answer) as target:
        try:
            yield target
        finally:
            over.set()


def test_targets_in_trouble_touch_neither_a_healthy_one_nor_production(mirror: Mirror) -> None:
    bounds = "queue = { length = 1000, bytes = '256KiB' }"
    with ExitStack() as stack:
        healthy = stack.enter_context(Capture())
        tardy = stack.enter_context(slow(0.5))
        reset = stack.enter_context(resetting())
        alone = table("healthy", healthy.address)
        troubled = (
            table("slow", tardy.address, "connections = 4", bounds)
            + table("dead", f"127.0.0.1:{free_port()}", bounds)
            + table("resetting", f"127.0.0.1:{reset}", bounds)
        )
        program = mirror.serve_configured(alone, "--drain", "0")
        running = mirror.balance(program)
        body = b"x" * 10_000

        def measure(path: str, count: int) -> list[float]:
            """Return what requests took, the quickest first."""
            took = []
            with closing(connect(running)) as client:
                for _ in range(count):
                    before = monotonic()
                    client.request("POST", path, body)
                    with client.getresponse() as answer:
                        answer.read()
                        assert answer.headers["x-error"] == ""
                    took.append(monotonic() - before)
            return sorted(took)

        undisturbed = measure("/undisturbed", 300)
        mirror.configure(alone + troubled)
        program.process.send_signal(signal.SIGHUP)
        program.wait_for("reloaded: 4 targets, 3 new, 0 removed")
        before = memory(program)
        disturbed = measure("/disturbed", 900)
        # The time of a machine that others use as well varies more than this does; a request that
        # waited for a target would take half a second.
        for share in (0.5, 0.95):
            before_it = undisturbed[int(share * len(undisturbed))]
            assert disturbed[int(share * len(disturbed))] < 2 * before_it + 0.01
        healthy.wait_for(1200)
        # 900 bodies for each of three targets are 27 MB, were there no bounds.
        assert memory(program) - before < 6 * 1024 * 1024
        assert program.stop() == 0
        assert len(healthy.requests) == 1200
        assert all(each.body == body for each in healthy.requests)
    assert figures(program, "healthy")["answered"] == 1200
    for name in ("slow", "dead", "resetting"):
        trouble = figures(program, name)
        assert trouble["received"] == 900
        assert trouble["dropped"] > 700
        assert f"WARNING spoakit.mirror: {name}: the queue is full, the oldest" in program.log
    assert figures(program, "dead")["connect failures"] > 0
    assert figures(program, "resetting")["failed"] > 0
    assert program.log.count("; copies wait\n") == 2


@with_one_haproxy
def test_a_rate_and_a_short_queue_bound_what_a_target_gets(mirror: Mirror) -> None:
    with Capture() as limited, slow(60) as tardy:
        program = mirror.serve_configured(
            table("limited", limited.address, "rate = 5")
            + table(
                "newest",
                tardy.address,
                "connections = 1",
                "queue = { length = 10, overflow = 'drop-newest' }",
            ),
            "--drain",
            "0",
        )
        running = mirror.balance(program)
        assert not any(get_all(running, *(f"/{number}" for number in range(50))))
        tardy.wait_for(1)
        assert program.stop() == 0
        assert tardy.requests[0].target == b"/0"
    rated, dropping = figures(program, "limited"), figures(program, "newest")
    accepted = rated["answered"] + rated["failed"]  # the stop may come before an answer
    assert accepted + rated["rate limited"] == 50
    assert 1 <= accepted <= 10
    assert dropping["dropped"] >= 39
    assert "newest: the queue is full, the newest request is dropped" in program.log


# Stopping, and being asked.


@with_one_haproxy
def test_a_stop_waits_for_the_queue_as_long_as_it_was_told_to(mirror: Mirror) -> None:
    with Capture() as quick, socket.create_server(("127.0.0.1", 0)) as silent:
        host, port = silent.getsockname()
        program = mirror.serve_configured(
            table("quick", quick.address) + table("silent", f"{host}:{port}", "connections = 2"),
            "--drain",
            "300ms",
        )
        running = mirror.balance(program)
        get_all(running, *(["/"] * 20))
        before = monotonic()
        assert program.stop() == 0
        assert 0.3 <= monotonic() - before < 2
        assert len(quick.requests) == 20
    assert "silent: stopped with 18 requests not sent" in program.log
    counted = figures(program, "silent")
    assert (counted["received"], counted["dropped"], counted["failed"]) == (20, 18, 2)
    assert figures(program, "quick")["answered"] == 20
    # The log of requests is written by itself, and may come after that.
    own = [line for line in program.log.splitlines() if not line.startswith("[ 1]")]
    assert "silent: 20 received" in own[-1]


@pytest.mark.parametrize("workers", ["-n1", "-n2"])
@with_one_haproxy
def test_sigusr2_shows_the_counters(mirror: Mirror, workers: str) -> None:
    with Capture() as target:
        program = mirror.serve_configured(
            table("all", target.address) + table("none", target.address + "/none", "sample = 0"),
            workers,
        )
        running = mirror.balance(program)
        get_all(running, *(["/"] * 12))
        target.wait_for(12)

        def shown() -> bool:
            program.process.send_signal(signal.SIGUSR2)
            return program.log.count("requests 12 (+") >= 2

        # What is counted is published within the second.
        wait_until(shown, "the counters")
        [*_, none] = re.findall("target none: (.*)", program.log)
        [*_, all_of_them] = re.findall("target all: (.*)", program.log)
        assert "not copied not_selected 12 (+" in none
        assert "responses 2xx 12 (+" in all_of_them
        assert "first byte p50 " in all_of_them
        assert "failures" not in program.log


# TLS.


@with_one_haproxy
def test_a_targets_certificate_is_verified_unless_it_is_not_to_be(
    mirror: Mirror, haproxy: StartHAProxy, tmp_path: Path
) -> None:
    pem = make_certificate(tmp_path, "target", make_authority(tmp_path)).both.read_text()
    with Capture() as plain:
        config = (
            "defaults\n    mode http\n    timeout connect 1s\n    timeout client 9s\n"
            '    timeout server 9s\nlisten tls\n    bind "${FRONTEND}" ssl crt target.pem\n'
            '    server plain "${PLAIN}"\n'
        )
        tls = haproxy(config, files={"target.pem": pem}, variables={"PLAIN": plain.address})
        url = f"https://localhost:{tls.ports['FRONTEND']}/"
        wary = mirror.run("-u", url, "--drain", "0")
        running = mirror.balance(wary)
        assert not any(get_all(running, "/wary"))
        wary.wait_for("WARNING .*certificate verify failed.*copies wait")
        assert wary.stop() == 0
        assert " 1 dropped, 0 answered" in wary.log
        trusting = mirror.run("-u", url, "--insecure")
        running = mirror.balance(trusting)
        assert not any(get_all(running, "/trusting"))
        trusting.wait_for(rf'"GET {url}trusting HTTP/1.1" 200 0/2 .* ok')
        assert [each.target for each in plain.requests] == [b"/trusting"]


# The access log.


@with_one_haproxy
def test_the_log_of_requests_can_be_json(mirror: Mirror, target: Capture) -> None:
    program = mirror.serve(target.address, "--log-format", "json")
    running = mirror.balance(program)
    send(running, request('POST /"quoted"?x=%22', body=b"12345"))
    program.wait_for(r'"ms":')
    # The other lines are JSON, too, and have another form.
    lines = [json.loads(text) for text in program.log.splitlines()]
    [line] = [line for line in lines if "logger" not in line]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line.pop("time"))
    assert 0 < line.pop("ms") < 1000
    assert line == {
        "worker": 1,
        "target": f"http://{target.address}/",
        "method": "POST",
        "url": f'http://{target.address}/"quoted"?x=%22',
        "version": "1.1",
        "status": 200,
        "up": 5,
        "down": 2,
        "result": "ok",
    }


@with_one_haproxy
@pytest.mark.parametrize(
    ("options", "lines"), [((), 50), (("--log-sample", "10"), 5), (("--quiet",), 0)]
)
def test_the_log_of_requests_can_be_less(
    mirror: Mirror, target: Capture, options: tuple[str, ...], lines: int
) -> None:
    program = mirror.serve(target.address, *options)
    running = mirror.balance(program)
    assert not any(get_all(running, *(["/"] * 50)))
    target.wait_for(50)
    assert program.stop() == 0
    assert program.log.count(" ok\n") == lines
    assert " 50 answered, 0 failed" in program.log
