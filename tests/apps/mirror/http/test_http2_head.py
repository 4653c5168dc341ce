import pytest
from hpack import Decoder
from hypothesis import given
from hypothesis import strategies as st

from spoakit.agent.headers import Headers
from spoakit.apps.mirror._request_builder_cy import RequestBuilder
from spoakit.apps.mirror._request_cy import IncomingRequest, OutgoingRequest
from spoakit.apps.mirror.config.schema import TargetSettings
from spoakit.apps.mirror.http import http2_head
from spoakit.apps.mirror.http.http2_head import Field, PlainEncoder, parse_head
from spoakit.apps.mirror.url import TargetURL

TOKEN = b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
# What a RequestBuilder leaves out, writes anew or takes for the authority.
SPECIAL = {
    b"host",
    b"connection",
    b"keep-alive",
    b"proxy-connection",
    b"te",
    b"trailer",
    b"upgrade",
    b"expect",
    b"content-length",
    b"transfer-encoding",
}

tokens = st.lists(st.sampled_from(TOKEN), min_size=1, max_size=12).map(bytes)
names = tokens.filter(lambda name: name.lower() not in SPECIAL)
values = st.binary(max_size=30).map(lambda value: value.translate(None, b"\r\n\0").strip(b" \t"))
targets = st.lists(st.sampled_from(bytes(range(0x21, 0x7F)) + b"\x80\xff"), max_size=20).map(
    lambda path: b"/" + bytes(path)
)


def built(
    head: bytes, body: bytes = b"", method: bytes = b"GET", target: bytes = b"/"
) -> OutgoingRequest:
    builder = RequestBuilder(TargetSettings(TargetURL.parse("http://fallback:81")))
    return builder.build(
        IncomingRequest(method, target, b"2.0", Headers(head + b"\r\n", False), body)
    )


def by_hand(wire: bytes) -> OutgoingRequest:
    """Return a request for "/" with the method GET, and a head that no builder would make."""
    return OutgoingRequest(wire, len(wire), 3, 1)


def fields_of(wire: bytes) -> list[Field]:
    """Return what a request that was written by hand has besides the pseudo-header fields."""
    return [each for each in parse_head(by_hand(wire), b"http") if each[0][:1] != b":"]


@given(
    method=tokens.filter(lambda method: method != b"CONNECT"),
    target=targets,
    fields=st.lists(st.tuples(names, values), max_size=12),
    body=st.binary(max_size=50),
    host=st.sampled_from([b"www.example.com", b"[::1]:8080"]),
)
def test_any_request_has_the_same_fields_in_the_same_order(
    method: bytes, target: bytes, fields: list[Field], body: bytes, host: bytes
) -> None:
    lines = [(b"Host", host), *fields]
    request = built(b"".join(b"%b: %b\r\n" % line for line in lines), body, method, target)
    length = [(b"content-length", b"%d" % len(body))] if body else []
    expected = [
        (b":method", method),
        (b":scheme", b"https"),
        (b":authority", host),
        (b":path", target),
        *((name.lower(), value) for name, value in fields),
        *length,
    ]
    assert parse_head(request, b"https") == expected
    encoder, decoder = PlainEncoder(), Decoder()
    for _ in range(2):
        block = encoder.encode(expected)
        assert [tuple(each) for each in decoder.decode(block, raw=True)] == expected


def test_the_host_is_the_authority_wherever_it_stands() -> None:
    wire = b"GET / HTTP/1.1\r\na: 1\r\nhOST: x:1\r\nHost: second\r\nb: 2\r\n\r\n"
    fields = parse_head(by_hand(wire), b"http")
    assert fields[:4] == [
        (b":method", b"GET"),
        (b":scheme", b"http"),
        (b":authority", b"x:1"),
        (b":path", b"/"),
    ]
    assert fields[4:] == [(b"a", b"1"), (b"b", b"2")]


def test_an_empty_host_is_no_authority() -> None:
    assert b":authority" not in dict(parse_head(built(b"Host: \r\n"), b"http"))


def test_a_body_that_looks_like_a_head_is_none() -> None:
    fields = parse_head(built(b"Host: h\r\n", b"x: 1\r\n\r\ny: 2\r\n\r\n", b"PUT"), b"http")
    assert fields[4:] == [(b"content-length", b"16")]


@pytest.mark.parametrize(
    "name", [b"Connection", b"Keep-Alive", b"Transfer-Encoding", b"Upgrade", b"Proxy-Connection"]
)
def test_what_is_about_one_connection_is_left_out(name: bytes) -> None:
    assert fields_of(b"GET / HTTP/1.1\r\na: 1\r\n%b: x\r\nb: 2\r\n\r\n" % name) == [
        (b"a", b"1"),
        (b"b", b"2"),
    ]


def test_te_is_left_only_as_trailers() -> None:
    assert fields_of(b"GET / HTTP/1.1\r\nTE: gzip, Trailers\r\n\r\n") == [(b"te", b"trailers")]
    assert fields_of(b"GET / HTTP/1.1\r\nTE: gzip\r\n\r\n") == []


@pytest.mark.parametrize("content_type", [b"application/grpc", b"application/grpc+proto"])
def test_a_grpc_call_has_te_trailers_once(content_type: bytes) -> None:
    for te in (b"", b"te: trailers\r\n"):
        wire = b"POST / HTTP/1.1\r\n%bcontent-type: %b\r\n\r\n" % (te, content_type)
        names = [name for name, _ in fields_of(wire)]
        assert names.count(b"te") == 1


def test_what_only_mentions_grpc_has_no_te() -> None:
    assert fields_of(b"GET / HTTP/1.1\r\naccept: application/grpc\r\n\r\n") == [
        (b"accept", b"application/grpc")
    ]


def test_a_table_size_that_the_peer_changed_is_acknowledged() -> None:
    encoder, decoder = PlainEncoder(), Decoder()
    encoder.header_table_size = 0
    decoder.max_allowed_table_size = 0
    fields = [(b":method", b"GET"), (b"cookie", b"secret")]
    for _ in range(2):
        assert [tuple(each) for each in decoder.decode(encoder.encode(fields), raw=True)] == fields


def test_no_field_enters_a_table_on_its_way() -> None:
    encoder, decoder = PlainEncoder(), Decoder()
    decoder.decode(encoder.encode([(b"cookie", b"secret"), (b":path", b"/x")]), raw=True)
    assert not decoder.header_table.dynamic_entries


def test_what_is_remembered_is_bounded() -> None:
    encoder = PlainEncoder()
    for number in range(10_000):
        request = built(b"Host: h\r\nn: %d\r\nlong: %d%b\r\n" % (number, number, b"x" * 1000))
        fields = parse_head(request, b"http")
        assert fields[4] == (b"n", b"%d" % number)
        encoder.encode(fields)
    assert len(http2_head._fields) <= 4096
    assert len(http2_head._encoded) <= 4096
    assert max(map(len, http2_head._fields)) <= 256
