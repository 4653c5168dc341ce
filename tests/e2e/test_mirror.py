"""spoa-mirror copies the requests of a real HAProxy, and production does not notice."""

import re
import socket
from contextlib import closing
from pathlib import Path
from time import monotonic

import pytest

from spoakit.testing.pytest_plugin import StartHAProxy
from tests.support.capture import Capture
from tests.support.mirror import Mirror, request, send
from tests.support.ports import free_port
from tests.support.programs import ask, connect

EXAMPLE = Path(__file__).parents[2] / "examples/mirror"

FORM = b"name=J%C3%BCrgen&colour=blue"
JSON = b'{"price": 12.50}'
CHUNKS = b"5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n"
REQUESTS = {
    "query": request("GET /search?q=a%20b&q=c%2Fd&e=", "Accept: */*"),
    "percent": request("GET /caf%C3%A9/%2e%2e/%00%7E"),
    "head": request("HEAD /index.html"),
    "post": request("POST /form", "Content-Type: text/plain", body=FORM),
    "empty-post": request("POST /form", "Content-Length: 0"),
    "put": request("PUT /item/7", body=bytes(range(256))),
    "patch": request("PATCH /item/7", "Content-Type: application/json", body=JSON),
    "delete": request("DELETE /item/8"),
    "delete-body": request("DELETE /item/8", body=JSON),
    "propfind": request("PROPFIND /folder", "Depth: 1", body=b"<propfind/>"),
    "options": request("OPTIONS *"),
    "chunked": request("POST /upload", "Transfer-Encoding: chunked", body=CHUNKS),
    "duplicates": request("GET /", "Cookie: a=1", "X-Tag: one", "Cookie: b=2", "X-Tag: two"),
    "empty-value": request("GET /", "X-Empty:", "X-After: here"),
    "bytes": request("GET /", "X-Latin: J\xfcrgen", "X-Utf8: J\xc3\xbcrgen"),
    "many": request("GET /", *(f"X-Field-{number}: {number}" for number in range(60))),
    "hop-by-hop": request("GET /", "Connection: close", "Accept-Language: de"),
    "old": request("GET /old", version="1.0"),
    "large": request("POST /large", body=b"0123456789abcdef" * 512),
}


@pytest.mark.parametrize("workers", ["1", "2"])
def test_copies_are_what_the_origin_received(
    mirror: Mirror, haproxy: StartHAProxy, target: Capture, workers: str
) -> None:
    program = mirror.serve(target.address, "-n", workers)
    with Capture() as origin:
        running = haproxy(
            (EXAMPLE / "haproxy.cfg").read_text(),
            files={"spoe.cfg": (EXAMPLE / "spoe.cfg").read_text()},
            variables={"ORIGIN": origin.address, "AGENT": program.address},
        )
        for name, message in REQUESTS.items():
            line, _, rest = message.partition(b"\r\n")
            named = line + f"\r\nX-Name: {name}\r\n".encode() + rest
            assert send(running, named).startswith(b"HTTP/1.1 200 ")
        target.wait_for(len(REQUESTS))
        originals = {each.field(b"x-name"): each.essence() for each in origin.requests}
        copies = {each.field(b"x-name"): each.essence() for each in target.requests}
        assert len(target.requests) == len(REQUESTS)
        for each in originals:
            assert copies[each] == originals[each]


def test_an_absolute_target_becomes_a_path_and_a_missing_host_the_targets(
    mirror: Mirror, target: Capture
) -> None:
    _, running = mirror(target.address)
    send(running, request("GET http://www.example.org/absolute?x=1"))
    target.wait_for(1)
    send(running, b"GET /hostless HTTP/1.0\r\n\r\n")
    target.wait_for(2)
    absolute, hostless = target.requests
    assert absolute.target == b"/absolute?x=1"
    assert absolute.fields == ((b"host", b"www.example.org"),)
    assert hostless.target == b"/hostless"
    assert hostless.fields == ((b"host", target.address.encode()),)


