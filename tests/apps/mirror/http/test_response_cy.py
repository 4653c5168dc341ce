from types import ModuleType

import pytest
from httptools import HttpParserError, HttpResponseParser
from hypothesis import given
from hypothesis import strategies as st


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", (200, 2)),
        (b"HTTP/1.1 404 \r\ncontent-length: 0\r\n\r\n", (404, 0)),
        (
            b"HTTP/1.1 503 Not Now\r\nServer: x\r\nContent-Type: a:b\r\ncache-control: no\r\n"
            b"Connection: keep-alive\r\nTag: t\r\nContent-Length: 3\r\nX:\r\n\r\n\r\n\r",
            (503, 3),
        ),
    ],
)
def test_a_plain_answer_is_read(
    answering: ModuleType, data: bytes, expected: tuple[int, int]
) -> None:
    assert answering.parse_plain_response(data) == expected


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"HTTP/1.1",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok!",
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 2x0 OK\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 2000 OK\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 100 Continue\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 304 Not Modified\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nconnection:close\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nCONTENT-LENGTH: 3\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nContent-Length : 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nContent-Length: +2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nContent-Length: " + b"0" * 18 + b"2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nX: y\r\n folded line here\r\nContent-Length: 2\r\n\r\nok",
    ],
)
def test_what_is_not_quite_plain_is_left_to_the_parser(answering: ModuleType, data: bytes) -> None:
    assert answering.parse_plain_response(data) is None


class Parser:
    """What httptools makes of a response."""

    def __init__(self, data: bytes) -> None:
        self.parser = HttpResponseParser(self)
        self.size = 0
        self.complete: list[tuple[int, int]] = []
        self.keep_alive = True
        self.parser.feed_data(data)

    def on_body(self, data: bytes) -> None:
        self.size += len(data)

    def on_message_complete(self) -> None:
        self.complete.append((self.parser.get_status_code(), self.size))
        self.keep_alive = self.parser.should_keep_alive()


LINES = st.sampled_from(
    [
        b"Content-Length: 2",
        b"content-length: 0",
        b"Content-Length: 3",
        b"Content-Length: x",
        b"Connection: close",
        b"Connection: keep-alive",
        b"Transfer-Encoding: chunked",
        b"Content-Type: text/plain",
        b"Trailer: x",
        b"X-A: b",
    ]
)


@given(
    version=st.sampled_from([b"HTTP/1.1", b"HTTP/1.0"]),
    status=st.sampled_from([b"100", b"200", b"204", b"304", b"500"]),
    lines=st.lists(LINES, max_size=4),
    body=st.sampled_from([b"", b"ok", b"2\r\nok\r\n0\r\n\r\n", b"okay"]),
)
def test_the_parser_agrees_with_what_is_read(
    answering: ModuleType, version: bytes, status: bytes, lines: list[bytes], body: bytes
) -> None:
    data = b"\r\n".join((version + b" " + status + b" X", *lines, b"", body))
    plain = answering.parse_plain_response(data)
    if plain is None:
        return
    try:
        parser = Parser(data)
    except HttpParserError as error:
        pytest.fail(f"{data!r} was read, but: {error}")
    assert parser.complete == [plain]
    assert parser.keep_alive


@given(st.binary(max_size=60))
def test_any_bytes_can_be_read(answering: ModuleType, data: bytes) -> None:
    answering.parse_plain_response(b"HTTP/1.1 200 OK\r\n" + data)
    answering.parse_plain_response(data)
