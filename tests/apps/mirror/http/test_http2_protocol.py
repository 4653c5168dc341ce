"""The frames of a connection, held against the h2 library as the peer; and its decoder."""

from dataclasses import dataclass, field
from typing import Any

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, RequestReceived, StreamEnded
from h2.settings import SettingCodes, Settings
from hpack import Decoder, Encoder, OversizedHeaderListError
from hypothesis import given
from hypothesis import strategies as st

from spoakit.apps.mirror.http.http2_head import parse_head
from spoakit.apps.mirror.http.http2_protocol import (
    CONNECTION_WINDOW,
    WINDOW,
    ClientProtocol,
    ErrorCode,
    Http2Error,
)
from spoakit.apps.mirror.http.http2_response import (
    CachingDecoder,
    Http2Response,
    parse_response_head,
)
from tests.support.http2_peer import Fields, frame, get

DATA, HEADERS, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 4, 6, 7, 8, 9
END_STREAM, ACK, END_HEADERS, PADDED, PRIORITY = 1, 1, 4, 8, 32


class Recorder:
    """A listener that keeps what it is called with."""

    def __init__(self) -> None:
        self.protocol = ClientProtocol(self)
        self.ended: list[Http2Response] = []
        self.failed: list[tuple[Http2Response, str | int]] = []
        self.protocol.start()

    def send(self, request: Any) -> Http2Response:
        last = self.protocol.last_id
        response = Http2Response(request, last + 2 if last else 1, 0.0)
        self.protocol.send_head(response, parse_head(request, b"http"))
        return response

    def send_bodies(self) -> None:
        """Send what the windows allow of all bodies."""
        for response in self.protocol.streams.values():
            while response.unsent and (size := self.protocol.sendable(response)) > 0:
                wire = response.request.wire
                start = len(wire) - response.unsent
                self.protocol.send_data(response, wire[start : start + size])

    def on_settings(self) -> None:
        pass

    def on_end(self, response: Http2Response) -> None:
        self.ended.append(self.protocol.streams.pop(response.stream_id))

    def on_reset(self, response: Http2Response, code: int) -> None:
        self.failed.append((self.protocol.streams.pop(response.stream_id), code))

    def on_malformed(self, response: Http2Response, text: str) -> None:
        self.failed.append((self.protocol.streams.pop(response.stream_id), text))

    def on_goaway(self, last: int, code: int, data: bytes) -> None:
        pass


@dataclass(frozen=True)
class Exchange:
    """A request and its response.

    Attributes:
        sent: the size of the request's body.
        head: the size of a field of the request, which may need more than one frame.
        pieces: the sizes of the pieces of the response's body, each with its padding.
        interim: how many informational responses come first.
        trailers: whether it has some.
        has_length: whether it has a Content-Length.
    """

    sent: int
    head: int
    pieces: list[tuple[int, int | None]]
    interim: int
    trailers: bool
    has_length: bool

    @property
    def received(self) -> int:
        return sum(size for size, _ in self.pieces)


exchanges_of_all_kinds = st.lists(
    st.builds(
        Exchange,
        sent=st.sampled_from([0, 0, 1, 100, 70_000]),
        head=st.sampled_from([0, 100, 16_300, 40_000]),
        pieces=st.lists(
            st.tuples(
                st.sampled_from([0, 1, 1_000, 16_000]), st.sampled_from([None, None, 0, 1, 255])
            ),
            max_size=4,
        ),
        interim=st.integers(0, 2),
        trailers=st.booleans(),
        has_length=st.booleans(),
    ),
    min_size=1,
    max_size=5,
)


@dataclass
class Server:
    """The h2 library's end.

    Attributes:
        heads: the fields of the requests by their streams.
        bodies: what came of their bodies.
        complete: the streams whose request is complete and not responded to yet.
    """

    window: int
    frame_size: int
    h2: H2Connection = field(init=False)
    heads: dict[int, Fields] = field(default_factory=dict)
    bodies: dict[int, bytes] = field(default_factory=dict)
    complete: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.h2 = H2Connection(H2Configuration(client_side=False, header_encoding=None))
        values = {
            SettingCodes.INITIAL_WINDOW_SIZE: self.window,
            SettingCodes.MAX_FRAME_SIZE: self.frame_size,
        }
        self.h2.local_settings = Settings(client=False, initial_values=values)
        self.h2.max_inbound_frame_size = self.frame_size
        self.h2.initiate_connection()

    def receive(self, data: bytes) -> None:
        for event in self.h2.receive_data(data):
            if isinstance(event, RequestReceived):
                self.heads[event.stream_id] = [(bytes(a), bytes(b)) for a, b in event.headers]
                self.bodies[event.stream_id] = b""
            elif isinstance(event, DataReceived):
                self.bodies[event.stream_id] += event.data
                size = event.flow_controlled_length
                self.h2.acknowledge_received_data(size, event.stream_id)
            elif isinstance(event, StreamEnded):
                self.complete.append(event.stream_id)

    def respond(self, stream_id: int, exchange: Exchange) -> None:
        for _ in range(exchange.interim):
            self.h2.send_headers(stream_id, [(b":status", b"103")])
        head = [(b":status", b"200"), (b"x-id", b"%d" % stream_id)]
        if exchange.has_length:
            head.append((b"content-length", b"%d" % exchange.received))
        self.h2.send_headers(stream_id, head)
        for size, padding in exchange.pieces:
            self.h2.send_data(stream_id, bytes(size), pad_length=padding)
        if exchange.trailers:
            self.h2.send_headers(stream_id, [(b"grpc-status", b"7")], end_stream=True)
        else:
            self.h2.end_stream(stream_id)