def test_headers_as_text_may_be_changed_on_their_way(mirror: Mirror, target: Capture) -> None:
    _, running = mirror(target.address, arg_hdrs="req.hdrs,regsub(foo,bar)")
    fields = ("X-Text: a foo", "X-Empty:", "X-Twice: 1", "X-Twice: 2", "X-Latin: J\xfcrgen")
    send(running, request("PUT /foo", *fields, body=b"foo"))
    target.wait_for(1)
    [copy] = target.requests
    assert (copy.method, copy.target, copy.body) == (b"PUT", b"/foo", b"foo")
    assert copy.fields == (
        (b"host", b"www.example.org"),
        (b"x-text", b"a bar"),
        (b"x-empty", b""),
        (b"x-twice", b"1"),
        (b"x-twice", b"2"),
        (b"x-latin", b"J\xfcrgen"),
        (b"content-length", b"3"),
    )


def test_each_copy_has_a_line_in_the_form_of_the_c_program(mirror: Mirror, target: Capture) -> None:
    program, running = mirror(target.address)
    send(running, request("GET /one?two"))
    program.wait_for(
        rf'(?m)^\[ 1\]\[ {{4}}\d\.\d{{6}}\] "GET http://{target.address}/one\?two HTTP/1\.1" '
        r"200 0/2 \d+\.\d{3} ok$"
    )
    send(running, request("POST /", body=b"12345"))
    program.wait_for(rf'"POST http://{target.address}/ HTTP/1\.1" 200 5/2 \d+\.\d{{3}} ok\n')


def test_a_target_that_comes_up_later_gets_the_requests_from_before(mirror: Mirror) -> None:
    address = f"127.0.0.1:{free_port()}"
    program, running = mirror(address)
    for number in range(3):
        send(running, request(f"GET /{number}"))
    program.wait_for("copies wait")
    with Capture(int(address.rpartition(":")[2])) as target:
        target.wait_for(3)
        program.wait_for("reached again")
    assert sorted(each.target for each in target.requests) == [b"/0", b"/1", b"/2"]
    assert program.stop() == 0


def test_production_does_not_wait_for_a_target_that_never_answers(mirror: Mirror) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # connections are made, and no more
        host, port = silent.getsockname()
        program, running = mirror(f"{host}:{port}")
        with closing(connect(running)) as client:
            ask(client)
            before = monotonic()
            errors = [ask(client)["x-error"] for _ in range(200)]
            assert monotonic() - before < 2
    assert not any(errors)
    assert program.process.poll() is None


def test_an_argument_that_it_does_not_know_is_warned_of_once(
    mirror: Mirror, target: Capture
) -> None:
    program, running = mirror(target.address, arg_other="req.body_size")
    for number in range(1, 11):
        send(running, request("GET /"))
        target.wait_for(number)
    assert program.stop() == 0
    assert [line for line in program.log.splitlines() if "WARNING" in line] == [
        line for line in program.log.splitlines() if "'arg_other'" in line
    ]
    assert program.log.count("'arg_other'") == 1


def test_what_is_queued_at_a_stop_is_sent_first(mirror: Mirror, target: Capture) -> None:
    program, running = mirror(target.address)
    with closing(connect(running)) as client:
        for _ in range(100):
            ask(client)
    assert program.stop() == 0
    assert len(target.requests) == 100
    assert program.log.count(" ok\n") == 100
    assert re.search("100 received, .* 0 dropped, 100 responses, 0 failed", program.log)


def test_a_body_that_haproxy_cut_is_not_copied_but_told_of(mirror: Mirror, target: Capture) -> None:
    program, running = mirror(target.address)
    body = b"x" * 40_000  # more than tune.bufsize
    assert send(running, request("POST /large", body=body)).startswith(b"HTTP/1.1 200 ")
    program.wait_for(r"not copied: \d+ bytes of a body of 40000 .* 'option http-buffer-request'")
    send(running, request("GET /after"))
    target.wait_for(1)
    assert [each.target for each in target.requests] == [b"/after"]
