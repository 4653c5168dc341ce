"""Several targets behind a real HAProxy: each gets its own copies."""

import json
import re
import signal
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest

from spoakit.testing.pytest_plugin import StartHAProxy
from tests.support.capture import Capture
from tests.support.certificates import make_authority, make_certificate
from tests.support.dns_server import name_server_in_thread
from tests.support.mirror import Mirror, request, send
from tests.support.mirror_targets import figures, get_all, table, with_one_haproxy
from tests.support.ports import free_port
from tests.support.processes import children_of
from tests.support.programs import ask, connect
from tests.support.waiting import wait_until

EXAMPLE = Path(__file__).parents[2] / "examples/mirror"


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
    assert figures(program, "named")["responses"] == len(received)


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
        f" {5 + looped} received, .* {looped} looped, .* 5 responses, 0 failed", program.log
    )
    assert ("has the marker 'X-Mirrored: 1' already" in program.log) == (looped > 0)


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
        assert " 1 dropped, 0 responses" in wary.log
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
    assert " 50 responses, 0 failed" in program.log
