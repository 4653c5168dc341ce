import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spoakit import Headers
from spoakit.spop._encode_cy import encode_string

# What HAProxy 2.6 sends for a request with these fields.
BINARY = (
    b"\x04host\x0bexample.org"
    b"\x06accept\x03*/*"
    b"\x06cookie\x03a=1"
    b"\x06Cookie\x03b=2"
    b"\x07x-empty\x00"
    b"\x06x-utf8\x03\xc3\xa9\xff"
    b"\x00\x00"
)
TEXT = (
    b"host: example.org\r\n"
    b"accept: */*\r\n"
    b"cookie: a=1\r\n"
    b"Cookie: b=2\r\n"
    b"x-empty: \r\n"
    b"x-utf8: \xc3\xa9\xff\r\n"
    b"\r\n"
)
FIELDS = [
    ("host", "example.org"),
    ("accept", "*/*"),
    ("cookie", "a=1"),
    ("Cookie", "b=2"),
    ("x-empty", ""),
    ("x-utf8", "é\udcff"),
]


@pytest.fixture(params=["binary", "text"])
def headers(request: pytest.FixtureRequest) -> Headers:
    return Headers(BINARY, True) if request.param == "binary" else Headers(TEXT, False)


def test_fields_come_in_their_order_with_case_and_repetitions(headers: Headers) -> None:
    assert list(headers) == FIELDS
    assert len(headers) == len(FIELDS)


def test_get_answers_the_first_of_a_name_in_any_case(headers: Headers) -> None:
    assert headers.get("COOKIE") == "a=1"
    assert headers.get("x-empty") == ""
    assert headers.get("x-none") is None
    assert headers.get("x-none", "other") == "other"


def test_getall_answers_all_of_a_name(headers: Headers) -> None:
    assert headers.getall("cookie") == ["a=1", "b=2"]
    assert headers.getall("x-none") == []


def test_names_are_contained_in_any_case(headers: Headers) -> None:
    assert "Host" in headers
    assert "x-empty" in headers
    assert "x-none" not in headers
    assert 1 not in headers


def test_raw_is_what_came(headers: Headers) -> None:
    assert headers.raw == (BINARY if headers.binary else TEXT)


def test_bytes_that_are_not_utf_8_come_back_unchanged(headers: Headers) -> None:
    value = headers.get("x-utf8", "")
    assert value.encode("utf-8", "surrogateescape") == b"\xc3\xa9\xff"


def test_headers_of_the_same_bytes_are_equal() -> None:
    assert Headers(BINARY) == Headers(BINARY, True)
    assert hash(Headers(BINARY)) == hash(Headers(BINARY, True))
    assert Headers(BINARY) != Headers(BINARY, False)
    assert Headers(BINARY) != BINARY
    assert repr(Headers(TEXT, False)) == f"<Headers {len(TEXT)} bytes STRING>"


@pytest.mark.parametrize(
    "raw",
    [
        b"host: example.org\r\nx: y",
        b"host: example.org\nx: y\n\n",
        b"host:example.org\r\nx:\ty \r\n",
        b"host:\r\n example.org\r\nx: y\r\n\r\n",
    ],
)
def test_text_that_converters_have_changed_is_still_read(raw: bytes) -> None:
    assert list(Headers(raw, False)) == [("host", "example.org"), ("x", "y")]


def test_a_folded_value_becomes_one_line() -> None:
    assert Headers(b"x: a\r\n\t b\r\n c\r\n\r\n", False).get("x") == "a b c"


@pytest.mark.parametrize("raw", [b"", b"\r\n", b"\n"])
def test_text_without_fields_is_no_fields(raw: bytes) -> None:
    assert list(Headers(raw, False)) == []


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\x04host",
        b"\x04host\x0bexample.org",
        b"\x04host\x0bexample.org\x00",
        b"\x00\x01x",
        b"\x00\x00\x00",
        b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
    ],
)
def test_a_malformed_binary_block_is_noticed_when_looked_into(raw: bytes) -> None:
    headers = Headers(raw)
    with pytest.raises(ValueError, match=r"not a req\.hdrs_bin block"):
        headers.get("host")


@pytest.mark.parametrize(
    "raw",
    [b"host\r\n", b": x\r\n", b" x: y\r\n", b"host : x\r\n", b"host: x\r\n\r\nmore", b"\nx: y"],
)
def test_a_malformed_text_block_is_noticed_when_looked_into(raw: bytes) -> None:
    headers = Headers(raw, False)
    with pytest.raises(ValueError, match=r"not a req\.hdrs block"):
        len(headers)


@settings(deadline=None)
@given(st.lists(st.tuples(st.binary(min_size=1, max_size=300), st.binary(max_size=300))))
def test_any_names_and_values_are_read_from_a_binary_block(
    pairs: list[tuple[bytes, bytes]],
) -> None:
    raw = b"".join(encode_string(part) for pair in pairs for part in pair) + b"\0\0"
    read = [
        tuple(part.encode("utf-8", "surrogateescape") for part in pair) for pair in Headers(raw)
    ]
    assert read == pairs


@settings(deadline=None)
@given(st.binary(), st.booleans())
def test_any_bytes_are_read_or_raise_value_error(raw: bytes, binary: bool) -> None:
    try:
        fields = list(Headers(raw, binary))
    except ValueError:
        return
    assert all(name for name, _ in fields)


# --- encoding --------------------------------------------------------------------------


def test_a_block_of_either_form_is_encoded_as_binary(headers: Headers) -> None:
    assert headers.encode() == BINARY
    assert Headers.of(*FIELDS).encode() == BINARY
    assert Headers.of(*FIELDS) == Headers(BINARY)
    assert Headers.of().encode() == b"\0\0"


@given(
    st.lists(
        st.tuples(
            st.text("!#$%&'*+-.^_`|~09azAZ", min_size=1, max_size=300),
            st.text(st.characters(min_codepoint=32, exclude_characters="\x7f"), max_size=300),
        )
    )
)
def test_what_is_encoded_is_read_again(fields: list[tuple[str, str]]) -> None:
    fields = [(name, value.encode("utf-8", "replace").decode()) for name, value in fields]
    block = Headers.of(*fields)
    assert list(block) == fields
    assert block.encode() == block.raw


@pytest.mark.parametrize("value", ["a\r\nInjected: 1", "a\nb", "a\rb", "a\0b", "\x1b[0m", "\x7f"])
def test_a_value_cannot_begin_another_field(value: str) -> None:
    with pytest.raises(ValueError, match="header x-a: the value must not contain"):
        Headers.of(("x-a", value))
    block = Headers(encode_string(b"x-a") + encode_string(value.encode()) + b"\0\0")
    with pytest.raises(ValueError, match="header x-a: the value must not contain"):
        block.encode()


@pytest.mark.parametrize("name", ["", "a b", "a:", ":path", "a\r\nb", "é", "a\0", "a\n", '"a"'])
def test_a_name_is_a_token(name: str) -> None:
    with pytest.raises(ValueError, match="is not a token"):
        Headers.of((name, "x"))


def test_tabs_and_bytes_beyond_ascii_are_values() -> None:
    assert Headers.of(("a", "b\tc \udcff é")).get("a") == "b\tc \udcff é"
