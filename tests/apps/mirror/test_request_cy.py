import re
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spoakit.agent.headers import Headers
from spoakit.apps.mirror.config.settings import Rewrite
from spoakit.apps.mirror.url import TargetURL

Fields = Sequence[tuple[bytes, bytes]]

REFERENCE = Path(__file__).parents[3] / "docs" / "reference" / "mirror-configuration.md"


def varint(number: int) -> bytes:
    if number < 240:
        return bytes((number,))
    encoded = bytes((number & 15 | 240,))
    number = number - 240 >> 4
    while number >= 128:
        encoded += bytes((number & 127 | 128,))
        number = number - 128 >> 7
    return encoded + bytes((number,))


def binary(fields: Fields) -> bytes:
    parts = [varint(len(part)) + part for field in fields for part in field]
    return b"".join(parts) + b"\0\0"


def text(fields: Fields) -> bytes:
    return b"".join(b"%b: %b\r\n" % field for field in fields) + b"\r\n"


def original(building: ModuleType, method: bytes, target: bytes, lines: bytes, **more: Any) -> Any:
    headers = Headers(lines, more.pop("binary", False))
    return building.IncomingRequest(method, target, b"1.1", headers, **more)


def builder(building: ModuleType, base: str = "", **rewrite: Any) -> Any:
    url = TargetURL.parse(f"http://fallback:81{base}")
    return building.RequestBuilder(url, Rewrite(**rewrite))


def build(
    building: ModuleType,
    fields: Fields = ((b"host", b"h"),),
    *,
    method: bytes = b"GET",
    target: bytes = b"/",
    body: bytes | None = b"",
    base: str = "",
    size: int = -1,
    source: bytes = b"",
    request_id: bytes = b"",
    adds_id: bool = False,
    max_frame_size: int = 0,
    body_kept: str = "keep",
    **rewrite: Any,
) -> Any:
    more = {"body": body, "size": size, "source": source, "request_id": request_id}
    more["max_frame_size"] = max_frame_size
    rewrite |= {"request_id": adds_id, "body": body_kept}
    request = original(building, method, target, binary(fields), binary=True, **more)
    return builder(building, base, **rewrite).build(request)


def build_text(building: ModuleType, lines: bytes) -> Any:
    return builder(building).build(original(building, b"GET", b"/", lines))


def wire(building: ModuleType, fields: Fields = ((b"host", b"h"),), **arguments: Any) -> bytes:
    built: bytes = build(building, fields, **arguments).wire
    return built


def refused(building: ModuleType, fields: Fields = ((b"host", b"h"),), **arguments: Any) -> str:
    with pytest.raises(building.RefusedRequestError) as caught:
        build(building, fields, **arguments)
    return str(caught.value)


FIELDS = (
    (b"host", b"www.example.com"),
    (b"X-Case", b"As It Came"),
    (b"accept", b"*/*"),
    (b"x-twice", b"1"),
    (b"x-empty", b""),
    (b"x-twice", b"2"),
    (b"x-bytes", "caf\u00e9".encode() + b"\xff\x01\t."),
)


def test_a_copy_has_the_fields_in_their_order_and_case_and_nothing_else(
    building: ModuleType,
) -> None:
    expected = b"GET /a%20b?c=d HTTP/1.1\r\n" + text(FIELDS)
    assert wire(building, FIELDS, target=b"/a%20b?c=d") == expected


def test_fields_as_text_make_the_same_copy(building: ModuleType) -> None:
    assert build_text(building, text(FIELDS)).wire == wire(building, FIELDS)