@given(
    exchanges=exchanges_of_all_kinds,
    window=st.sampled_from([500, 65_535, 1_000_000]),
    frame_size=st.sampled_from([16_384, 30_000]),
    step=st.sampled_from([1_000_000, 5_000, 333]),
    changed=st.sampled_from([None, 600, 100_000]),
)
def test_what_h2_sends_and_receives_is_what_was_meant(
    exchanges: list[Exchange], window: int, frame_size: int, step: int, changed: int | None
) -> None:
    client, server = Recorder(), Server(window, frame_size)
    server.receive(client.protocol.data_to_send())
    client.protocol.receive(server.h2.data_to_send(), 0.0)
    responses = [
        client.send(get(b"/", b"POST", bytes(each.sent), b"x: " + b"h" * each.head + b"\r\n"))
        for each in exchanges
    ]
    if changed is not None:
        server.h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: changed})
        client.protocol.receive(server.h2.data_to_send(), 0.0)
    while True:
        client.send_bodies()
        server.receive(client.protocol.data_to_send())
        for stream_id in server.complete:
            server.respond(stream_id, exchanges[stream_id // 2])
        server.complete.clear()
        data = server.h2.data_to_send()
        if not data:
            break
        for at in range(0, len(data), step):
            client.protocol.receive(data[at : at + step], 1.0)
    assert client.failed == []
    assert client.protocol.streams == {}
    assert len(client.ended) == len(exchanges)
    for response, exchange in zip(responses, exchanges, strict=True):
        assert (response.status, response.received) == (200, exchange.received)
        assert response.grpc_status == (b"7" if exchange.trailers else None)
        assert server.bodies[response.stream_id] == bytes(exchange.sent)
        assert server.heads[response.stream_id] == parse_head(response.request, b"http")


def opened() -> tuple[Recorder, Http2Response]:
    """Return a connection with one request on its way."""
    client = Recorder()
    client.protocol.receive(frame(SETTINGS), 0.0)
    response = client.send(get())
    client.protocol.data_to_send()
    return client, response


@pytest.mark.parametrize(
    ("broken", "code"),
    [
        (frame(HEADERS, b"\x05\x88", 1, PADDED | END_HEADERS), ErrorCode.PROTOCOL_ERROR),
        (frame(HEADERS, b"\x88", 1, PRIORITY | END_HEADERS), ErrorCode.PROTOCOL_ERROR),
        (
            frame(HEADERS, b"\x88", 1, END_HEADERS) + frame(DATA, b"", 1, PADDED),
            ErrorCode.PROTOCOL_ERROR,
        ),
        (frame(HEADERS, b"\x88", 1) + frame(PING, bytes(8)), ErrorCode.PROTOCOL_ERROR),
        (frame(HEADERS, b"\x88", 1) + frame(200), ErrorCode.PROTOCOL_ERROR),
        (frame(HEADERS, b"", 1) + frame(PING, bytes(8)), ErrorCode.PROTOCOL_ERROR),
        (frame(HEADERS, b"", 1) + frame(CONTINUATION, b"", 1) * 64, ErrorCode.ENHANCE_YOUR_CALM),
        (
            frame(HEADERS, bytes(16_384), 1) + frame(CONTINUATION, bytes(16_384), 1) * 8,
            ErrorCode.ENHANCE_YOUR_CALM,
        ),
        (frame(HEADERS, b"\x40", 1, END_HEADERS), ErrorCode.COMPRESSION_ERROR),
        (frame(SETTINGS, b"\0\5\0\0\0\1"), ErrorCode.PROTOCOL_ERROR),
        (frame(SETTINGS, b"", 1), ErrorCode.PROTOCOL_ERROR),
        (frame(SETTINGS, bytes(6), 0, ACK), ErrorCode.FRAME_SIZE_ERROR),
        (frame(PING, bytes(7)), ErrorCode.FRAME_SIZE_ERROR),
        (frame(GOAWAY, bytes(7)), ErrorCode.FRAME_SIZE_ERROR),
        (frame(WINDOW_UPDATE, bytes(3), 1), ErrorCode.FRAME_SIZE_ERROR),
        (frame(WINDOW_UPDATE, bytes(4)), ErrorCode.FLOW_CONTROL_ERROR),
        (frame(WINDOW_UPDATE, (1).to_bytes(4), 3), ErrorCode.PROTOCOL_ERROR),
    ],
)
def test_connection_errors_have_their_codes(broken: bytes, code: ErrorCode) -> None:
    client, _ = opened()
    with pytest.raises(Http2Error) as caught:
        client.protocol.receive(broken, 0.0)
    assert caught.value.code == code


@pytest.mark.parametrize("opening", [bytes(4), b"\x7f\xff\xff\xff"])
def test_a_window_that_cannot_be_ends_its_stream(opening: bytes) -> None:
    client, response = opened()
    client.protocol.receive(frame(WINDOW_UPDATE, opening, 1), 0.0)
    [(failed, text)] = client.failed
    assert failed is response
    assert "window" in str(text)


def test_windows_are_opened_when_half_of_them_is_used() -> None:
    client, _ = opened()
    client.protocol.receive(frame(HEADERS, b"\x88", 1, END_HEADERS), 0.0)
    piece = frame(DATA, bytes(16_384), 1)
    for count in range(1, CONNECTION_WINDOW // 2 // 16_384 + 1):
        client.protocol.receive(piece, 0.0)
        expected = b""
        if count * 16_384 == CONNECTION_WINDOW // 2:
            expected += frame(WINDOW_UPDATE, (CONNECTION_WINDOW // 2).to_bytes(4))
        if count * 16_384 % (WINDOW // 2) == 0:
            expected += frame(WINDOW_UPDATE, (WINDOW // 2).to_bytes(4), 1)
        assert client.protocol.data_to_send() == expected


def test_data_of_a_stream_that_is_over_opens_the_connection_s_window() -> None:
    client, _ = opened()
    client.protocol.receive(frame(HEADERS, b"\x88", 1, END_HEADERS | END_STREAM), 0.0)
    for _ in range(CONNECTION_WINDOW // 2 // 16_384):
        assert client.protocol.data_to_send() == b""
        client.protocol.receive(frame(DATA, bytes(16_384), 1), 0.0)
    opening = frame(WINDOW_UPDATE, (CONNECTION_WINDOW // 2).to_bytes(4))
    assert client.protocol.data_to_send() == opening


def test_frames_that_mean_nothing_to_a_client_are_left_alone() -> None:
    client, response = opened()
    client.protocol.receive(
        frame(2, bytes(5), 1)  # PRIORITY
        + frame(10, b"extension", 77)
        + frame(PING, bytes(8), 0, ACK)
        + frame(HEADERS, bytes(5) + b"\x88", 1, END_HEADERS | END_STREAM | PRIORITY),
        0.0,
    )
    assert client.ended == [response]
    assert client.protocol.data_to_send() == b""


@pytest.mark.parametrize(
    ("values", "length", "is_head"),
    [
        ([], None, True),
        ([b"5"], 5, True),
        ([b"5", b"5"], 5, True),
        ([b"5, 5"], 5, True),
        ([b"0"], 0, True),
        ([b""], None, False),
        ([b"-1"], None, False),
        ([b"5", b"6"], None, False),
        (["\u0663".encode()], None, False),
    ],
)
def test_a_length_is_a_number(values: list[bytes], length: int | None, is_head: bool) -> None:
    fields = [(b":status", b"200"), *((b"content-length", value) for value in values)]
    head = parse_response_head(fields)
    assert (head.length, not head.error) == (length, is_head)


fields = st.lists(
    st.tuples(
        st.sampled_from([b":status", b"content-length", b"grpc-status", b"b"]),
        st.sampled_from([b"200", b"7", b"y", b"z" * 40]),
        st.booleans(),
    ),
    max_size=4,
)


@given(blocks=st.lists(fields, max_size=30), sizes=st.lists(st.sampled_from([0, 70, 4096])))
def test_what_is_known_by_heart_is_what_would_be_decoded(
    blocks: list[list[tuple[bytes, bytes, bool]]], sizes: list[int]
) -> None:
    encoder, plain, repeating = Encoder(), Decoder(), CachingDecoder(65536)
    for number, block in enumerate(blocks):
        if number % 5 == 4 and sizes:
            encoder.header_table_size = sizes.pop()
        encoded = encoder.encode(block)
        expected = [field[:2] for field in block]
        assert [tuple(field) for field in plain.decode(encoded, raw=True)] == expected
        assert repeating.decode_head(encoded) == parse_response_head(expected)


def test_a_block_that_is_too_large_stays_so() -> None:
    block = Encoder().encode([(b"a", b"x" * 100, True)])
    decoder = CachingDecoder(50)
    for _ in range(2):
        with pytest.raises(OversizedHeaderListError):
            decoder.decode_head(block)
