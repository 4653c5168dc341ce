"""Copies are what came, answers are read as they are, and bodies that HAProxy cut are told of."""

import re
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from spoakit.testing.haproxy import HAProxy
from spoakit.testing.pytest_plugin import StartHAProxy
from tests.support.capture import Capture, Received, answer_ok
from tests.support.certificates import make_authority, make_certificate
from tests.support.haproxy_versions import REQUIRED
from tests.support.mirror import SIZE, Mirror, request, send, send_over_http2
from tests.support.waiting import TIMEOUT, wait_until

# Where nothing depends on the version.
with_one_haproxy = pytest.mark.parametrize("haproxy_binary", [REQUIRED], indirect=True)

JSON = b'{"price": 12.50}'


# Requests.


def test_a_body_for_which_the_client_waited_to_be_asked_is_there(
    mirror: Mirror, target: Capture
) -> None:
    program, running = mirror(target.address)
    head = request("PATCH /item", "Expect: 100-continue", f"Content-Length: {len(JSON)}")
    with (
        socket.create_connection(("127.0.0.1", running.ports["FRONTEND"]), TIMEOUT) as client,
        client.makefile("rb") as stream,
    ):
        client.sendall(head)
        assert stream.readline() == b"HTTP/1.1 100 Continue\r\n"
        client.sendall(JSON)
        assert stream.readline() == b"\r\n"
        assert stream.readline() == b"HTTP/1.1 200 OK\r\n"
    program.wait_for(rf'"PATCH http://{target.address}/item HTTP/1\.1" 200 {len(JSON)}/2 .* ok\n')
    [copy] = target.requests
    assert (copy.method, copy.body) == (b"PATCH", JSON)
    assert not copy.has(b"expect")


@with_one_haproxy
@pytest.mark.parametrize("method", ["PURGE", "MKCOL", "M-SEARCH", "x!#$%&'*+.^_`|~9"])
def test_any_method_is_copied(mirror: Mirror, target: Capture, method: str) -> None:
    program, running = mirror(target.address)
    send(running, request(f"{method} /thing", body=JSON))
    program.wait_for(f' "{re.escape(method)} http://.*/thing HTTP/1.1" 200 {len(JSON)}/2 .* ok\n')
    [copy] = target.requests
    assert (copy.method, copy.target, copy.body) == (method.encode(), b"/thing", JSON)


@with_one_haproxy
def test_fields_of_all_sizes_keep_their_order(mirror: Mirror, target: Capture) -> None:
    _, running = mirror(target.address)
    # Where SPOP's lengths take another byte, and then names that are no matter of course.
    sizes = (0, 1, 239, 240, 241, 2287, 2288, 2289)
    fields = [(f"x-size-{size}", "v" * size) for size in sizes]
    fields += [("x" * 255, "long name"), ("x_under.score", "1"), ("x-size-1", "again")]
    fields += [("x-bytes", "\x80\xff J\xc3\xbcrgen"), ("x-spaces", "a  b\tc")]
    send(running, request("GET /", *(f"{name}: {value}" for name, value in fields)))
    target.wait_for(1)
    [copy] = target.requests
    expected = [(name.encode(), value.encode("latin-1")) for name, value in fields]
    assert list(copy.fields) == [(b"host", b"www.example.org"), *expected]


@with_one_haproxy
def test_the_targets_path_goes_in_front_once_whatever_the_slashes(
    mirror: Mirror, target: Capture
) -> None:
    bases = ("", "/one", "/two/", "/with%20space/deep//")
    program = mirror.run(*(f"-uhttp://{target.address}{base}" for base in bases))
    running = mirror.balance(program)
    for path in ("/", "/one?a=%2F&b=//", "//double//%2e%2e/"):
        target.requests.clear()
        send(running, request(f"GET {path}"))
        target.wait_for(len(bases))
        fronts = (b"", b"/one", b"/two", b"/with%20space/deep")
        assert sorted(each.target for each in target.requests) == sorted(
            front + path.encode() for front in fronts
        )