@pytest.mark.parametrize("size", [0, 239, 240, 2287, 2288, 70_000])
def test_fields_of_any_size_arrive(building: ModuleType, size: int) -> None:
    fields = ((b"host", b"h"), (b"x" * max(1, size // 2), b"y" * size))
    assert wire(building, fields).endswith(text(fields))


def test_what_concerns_one_connection_stays_there(building: ModuleType) -> None:
    fields = (
        (b"host", b"h"),
        (b"Connection", b"close, X-Hop ,host"),
        (b"keep-alive", b"timeout=5"),
        (b"proxy-connection", b"keep-alive"),
        (b"te", b"trailers"),
        (b"trailer", b"x-sum"),
        (b"upgrade", b"h2c"),
        (b"expect", b"100-continue"),
        (b"x-hop", b"1"),
        (b"x-kept", b"1"),
        (b"connection", b"x-other"),
        (b"x-other", b"1"),
    )
    assert wire(building, fields) == b"GET / HTTP/1.1\r\nhost: h\r\nx-kept: 1\r\n\r\n"


@pytest.mark.parametrize(
    ("framing", "body", "expected"),
    [
        ((), b"", b"a: 1\r\nb: 2\r\n\r\n"),
        ((), b"hello", b"a: 1\r\nb: 2\r\ncontent-length: 5\r\n\r\nhello"),
        (((b"Content-Length", b"5"),), b"hello", b"a: 1\r\nContent-Length: 5\r\nb: 2\r\n\r\nhello"),
        (((b"content-length", b"3"),), b"hello", b"a: 1\r\ncontent-length: 5\r\nb: 2\r\n\r\nhello"),
        (((b"content-length", b"0"),), b"", b"a: 1\r\ncontent-length: 0\r\nb: 2\r\n\r\n"),
        (
            ((b"Transfer-Encoding", b"chunked"),),
            b"hello",
            b"a: 1\r\ncontent-length: 5\r\nb: 2\r\n\r\nhello",
        ),
        (
            ((b"transfer-encoding", b"chunked"),),
            b"",
            b"a: 1\r\ncontent-length: 0\r\nb: 2\r\n\r\n",
        ),
        (
            ((b"content-length", b"5"), (b"transfer-encoding", b"chunked")),
            b"hello",
            b"a: 1\r\ncontent-length: 5\r\nb: 2\r\n\r\nhello",
        ),
    ],
)
def test_framing_is_written_anew(
    building: ModuleType, framing: Fields, body: bytes, expected: bytes
) -> None:
    copy = build(building, ((b"a", b"1"), *framing, (b"b", b"2"), (b"host", b"h")), body=body)
    assert copy.wire == b"GET / HTTP/1.1\r\n" + expected.replace(
        b"b: 2\r\n", b"b: 2\r\nhost: h\r\n"
    )
    assert copy.body_size == len(body)


def test_a_body_shorter_than_its_length_is_not_copied(building: ModuleType) -> None:
    fields = ((b"content-length", b"100"),)
    with pytest.raises(building.TruncatedBodyError, match="5 bytes of a body of 100"):
        build(building, fields, body=b"hello")


@pytest.mark.parametrize("framing", [(b"content-length", b"5"), (b"transfer-encoding", b"chunked")])
def test_nothing_is_missing_where_no_body_is_asked_for(
    building: ModuleType, framing: tuple[bytes, bytes]
) -> None:
    copy = wire(building, ((b"host", b"h"), framing), body=None, size=5, truncated="mark")
    assert copy == b"GET / HTTP/1.1\r\nhost: h\r\ncontent-length: 0\r\n\r\n"


@pytest.mark.parametrize("value", [b"", b"-1", b"+5", b"5 ", b"5, 5", b"0x5", b"9" * 5000])
def test_a_length_that_is_no_number_is_refused(building: ModuleType, value: bytes) -> None:
    assert "Content-Length" in refused(building, ((b"content-length", value),), body=b"hello")


@pytest.mark.parametrize(
    "method", [b"GET", b"PATCH", b"DELETE", b"PROPFIND", b"M-SEARCH", b"get", b"!#$%&'*+-.^_`|~09"]
)
def test_every_method_is_copied(building: ModuleType, method: bytes) -> None:
    copy = build(building, method=method)
    assert copy.wire.startswith(method + b" / HTTP/1.1\r\n")
    assert copy.method == method


@pytest.mark.parametrize("method", [b"", b"GET ", b"G\r\nT", b"G(T", b"G\xe9T", b"G\0T"])
def test_a_method_that_is_no_token_is_refused(building: ModuleType, method: bytes) -> None:
    assert "is not a token" in refused(building, method=method)


def test_a_tunnel_is_refused(building: ModuleType) -> None:
    assert "tunnel" in refused(building, method=b"CONNECT", target=b"h:443")


@pytest.mark.parametrize(
    ("target", "path", "host"),
    [
        (b"/a//b/?c", b"/a//b/?c", b"fallback:81"),
        (b"http://example.org/a?b", b"/a?b", b"example.org"),
        (b"https://user:pw@example.org:8443", b"/", b"example.org:8443"),
        (b"HTTP://[2001:db8::1]:80?x=/y", b"/?x=/y", b"[2001:db8::1]:80"),
        (b"http:///a", b"/a", b"fallback:81"),
        (b"", b"/", b"fallback:81"),
        (b"/to?http://example.org/", b"/to?http://example.org/", b"fallback:81"),
        (b"/caf\xc3\xa9", b"/caf\xc3\xa9", b"fallback:81"),
    ],
)
def test_a_complete_url_becomes_a_path_and_a_host(
    building: ModuleType, target: bytes, path: bytes, host: bytes
) -> None:
    copy = build(building, ((b"a", b"1"),), target=target, base="/base")
    assert copy.wire == b"GET /base%b HTTP/1.1\r\nhost: %b\r\na: 1\r\n\r\n" % (path, host)
    assert copy.target == b"/base" + path
    kept = wire(building, ((b"a", b"1"), (b"Host", b"kept")), target=target)
    assert kept == b"GET %b HTTP/1.1\r\na: 1\r\nHost: kept\r\n\r\n" % path


@pytest.mark.parametrize("target", [b"*", b"http://example.org"])
def test_options_of_the_server_itself_have_no_path(building: ModuleType, target: bytes) -> None:
    copy = build(building, method=b"OPTIONS", target=target, base="/base")
    assert copy.wire.startswith(b"OPTIONS * HTTP/1.1\r\n")


@pytest.mark.parametrize(
    "target", [b"a", b"://h/", b"1://h/", b"h:443", b"/a b", b"/a\tb", b"/\x7f", b"http://h h/"]
)
def test_a_target_that_is_none_is_refused(building: ModuleType, target: bytes) -> None:
    refused(building, target=target)


@pytest.mark.parametrize("evil", [b"\r", b"\n", b"\0", b"\r\n", b"\r\nx: y", b"\r\n\r\nGET / "])
def test_nothing_breaks_out_of_its_place(building: ModuleType, evil: bytes) -> None:
    refused(building, method=b"GE" + evil)
    refused(building, target=b"/a" + evil)
    refused(building, target=b"http://h" + evil + b"/")
    for name in (b"x-a", b"host", b"x-" + b"long" * 20):
        refused(building, ((b"host", b"h"), (name + evil, b"v")))
        refused(building, ((b"host", b"h"), (name, b"v" + evil)))
    lines = b"host: h\r\nx: " + evil[:1] + b"y\r\n\r\n"
    with pytest.raises(building.RefusedRequestError):
        build_text(building, lines)


@pytest.mark.parametrize("name", [b"", b"a b", b"a ", b" a", b"a:", b"a\xe9"])
def test_a_name_that_is_no_token_is_refused(building: ModuleType, name: bytes) -> None:
    refused(building, ((name, b"v"), (b"host", b"h")))


@pytest.mark.parametrize(
    "block",
    [
        b"",
        b"\0",
        b"\4host",
        b"\4host\1h",
        b"\4host\1h\0",
        b"\4host\5h\0\0",
        b"\xff",
        b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
        b"\xff\xff\x7f\0\0",
        b"\4host\1h\0\1x",
    ],
)
def test_a_broken_block_of_fields_is_refused(building: ModuleType, block: bytes) -> None:
    with pytest.raises(building.RefusedRequestError):
        builder(building).build(original(building, b"GET", b"/", block, binary=True))


@pytest.mark.parametrize("lines", [b"a: 1\r\nb\r\n\r\n", b"a: 1\nb: 2\r\n", b"a: 1\r\n b\r\n"])
def test_text_that_is_no_fields_is_refused(building: ModuleType, lines: bytes) -> None:
    with pytest.raises(building.RefusedRequestError):
        build_text(building, lines)


@given(
    method=st.binary(max_size=8),
    target=st.binary(max_size=20),
    headers=st.binary(max_size=80)
    | st.lists(st.tuples(st.binary(max_size=12), st.binary(max_size=12)), max_size=5).map(binary),
    is_binary=st.booleans(),
    body=st.binary(max_size=20),
)
def test_whatever_comes_in_is_one_request_or_refused(
    building: ModuleType,
    method: bytes,
    target: bytes,
    headers: bytes,
    is_binary: bool,
    body: bytes,
) -> None:
    try:
        request = original(building, method, target, headers, binary=is_binary, body=body)
        copy = builder(building).build(request)
    except building.RefusedRequestError:
        return
    head, end, rest = copy.wire.partition(b"\r\n\r\n")
    assert end
    assert rest == body
    request_line, *lines = head.split(b"\r\n")
    assert request_line.count(b" ") == 2
    names = [line.partition(b": ")[0].lower() for line in lines]
    assert b"host" in names
    assert b"transfer-encoding" not in names
    lengths = [line for line in lines if line.lower().startswith(b"content-length:")]
    assert len(lengths) <= 1
    assert not body or lengths[0].endswith(b": %d" % len(body))


def test_only_what_has_the_effect_of_once_may_be_sent_twice(building: ModuleType) -> None:
    assert build(building, method=b"PUT").is_idempotent
    assert not build(building, method=b"POST").is_idempotent
    assert not build(building, method=b"PATCH").is_idempotent
    copy = build(building)
    assert not copy.retried
    assert copy.as_retried().retried
    assert copy.as_retried().wire == copy.wire


def test_a_head_request_is_told_from_others(building: ModuleType) -> None:
    assert build(building, method=b"HEAD").is_head
    assert not build(building, method=b"HEADS").is_head


def test_what_a_builder_remembers_changes_nothing(building: ModuleType) -> None:
    made = builder(building)
    blocks = [
        FIELDS,
        FIELDS[:3],
        (*FIELDS[:3], (b"x-new", b"1"), *FIELDS[3:]),
        ((b"y" * 100, b"1"), *FIELDS),
        FIELDS[::-1],
        ((b"X-HOST", b"1"), *FIELDS),
        tuple((b"x-%d" % number, b"1") for number in range(200)) + FIELDS[:1],
        FIELDS,
    ]
    for fields in blocks * 3:
        built = made.build(original(building, b"GET", b"/", binary(fields), binary=True))
        assert built.wire == b"GET / HTTP/1.1\r\n" + text(fields)


HOST = (b"host", b"h")


@pytest.mark.parametrize(
    ("rewrite", "expected"),
    [
        ({"host": "target"}, (b"fallback:81",)),
        ({"host": "other.example:8080"}, (b"other.example:8080",)),
        ({"host": "keep"}, (b"h", b"h2")),
    ],
)
def test_the_host_is_kept_or_replaced(
    building: ModuleType, rewrite: dict[str, Any], expected: tuple[bytes, ...]
) -> None:
    fields = (HOST, (b"a", b"1"), (b"Host", b"h2"))
    head = wire(building, fields, **rewrite)
    hosts = [line[6:] for line in head.split(b"\r\n") if line.lower().startswith(b"host: ")]
    assert tuple(hosts) == expected
    none = wire(building, ((b"a", b"1"),), target=b"http://named/", **rewrite)
    assert (b"host: named\r\n" in none) is (rewrite["host"] == "keep")


def test_fields_are_set_added_and_removed(building: ModuleType) -> None:
    fields = (HOST, (b"X-Set", b"1"), (b"x-gone", b"1"), (b"x-set", b"2"), (b"x-add", b"1"))
    rules = {"set": (("x-set", "new"),), "add": (("x-add", "2"),), "remove": ("X-Gone", "x-none")}
    expected = (HOST, (b"x-add", b"1"), (b"x-set", b"new"), (b"x-add", b"2"))
    assert wire(building, fields, **rules) == b"GET / HTTP/1.1\r\n" + text(expected)


def test_secrets_are_left_out(building: ModuleType) -> None:
    secret = (b"Authorization", b"cookie", b"Proxy-Authorization", b"X-API-Key", b"x-auth-token")
    fields = (HOST, *((name, b"s3cret") for name in secret), (b"accept", b"*/*"))
    copy = wire(building, fields, strip_secrets=True)
    assert copy == b"GET / HTTP/1.1\r\n" + text((HOST, (b"accept", b"*/*")))


def test_a_copy_is_marked_once(building: ModuleType) -> None:
    fields = (HOST, (b"X-Mirrored", b"by another"))
    copy = wire(building, fields, marker=("x-mirrored", "1"))
    assert copy == b"GET / HTTP/1.1\r\n" + text((HOST, (b"x-mirrored", b"1")))


@pytest.mark.parametrize("binary_form", [True, False])
@pytest.mark.parametrize("name", [b"X-Mirrored", b"x-mirrored", b"X-MIRRORED"])
@pytest.mark.parametrize("value", [b"yes", b" yes\t"])
def test_a_marked_request_is_not_copied_again(
    building: ModuleType, binary_form: bool, name: bytes, value: bytes
) -> None:
    fields = (HOST, (name, b"by another"), (name, value))
    block = binary(fields) if binary_form else text(fields)
    maker = builder(building, marker=("X-Mirrored", "yes"), remove=("x-mirrored",))
    marked = original(building, b"GET", b"/", block, binary=binary_form)
    plain = original(building, b"GET", b"/", binary((HOST,)), binary=True)
    for _ in range(2):  # what a builder remembers of fields is no other way
        maker.build(plain)
        with pytest.raises(building.LoopedRequestError, match="X-Mirrored: yes"):
            maker.build(marked)


@pytest.mark.parametrize(
    ("marker", "field"),
    [
        (("x-mirrored", "1"), (b"x-mirrored", b"2")),
        (("x-mirrored", "yes"), (b"x-mirrored", b"YES")),
        (("x-mirrored", "yes"), (b"x-mirrored", b"yes, no")),
        (("x-mirrored", "1"), (b"x-mirror", b"1")),
        (("x-mirrored", "1"), (b"x-mirrored", b"")),
        (None, (b"x-mirrored", b"1")),
    ],
)
def test_only_the_whole_marker_counts(
    building: ModuleType, marker: tuple[str, str] | None, field: tuple[bytes, bytes]
) -> None:
    assert wire(building, (HOST, field), marker=marker)


def test_an_empty_marker_marks_too(building: ModuleType) -> None:
    with pytest.raises(building.LoopedRequestError):
        build(building, (HOST, (b"x-mirrored", b"")), marker=("X-Mirrored", ""))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ((HOST,), b"host: h\r\nx-forwarded-for: 192.0.2.7\r\n"),
        ((), b"host: fallback:81\r\nx-forwarded-for: 192.0.2.7\r\n"),
        (((b"X-Forwarded-For", b"a"), HOST), b"X-Forwarded-For: a, 192.0.2.7\r\nhost: h\r\n"),
        (
            ((b"x-forwarded-for", b"a"), (b"x-forwarded-for", b"b")),
            b"host: fallback:81\r\nx-forwarded-for: a\r\nx-forwarded-for: b, 192.0.2.7\r\n",
        ),
        (
            ((b"x-forwarded-for", b"a"), (b"connection", b"x-hop"), HOST),
            b"x-forwarded-for: a\r\nhost: h\r\nx-forwarded-for: 192.0.2.7\r\n",
        ),
    ],
)
def test_the_client_is_forwarded(building: ModuleType, fields: Fields, expected: bytes) -> None:
    copy = wire(building, fields, source=b"192.0.2.7", forwarded_for=True)
    assert copy == b"GET / HTTP/1.1\r\n" + expected + b"\r\n"
    assert b"192.0.2.7" not in wire(building, fields, source=b"192.0.2.7")
    assert b"192.0.2.7" not in wire(building, fields, forwarded_for=True)


def test_a_request_gets_an_id_unless_it_has_one(building: ModuleType) -> None:
    assert b"\r\nx-request-id: 7\r\n" in wire(building, request_id=b"7", adds_id=True)
    kept = wire(building, ((b"X-Request-Id", b"6"),), request_id=b"7", adds_id=True)
    assert b"X-Request-Id: 6\r\n" in kept
    assert b"7" not in kept.partition(b"\r\n")[2]


@pytest.mark.parametrize(
    ("rewrite", "target", "expected"),
    [
        ({"strip_prefix": "/api"}, b"/api/x?y", b"/base/x?y"),
        ({"strip_prefix": "/api/"}, b"/api", b"/base/"),
        ({"strip_prefix": "/api"}, b"/api?y", b"/base/?y"),
        ({"strip_prefix": "/api"}, b"/apix", b"/base/apix"),
        ({"add_prefix": "/v2/"}, b"/x", b"/base/v2/x"),
        ({"strip_prefix": "/api", "add_prefix": "/v2"}, b"/api/x", b"/base/v2/x"),
        (
            {"path_pattern": r"^/u/(\d+)", "path_replacement": r"/users/\1"},
            b"/u/7?a",
            b"/base/users/7?a",
        ),
        ({"path_pattern": "a", "path_replacement": "b"}, b"/aa", b"/base/ba"),
        ({"path_pattern": "^/x", "path_replacement": ""}, b"/xy", b"/base/y"),
        ({"path_pattern": "a", "path_replacement": "b"}, b"http://h/aa", b"/base/ba"),
    ],
)
def test_paths_are_rewritten(
    building: ModuleType, rewrite: dict[str, Any], target: bytes, expected: bytes
) -> None:
    copy = build(building, target=target, base="/base/", **rewrite)
    assert copy.target == expected
    assert copy.wire.startswith(b"GET " + expected + b" HTTP/1.1\r\n")


@pytest.mark.parametrize("size", [9, 100])
def test_a_body_shorter_than_haproxy_says_is_cut(building: ModuleType, size: int) -> None:
    chunked = (HOST, (b"transfer-encoding", b"chunked"))
    with pytest.raises(building.TruncatedBodyError, match=f"5 bytes of a body of {size}"):
        build(building, chunked, body=b"hello", size=size)
    copy = build(building, chunked, body=b"hello", size=size, truncated="send")
    assert copy.missing == size - 5
    assert copy.wire.endswith(b"content-length: 5\r\n\r\nhello")
    # What it says is the end of the chunk that it was in, and not of the body.
    marked = wire(building, chunked, body=b"hello", size=size, truncated="mark")
    assert marked.endswith(b"\r\nx-mirror-truncated: unknown\r\n\r\nhello")
    assert build(building, chunked, body=b"hello", size=5).missing == 0


@pytest.mark.parametrize(
    ("body", "missing"),
    [
        (b"\0\0\0\0\5hello", 0),
        (b"\0\0\0\0\0", 0),
        (b"\1\0\0\0\1a\0\0\0\0\2bc", 0),
        (b"\0\0\0\1\0hello", 251),
        (b"\1\0\0\0\1a\0\0\0\0\2b", 1),
        (b"\0\xff\xff\xff\xffhello", 0xFFFFFFFF - 5),
        (b"\0", 4),
    ],
)
def test_a_grpc_message_that_is_shorter_than_it_says_is_cut(
    building: ModuleType, body: bytes, missing: int
) -> None:
    call = (HOST, (b"content-type", b"application/grpc+proto"))
    copy = build(building, call, method=b"POST", body=body, size=len(body), truncated="send")
    assert copy.missing == missing
    other = (HOST, (b"content-type", b"text/plain"))
    assert build(building, other, method=b"POST", body=body, size=len(body)).missing == 0


def test_the_reference_names_the_secrets(building: ModuleType) -> None:
    secrets = REFERENCE.read_text().partition("#### Secrets\n")[2].partition(":")
    named = re.findall("`([a-z-]+)`", secrets[2].partition(".")[0])
    assert [name.encode() for name in named] == list(building._SECRETS)


CHUNKED = (b"transfer-encoding", b"chunked")
FRAME_SIZE = 16380


@pytest.mark.parametrize(
    ("fields", "body", "suspect"),
    [
        ((HOST, CHUNKED), b"", "not_waited_for"),
        ((HOST, (b"Transfer-Encoding", b"gzip, chunked")), b"", "not_waited_for"),
        ((HOST, CHUNKED), b"x", ""),
        ((HOST, CHUNKED), None, ""),
        ((HOST,), b"", ""),
        ((HOST, (b"content-length", b"0")), b"", ""),
        ((HOST,), bytes(14_000), ""),
        ((HOST,), bytes(15_203), "probably_cut"),
        # Each field takes more of the buffer than of the frame.
        ((HOST, *((b"x-field", b"some value"),) * 40), bytes(14_170), "probably_cut"),
        ((HOST, CHUNKED), bytes(15_203), "probably_cut"),
        ((HOST,), bytes(16_200), "probably_cut"),
        ((HOST, (b"content-length", b"15203")), bytes(15_203), ""),
        # In fragments.
        ((HOST,), bytes(40_000), ""),
    ],
)
def test_a_body_that_is_probably_not_all_of_it_is_suspect(
    building: ModuleType, fields: Fields, body: bytes | None, suspect: str
) -> None:
    method = b"POST" if body else b"GET"
    arguments: dict[str, Any] = {"method": method, "body": body, "max_frame_size": FRAME_SIZE}
    copy = build(building, fields, **arguments)
    assert (copy.suspect, copy.missing) == (suspect, 0)
    assert copy.as_retried().suspect == suspect
    assert copy.body_size == len(body or b"")
    assert build(building, fields, body_kept="none", **arguments).suspect == ""
    if suspect:
        with pytest.raises(building.SuspectBodyError) as caught:
            build(building, fields, truncated_suspect="skip", **arguments)
        assert caught.value.reason == suspect
    else:
        assert build(building, fields, truncated_suspect="skip", **arguments).wire == copy.wire


def test_all_that_came_in_a_frame_counts_for_its_size(building: ModuleType) -> None:
    def suspect(size: int, **more: Any) -> str:
        copy = build(building, body=bytes(size), max_frame_size=FRAME_SIZE, **more)
        return str(copy.suspect)

    assert suspect(8_000) == ""
    assert suspect(8_000, target=b"/" + b"x" * 7_500) == "probably_cut"
    assert suspect(8_000, fields=(HOST, (b"x", b"y" * 7_500))) == "probably_cut"
    # The largest that is not suspect, and the smallest that is.
    sizes = [size for size in range(14_000, 16_000) if suspect(size)]
    assert sizes == list(range(sizes[0], 16_000))
    assert 15_000 < sizes[0] < 15_203


def test_without_the_frames_size_only_an_empty_body_is_suspect(building: ModuleType) -> None:
    assert build(building, body=bytes(16_000)).suspect == ""
    assert build(building, (HOST, CHUNKED)).suspect == "not_waited_for"


def test_a_body_that_is_known_to_be_cut_is_not_suspect_besides(building: ModuleType) -> None:
    arguments: dict[str, Any] = {"body": bytes(15_203), "max_frame_size": FRAME_SIZE}
    copy = build(building, (HOST, CHUNKED), size=20_000, truncated="send", **arguments)
    assert (copy.suspect, copy.missing) == ("", 4_797)


@pytest.mark.parametrize(
    ("fields", "body", "size", "expected"),
    [
        ((HOST,), b"", -1, b""),
        ((HOST,), b"hello", -1, b"content-length: 0\r\n"),
        ((HOST, (b"Content-Length", b"5")), b"hello", 5, b"Content-Length: 0\r\n"),
        ((HOST, (b"content-length", b"100")), b"hello", 100, b"content-length: 0\r\n"),
        ((HOST, CHUNKED), b"hello", 99, b"content-length: 0\r\n"),
        ((HOST, CHUNKED), b"", -1, b"content-length: 0\r\n"),
    ],
)
def test_copies_without_bodies_say_so_and_none_is_missing(
    building: ModuleType, fields: Fields, body: bytes, size: int, expected: bytes
) -> None:
    digest = (b"content-digest", b"sha-256=:x:")
    copy = build(
        building, (*fields, digest), method=b"POST", body=body, size=size, body_kept="none"
    )
    head = sorted(copy.wire.removeprefix(b"POST / HTTP/1.1\r\n").splitlines(keepends=True))
    rest = [b"\r\n", b"content-digest: sha-256=:x:\r\n", b"host: h\r\n"]
    assert head == sorted(rest + ([expected] if expected else []))
    assert (copy.missing, copy.body_size, copy.suspect) == (0, 0, "")


def test_a_grpc_call_without_its_message_has_nothing_missing(building: ModuleType) -> None:
    call = (HOST, (b"content-type", b"application/grpc"))
    assert build(building, call, body=b"\0\0\0\1\0hello", body_kept="none").missing == 0


@pytest.mark.parametrize(
    ("fields", "body", "size"),
    [
        ((HOST,), b"hello", -1),
        ((HOST, (b"content-length", b"5")), b"hello", 5),
        ((HOST, (b"content-length", b"5")), b"", -1),
        ((HOST, CHUNKED), b"h", 5),
        ((HOST, (b"content-length", b"5")), None, -1),
        ((HOST, (b"content-type", b"application/grpc")), b"\0\0\0\0\0", -1),
    ],
)
@pytest.mark.parametrize("kept", ["keep", "none"])
def test_a_body_larger_than_the_largest_is_refused(
    building: ModuleType, fields: Fields, body: bytes | None, size: int, kept: str
) -> None:
    arguments: dict[str, Any] = {"body": body, "size": size, "body_kept": kept}
    with pytest.raises(building.BodyTooLargeError, match=r"body of 5 bytes is larger than .*, 4"):
        build(building, fields, max_body=4, **arguments)
    build(building, fields, max_body=5, truncated="send", **arguments)


def test_with_a_largest_body_of_nothing_requests_without_one_are_copied(
    building: ModuleType,
) -> None:
    assert build(building, max_body=0).wire == build(building).wire
    with pytest.raises(building.BodyTooLargeError):
        build(building, body=b"x", max_body=0)
