"""spoakit.apps.mirror._request_builder_cy: a copy is its original, or refused."""

from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.request_building import Fields, binary, build, builder, original, text, wire


def build_text(building: ModuleType, lines: bytes) -> Any:
    return builder(building).build(original(b"GET", b"/", lines))


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
        builder(building).build(original(b"GET", b"/", block, binary=True))


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
        request = original(method, target, headers, binary=is_binary, body=body)
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
        built = made.build(original(b"GET", b"/", binary(fields), binary=True))
        assert built.wire == b"GET / HTTP/1.1\r\n" + text(fields)