@pytest.mark.parametrize(
    ("expression", "copied"),
    [
        ("", b""),  # no such argument
        ("req.body", b""),  # empty
        ("req.hdr(x-none)", b""),  # NULL
        ("req.hdr(x-text)", b"text"),  # STR
    ],
)
def test_the_argument_for_the_body_may_be_anything(
    mirror: Mirror, target: Capture, expression: str, copied: bytes
) -> None:
    program, running = mirror(target.address, arg_body=expression)
    send(running, request("GET /", "X-Text: text"))
    program.wait_for(rf'HTTP/1\.1" 200 {len(copied)}/2 .* ok\n')
    [copy] = target.requests
    assert copy.body == copied
    assert copy.has(b"content-length") == bool(copied)


@with_one_haproxy
@pytest.mark.parametrize("expression", ["", "req.hdr(x-none)"])
def test_where_no_body_is_asked_for_none_is_missing(
    mirror: Mirror, target: Capture, expression: str
) -> None:
    program, running = mirror(target.address, arg_body=expression, **SIZE)
    send(running, request("POST /", body=JSON))
    program.wait_for(r'"POST .* HTTP/1\.1" 200 0/2 .* ok\n')
    [copy] = target.requests
    assert (copy.method, copy.body, copy.field(b"content-length")) == (b"POST", b"", b"0")
    assert "WARNING" not in program.log


def test_what_would_break_out_of_a_request_is_refused_and_counted(
    mirror: Mirror, target: Capture
) -> None:
    program = mirror.serve(target.address)
    running = mirror.balance(
        program,
        arg_path="url,url_dec",
        arg_hdrs="req.hdrs,url_dec",
        arg_method="method,concat(,txn.more)",
    )
    evil = "%20HTTP/1.1%0d%0aX-Evil:%20yes%0d%0a%0d%0aGET%20/evil"
    for line, *fields in (
        (f"GET /target{evil}",),
        ("GET /nul%00",),
        ("GET /feed%0a",),
        ("GET /value", "X-Value: one%0atwo"),
        ("GET /value", "X-Value: one%0dtwo"),
        ("GET /value", "X-Value: one%00two"),
        ("GET /name", "X-Name%20and: value"),
    ):
        send(running, request(line, *fields))
    # Two fields instead of one, but none that frames anything.
    send(running, request("POST /last", "X-One: 1%0d%0aTransfer-Encoding: chunked", body=b"12345"))
    target.wait_for(1)
    [copy] = target.requests
    assert (copy.target, copy.body) == (b"/last", b"12345")
    assert not copy.has(b"transfer-encoding")
    assert program.stop() == 0
    # The url_dec of 3.2 makes nothing of a NUL.
    refused = 5 if running.version >= "3.2" else 7
    received = refused + 1
    told = rf" {received} received, .* {refused} malformed, .* 1 responses, 0 failed"
    assert re.search(told, program.log)
    assert "a request is not copied: " in program.log


# Answers.


def chunked(content: bytes, size: int) -> bytes:
    parts = [content[start : start + size] for start in range(0, len(content), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (*parts, b""))


LARGE = b"z" * 300_000
OK = b"HTTP/1.1 200 OK\r\n"
# For each path the answer, and its status and size in the log.
ANSWERS = {
    "/plain": (OK + b"Content-Length: 3\r\n\r\nabc", 200, 3),
    "/hints": (
        b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>\r\n\r\n"
        b"HTTP/1.1 100 Continue\r\n\r\n" + OK + b"Content-Length: 3\r\n\r\nabc",
        200,
        3,
    ),
    "/created": (b"HTTP/1.1 201 \r\nContent-Length: 0\r\n\r\n", 201, 0),
    "/no-content": (b"HTTP/1.1 204 No Content\r\n\r\n", 204, 0),
    "/not-modified": (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 100\r\n\r\n", 304, 0),
    "/error": (b"HTTP/1.1 503 No\r\ncontent-length:4\r\n\r\nbusy", 503, 4),
    "/chunked": (OK + b"Transfer-Encoding: chunked\r\n\r\n" + chunked(LARGE, 9999), 200, 300_000),
    "/trailers": (
        OK + b"Transfer-Encoding: chunked\r\n\r\n2;a=b\r\nok\r\n0\r\nX-Sum: 1\r\n\r\n",
        200,
        2,
    ),
    "/large": (OK + b"Content-Length: 300000\r\n\r\n" + LARGE, 200, 300_000),
    "/until-close": (OK + b"Connection: close\r\n\r\n" + LARGE, 200, 300_000),
    "/nothing-until-close": (OK + b"Connection: close\r\n\r\n", 200, 0),
    "/closed-after": (OK + b"Content-Length: 3\r\nConnection: close\r\n\r\nabc", 200, 3),
    "/old": (b"HTTP/1.0 200 OK\r\nConnection: close\r\n\r\nabc", 200, 3),
    "/head": (OK + b"Content-Length: 1000\r\n\r\n", 200, 0),
    "/head-chunked": (OK + b"Transfer-Encoding: chunked\r\n\r\n", 200, 0),
}


@with_one_haproxy
def test_answers_of_every_form_are_read_to_their_end(mirror: Mirror) -> None:
    def answer(received: Received) -> bytes:
        return ANSWERS[received.target.decode()][0]

    with Capture(answer=answer) as target:
        program, running = mirror(target.address)
        for path, (answered, status, size) in ANSWERS.items():
            method = "HEAD" if path.startswith("/head") else "GET"
            send(running, request(f"{method} {path}"))
            version = "1.0" if answered.startswith(b"HTTP/1.0") else "1.1"
            program.wait_for(
                rf'"{method} http://{target.address}{path} HTTP/{re.escape(version)}" '
                rf"{status} 0/{size} \d+\.\d+ ok\n"
            )
        assert len(target.requests) == len(ANSWERS)
        # What came over one connection after the other came in order, and nothing was left over.
        assert [each.target.decode() for each in target.requests] == list(ANSWERS)
    assert program.stop() == 0
    assert re.search(f" {len(ANSWERS)} responses, 0 failed, .* 0 connect failures", program.log)


# Bodies that did not fit.

CUT = """
[[target]]
url = "http://{skip}"
name = "skip"
[[target]]
url = "http://{send}"
name = "send"
truncated = "send"
[[target]]
url = "http://{mark}"
name = "mark"
truncated = "mark"
"""


@pytest.mark.parametrize("framing", ["content-length", "chunked"])
def test_a_body_that_haproxys_buffer_cut_is_skipped_sent_or_marked(
    mirror: Mirror, framing: str
) -> None:
    body = b"0123456789" * 4000
    message = request("POST /cut", body=body)
    if framing == "chunked":
        message = request(
            "POST /cut", "Transfer-Encoding: chunked", body=chunked(body, len(body) // 10)
        )
    with Capture() as skip, Capture() as sent, Capture() as mark:
        program = mirror.serve_configured(
            CUT.format(skip=skip.address, send=sent.address, mark=mark.address)
        )
        running = mirror.balance(program, **SIZE)
        send(running, message)
        send(running, message)
        send(running, request("POST /small", "Transfer-Encoding: chunked", body=chunked(JSON, 5)))
        for each, count in ((skip, 1), (sent, 3), (mark, 3)):
            each.wait_for(count)
        assert [each.target for each in skip.requests] == [b"/small"]
        [copy, *_] = [each for each in sent.requests if each.target == b"/cut"]
        assert 10_000 < len(copy.body) < 16_384
        assert body.startswith(copy.body)
        assert not copy.has(b"x-mirror-truncated")
        marked, _, small = sorted(mark.requests, key=lambda request: request.target)
        assert body.startswith(marked.body)
        # Of a chunked body HAProxy knows no more than the chunk that it is in.
        missing = b"%d" % (len(body) - len(marked.body))
        assert marked.field(b"x-mirror-truncated") == (
            missing if framing == "content-length" else b"unknown"
        )
        assert small.body == JSON
        assert not small.has(b"x-mirror-truncated")
    names = ("skip", "send", "mark")
    for name in names:
        [warning] = re.findall(f"WARNING .*{name}: a request is .*", program.log)
        assert re.search("tune.bufsize .*max-frame-size .*-m", warning)
    assert program.stop() == 0
    for name, skipped in zip(names, (2, 0, 0), strict=True):
        assert re.search(f"{name}: 3 received, .* {skipped} body cut, .* 2 cut bodies", program.log)


# Bodies of which nothing says how large they are.


def test_a_chunked_body_that_haproxy_does_not_wait_for_is_told_of(
    mirror: Mirror, target: Capture
) -> None:
    program = mirror.serve(target.address)
    running = mirror.balance(program, "no option http-buffer-request", **SIZE)
    with (
        socket.create_connection(("127.0.0.1", running.ports["FRONTEND"]), TIMEOUT) as client,
        client.makefile("rb") as stream,
    ):
        client.sendall(request("PUT /late", "Transfer-Encoding: chunked"))
        target.wait_for(1)
        client.sendall(chunked(JSON, 5))
        assert stream.readline() == b"HTTP/1.1 200 OK\r\n"
    for line in ("GET /without", "PUT /empty"):
        send(running, request(line))
    target.wait_for(3)
    late, *_ = target.requests
    assert (late.target, late.body, late.field(b"content-length")) == (b"/late", b"", b"0")
    warnings = re.findall("WARNING spoakit.mirror: .*", program.log)
    assert len(warnings) == 1
    assert re.search(
        "copied with the part .* set 'option http-buffer-request' .* 1 so far",
        warnings[0],
    )


def test_a_chunked_body_that_haproxy_does_not_wait_for_may_be_left_out(
    mirror: Mirror, target: Capture
) -> None:
    program = mirror.serve(target.address, "--truncated-suspect", "skip")
    running = mirror.balance(program, "no option http-buffer-request", **SIZE)
    with (
        socket.create_connection(("127.0.0.1", running.ports["FRONTEND"]), TIMEOUT) as client,
        client.makefile("rb") as stream,
    ):
        client.sendall(request("PUT /late", "Transfer-Encoding: chunked"))
        program.wait_for("a request is not copied: .* set 'option http-buffer-request'")
        client.sendall(chunked(JSON, 5))
        assert stream.readline() == b"HTTP/1.1 200 OK\r\n"
    send(running, request("GET /after"))
    target.wait_for(1)
    assert [each.target for each in target.requests] == [b"/after"]


def test_a_chunked_body_that_haproxy_waits_for_is_copied_without_a_warning(
    mirror: Mirror, target: Capture
) -> None:
    program, running = mirror(target.address, **SIZE)
    with (
        socket.create_connection(("127.0.0.1", running.ports["FRONTEND"]), TIMEOUT) as client,
        client.makefile("rb") as stream,
    ):
        client.sendall(request("PUT /late", "Transfer-Encoding: chunked"))
        client.sendall(chunked(JSON, 5))
        assert stream.readline() == b"HTTP/1.1 200 OK\r\n"
    target.wait_for(1)
    assert target.requests[0].body == JSON
    assert "WARNING" not in program.log


@pytest.mark.parametrize("fields", [1, 40])
def test_a_body_over_http2_that_fills_the_frame_is_told_of(
    mirror: Mirror, target: Capture, fields: int
) -> None:
    program, running = mirror(target.address, **SIZE)
    body = b"0123456789" * 20_000
    head = ((b":method", b"PUT"), (b":path", b"/large"), *PSEUDO)
    more = tuple((b"x-field-%d" % number, b"some value") for number in range(fields))
    assert send_over_http2(running, *head, *more, body=body) == b"200"
    target.wait_for(1)
    [copy] = target.requests
    assert 13_000 < len(copy.body) < 16_384
    assert body.startswith(copy.body)
    program.wait_for(
        "copied with the part .* fills HAProxy's frame, .* raise tune.bufsize, and max-frame"
    )


@pytest.mark.parametrize("size", [1, 13_000])
def test_a_body_over_http2_that_leaves_room_in_the_frame_is_whole(
    mirror: Mirror, target: Capture, size: int
) -> None:
    program, running = mirror(target.address, **SIZE)
    head = ((b":method", b"PUT"), (b":path", b"/small"), *PSEUDO)
    assert send_over_http2(running, *head, body=bytes(size)) == b"200"
    target.wait_for(1)
    assert target.requests[0].body == bytes(size)
    assert "WARNING" not in program.log


@with_one_haproxy
def test_copies_may_go_without_bodies_or_without_those_that_are_large(mirror: Mirror) -> None:
    with Capture() as bare, Capture() as small:
        program = mirror.serve_configured(
            f"[[target]]\nurl = 'http://{bare.address}'\nname = 'bare'\nbody = 'none'\n"
            f"[[target]]\nurl = 'http://{small.address}'\nname = 'small'\nmax-body = 100\n"
        )
        running = mirror.balance(program, **SIZE)
        send(running, request("POST /cut", body=bytes(40_000)))
        send(running, request("POST /chunks", "Transfer-Encoding: chunked", body=chunked(JSON, 5)))
        send(running, request("GET /plain"))
        bare.wait_for(3)
        small.wait_for(2)
        by_target = {each.target: each for each in bare.requests}
        for path in (b"/cut", b"/chunks"):
            copy = by_target[path]
            assert (copy.body, copy.field(b"content-length")) == (b"", b"0")
            assert not copy.has(b"transfer-encoding")
        assert not by_target[b"/plain"].has(b"content-length")
        assert {each.target: each.body for each in small.requests} == {
            b"/chunks": JSON,
            b"/plain": b"",
        }
    assert "bare: a request" not in program.log
    assert program.stop() == 0
    assert re.search("small: 3 received, .* 1 body too large, .* 0 cut bodies", program.log)


# HTTP/2 and gRPC.

# A HAProxy as the target, since it has TLS and HTTP/2.
TLS_TARGET = """
defaults
    mode http
    timeout connect 1s
    timeout client 10s
    timeout server 10s
frontend tls
    bind "${{FRONTEND}}" ssl crt target.pem alpn {alpn}
    http-request add-header x-arrived-over %[req.ver]
    default_backend plain
backend plain
    server plain "${{PLAIN}}"
"""
PSEUDO = ((b":scheme", b"http"), (b":authority", b"www.example.org"))


def test_what_came_over_http2_goes_over_http2_where_the_target_speaks_it(
    mirror: Mirror, haproxy: StartHAProxy, tmp_path: Path
) -> None:
    authority = make_authority(tmp_path)
    pem = make_certificate(tmp_path, "target", authority).both.read_text()

    def tls_target(plain: Capture, alpn: str) -> HAProxy:
        config = TLS_TARGET.format(alpn=alpn)
        return haproxy(config, files={"target.pem": pem}, variables={"PLAIN": plain.address})

    with Capture() as new, Capture() as old, Capture() as only:
        targets = (
            (new, tls_target(new, "h2,http/1.1")),
            (old, tls_target(old, "http/1.1")),
            (only, tls_target(only, "h2 proto h2")),
        )
        program = mirror.serve_configured(
            f"[defaults]\ntls.ca-file = '{authority.certificate}'\n"
            + "".join(
                f"[[target]]\nurl = 'https://localhost:{running.ports['FRONTEND']}'\n"
                for _, running in targets
            )
        )
        running = mirror.balance(program)
        fields = ((b"x-empty", b""), (b"x-twice", b"1"), (b"x-twice", b"2"), (b"cookie", b"a=1"))
        head = ((b":method", b"PATCH"), (b":path", b"/a?b=%2F"), *PSEUDO, *fields)
        assert send_over_http2(running, *head, body=JSON) == b"200"
        for each in (new, old, only):
            each.wait_for(1)
        send(running, request("GET /over-1"))
        for each in (new, old, only):
            each.wait_for(2)
        versions = (
            (new, b"2.0", b"1.1"),
            (old, b"1.1", b"1.1"),
            (only, b"2.0", b"2.0"),  # which speaks nothing else
        )
        for each, version, version_of_1 in versions:
            copy, other = sorted(each.requests, key=lambda request: request.method, reverse=True)
            assert copy.field(b"x-arrived-over") == version
            assert (copy.method, copy.target, copy.body) == (b"PATCH", b"/a?b=%2F", JSON)
            kept = [field for field in copy.fields if field in fields]
            assert kept == list(fields)
            assert copy.field(b"host") == b"www.example.org"
            assert (other.target, other.field(b"x-arrived-over")) == (b"/over-1", version_of_1)
        program.wait_for(rf'"PATCH https://.*/a\?b=%2F HTTP/2" 200 {len(JSON)}/2 .* ok\n')
        program.wait_for(rf'"PATCH https://.*/a\?b=%2F HTTP/1\.1" 200 {len(JSON)}/2 .* ok\n')


HTTP2_TARGET = """
defaults
    mode http
    timeout connect 1s
    timeout client 10s
    timeout server 10s
frontend h2
    bind "${FRONTEND}" proto h2
    default_backend plain
backend plain
    server plain "${PLAIN}"
"""


def test_a_response_cut_behind_the_target_costs_itself_alone(
    mirror: Mirror, haproxy: StartHAProxy
) -> None:
    def answer(request: Received) -> bytes:
        if request.target == b"/cut":
            return b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\nConnection: close\r\n\r\nok"
        if request.target == b"/unchanged":
            return b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\nETag: x\r\n\r\n"
        return answer_ok(request)

    with Capture(answer=answer) as plain:
        target = haproxy(HTTP2_TARGET, variables={"PLAIN": plain.address})
        url = f"http://127.0.0.1:{target.ports['FRONTEND']}"
        program = mirror.run("-u", url, "--http", "2")
        running = mirror.balance(program)
        for path in ("/unchanged", "/cut", *(f"/{number}" for number in range(10)), "/unchanged"):
            send(running, request(f"GET {path}"))
        plain.wait_for(13)
        program.wait_for(r'/9 HTTP/2" 200 0/2 .* ok\n')
        program.wait_for(r'/unchanged HTTP/2" 304 0/0 .* ok\n(.*\n)*.*/unchanged HTTP/2" 304 ')
        program.wait_for(r'/cut HTTP/2" 200 0/2 .* (malformed response: |the target reset )')
    assert program.stop() == 0
    assert re.search(" 13 received, .* 12 responses, 1 failed, 0 retried", program.log)


@contextmanager
def grpc_server() -> Iterator[tuple[str, list[tuple[bytes, str]]]]:
    """Run a gRPC server that turns messages around; give its address, and what it gets."""
    grpc: Any = pytest.importorskip("grpc", reason="grpcio is not installed")
    calls: list[tuple[bytes, str]] = []

    def reverse(message: bytes, context: Any) -> bytes:
        calls.append((message, dict(context.invocation_metadata())["x-key"]))
        if message == b"wrong":
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "as asked for")
        return message[::-1]

    handlers = {"Reverse": grpc.unary_unary_rpc_method_handler(reverse)}
    server = grpc.server(ThreadPoolExecutor(1))
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("test.Test", handlers)])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}", calls
    finally:
        server.stop(None).wait()


def test_unary_grpc_calls_arrive_intact(mirror: Mirror) -> None:
    grpc: Any = pytest.importorskip("grpc", reason="grpcio is not installed")
    with grpc_server() as (origin, originals), grpc_server() as (target, copies):
        program = mirror.run("-u", f"http://{target}", "--http", "2")
        running = mirror.balance(program, origin=f"{origin} proto h2", **SIZE)
        with grpc.insecure_channel(f"127.0.0.1:{running.ports['FRONTEND']}") as channel:
            reverse = channel.unary_unary("/test.Test/Reverse")

            def call(message: bytes) -> bytes:
                answer: bytes = reverse(message, metadata=[("x-key", "k")], timeout=TIMEOUT)
                return answer

            messages = (b"hello", b"", bytes(range(256)) * 40)
            for message in messages:
                assert call(message) == message[::-1]
            with pytest.raises(grpc.RpcError, match="as asked for"):
                call(b"wrong")
            wait_until(lambda: len(copies) == 4, "4 copies")
            assert sorted(copies) == sorted(originals)
            assert sorted(copies) == sorted((each, "k") for each in (*messages, b"wrong"))
            program.wait_for(
                rf'"POST http://{target}/test.Test/Reverse HTTP/2" 200 10245/10245 .* ok\n'
            )
            program.wait_for(
                r'/test.Test/Reverse HTTP/2" 200 10/0 .* grpc-status 3: as asked for\n'
            )
            # Of a message without a Content-Length HAProxy says nothing else about its size.
            assert call(b"z" * 40_000) == b"z" * 40_000
            program.wait_for(r"not copied: \d+ bytes of a body of 40005 or more were received")
    assert program.stop() == 0
    assert re.search(
        " 5 received, .* 1 body cut, .* 3 responses, 1 failed, .* 1 cut bodies", program.log
    )
