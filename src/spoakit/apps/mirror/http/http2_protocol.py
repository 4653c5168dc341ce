"""Client side of an HTTP/2 connection (RFC 9113) without I/O: frames in, frames out.

It implements only the part that the mirror needs: response bodies are counted and discarded, and
there are no priorities, no pushed streams and no states of closed streams. The hpack library
decodes fields.
"""

from collections.abc import Callable, Sequence
from enum import IntEnum
from struct import Struct
from typing import Final

from hpack import HPACKError

from spoakit.apps.mirror.http.http2_head import Field, PlainEncoder
from spoakit.apps.mirror.http.http2_response import CachingDecoder, Http2Response, ResponseHead
from spoakit.apps.mirror.http.interfaces import Http2ProtocolListener
from spoakit.exceptions import SpoakitError

# Receive windows; they are opened again when half of them is used.
WINDOW: Final = 1024 * 1024
CONNECTION_WINDOW: Final = 4 * WINDOW

MAX_STREAM_ID: Final = 2**31 - 1

_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DEFAULT_WINDOW: Final = 65_535
_MAX_WINDOW: Final = 2**31 - 1
# Largest frames: of received ones always, of sent ones until the peer's SETTINGS raise it.
_MAX_FRAME_SIZE: Final = 16_384
_LARGEST_FRAME_SIZE: Final = 2**24 - 1
_MAX_HEAD_SIZE: Final = 64 * 1024
# Limits of a header block and of its number of frames: small fragments cost us more than the peer.
_MAX_CONTINUATIONS: Final = 64
_MAX_BLOCK_SIZE: Final = 2 * _MAX_HEAD_SIZE

_DATA, _HEADERS, _PRIORITY, _RST_STREAM, _SETTINGS = 0, 1, 2, 3, 4
_PUSH_PROMISE, _PING, _GOAWAY, _WINDOW_UPDATE, _CONTINUATION = 5, 6, 7, 8, 9
_END_STREAM, _ACK, _END_HEADERS, _PADDED, _HAS_PRIORITY = 0x1, 0x1, 0x4, 0x8, 0x20
_HEADER_TABLE_SIZE, _ENABLE_PUSH, _MAX_CONCURRENT_STREAMS = 1, 2, 3
_INITIAL_WINDOW_SIZE, _SETTING_MAX_FRAME_SIZE, _MAX_HEADER_LIST_SIZE = 4, 5, 6

# A frame's head: 24 bits of length and 8 of type, flags, stream.
_FRAME_HEAD: Final = Struct(">IBI")
_FRAME_HEAD_SIZE: Final = _FRAME_HEAD.size
_SETTING: Final = Struct(">HI")
_NUMBER: Final = Struct(">I")
_TWO_NUMBERS: Final = Struct(">II")

_pack_head: Final = _FRAME_HEAD.pack
_unpack_head: Final = _FRAME_HEAD.unpack_from


class ErrorCode(IntEnum):
    """Reasons for the end of a stream or a connection (RFC 9113, 7)."""

    NO_ERROR = 0x0
    PROTOCOL_ERROR = 0x1
    INTERNAL_ERROR = 0x2
    FLOW_CONTROL_ERROR = 0x3
    SETTINGS_TIMEOUT = 0x4
    STREAM_CLOSED = 0x5
    FRAME_SIZE_ERROR = 0x6
    REFUSED_STREAM = 0x7
    CANCEL = 0x8
    COMPRESSION_ERROR = 0x9
    CONNECT_ERROR = 0xA
    ENHANCE_YOUR_CALM = 0xB
    INADEQUATE_SECURITY = 0xC
    HTTP_1_1_REQUIRED = 0xD


class Http2Error(SpoakitError):
    """Connection error (RFC 9113, 5.4.1); the text says what the peer did.

    Attributes:
        code: the error code for GOAWAY.
    """

    def __init__(self, text: str, code: ErrorCode = ErrorCode.PROTOCOL_ERROR) -> None:
        super().__init__(text)
        self.code: Final = code


class ClientProtocol:
    """Protocol state of one connection.

    Args:
        listener: called by `receive`, for each response that ends and for the peer's settings.

    Attributes:
        streams: the responses in flight, by stream, the oldest first.
        is_over: whether to ignore further frames; the listener sets it.
        last_id: the newest stream, 0 before there is one.
        max_streams: the number of streams that the peer allows at a time.
    """

    def __init__(self, listener: Http2ProtocolListener) -> None:
        self.streams: Final[dict[int, Http2Response]] = {}
        self.is_over = False
        self.last_id = 0
        self.max_streams = _MAX_WINDOW  # no limit (RFC 9113, 6.5.2)
        self._listener = listener
        self._out: list[bytes] = []
        self._rest = b""  # the beginning of a frame
        self._encoder = PlainEncoder()
        self._decoder = CachingDecoder(_MAX_HEAD_SIZE)
        self._block: list[bytes] = []  # the fragments of an incomplete header block
        self._block_stream = self._block_flags = 0
        self._max_frame_size = _MAX_FRAME_SIZE
        self._window = self._initial_window = _DEFAULT_WINDOW
        self._unacknowledged = 0  # bytes received since the last WINDOW_UPDATE
        self._now = 0.0
        self._handlers: Final[Sequence[Callable[[bytes, int, int], None]]] = (
            self._on_data,
            self._on_headers,
            self._ignore,  # PRIORITY
            self._on_rst_stream,
            self._on_settings,
            self._on_push_promise,
            self._on_ping,
            self._on_goaway,
            self._on_window_update,
            self._on_continuation,
        )

    # Sending.

    def start(self) -> None:
        """Send the preface, which rules out pushes and opens large windows."""
        settings = (
            (_ENABLE_PUSH, 0),
            (_INITIAL_WINDOW_SIZE, WINDOW),
            (_MAX_HEADER_LIST_SIZE, _MAX_HEAD_SIZE),
        )
        self._out.append(_PREFACE)
        self._add(_SETTINGS, b"".join(_SETTING.pack(*setting) for setting in settings))
        self._open_window(0, CONNECTION_WINDOW - _DEFAULT_WINDOW)

    def send_head(self, response: Http2Response, fields: Sequence[Field]) -> None:
        """Send the head of a response's request, on a new stream."""
        block = self._encoder.encode(fields)
        stream_id = self.last_id = response.stream_id
        response.window = self._initial_window
        self.streams[stream_id] = response
        flags = 0 if response.unsent else _END_STREAM
        size = self._max_frame_size
        if len(block) <= size:
            self._add(_HEADERS, block, stream_id, flags | _END_HEADERS)
            return
        self._add(_HEADERS, block[:size], stream_id, flags)
        for at in range(size, len(block), size):
            is_last = at + size >= len(block)
            piece = block[at : at + size]
            self._add(_CONTINUATION, piece, stream_id, _END_HEADERS if is_last else 0)

    def sendable(self, response: Http2Response) -> int:
        """Return how many bytes of the request's body the next frame may have."""
        return min(response.unsent, response.window, self._window, self._max_frame_size)

    def send_data(self, response: Http2Response, data: bytes) -> None:
        """Send the next bytes of a request's body, at most `sendable`."""
        size = len(data)
        response.unsent -= size
        response.window -= size
        self._window -= size
        self._add(_DATA, data, response.stream_id, 0 if response.unsent else _END_STREAM)

    def reset(self, stream_id: int, code: ErrorCode) -> None:
        """Reset a stream (RFC 9113, 6.4)."""
        self._add(_RST_STREAM, _NUMBER.pack(code), stream_id)

    def ping(self, data: bytes) -> None:
        """Send a PING, which the peer must acknowledge."""
        self._add(_PING, data)

    def go_away(self, code: ErrorCode = ErrorCode.NO_ERROR) -> None:
        """Send GOAWAY. Its last stream is 0, since the peer has opened no streams."""
        self._add(_GOAWAY, _TWO_NUMBERS.pack(0, code))

    def data_to_send(self) -> bytes:
        """Return the bytes to write, and clear them."""
        out = self._out
        data = out[0] if len(out) == 1 else b"".join(out)
        out.clear()
        return data

    def _add(self, kind: int, payload: bytes, stream_id: int = 0, flags: int = 0) -> None:
        self._out.append(_pack_head(len(payload) << 8 | kind, flags, stream_id))
        self._out.append(payload)

    def _open_window(self, stream_id: int, size: int) -> None:
        self._add(_WINDOW_UPDATE, _NUMBER.pack(size), stream_id)

    # Receiving.

    def receive(self, data: bytes, now: float) -> None:
        """Process received bytes; an incomplete frame is kept for the next call.

        Args:
            data: the received bytes.
            now: the time, for `Http2Response.first_byte_at`.

        Raises:
            Http2Error: the peer violated the protocol; the connection must end.
        """
        self._now = now
        if self._rest:
            data = self._rest + data
        at = 0
        end = len(data)
        while end - at >= _FRAME_HEAD_SIZE and not self.is_over:
            word, flags, stream_id = _unpack_head(data, at)
            size = word >> 8
            if size > _MAX_FRAME_SIZE:
                text = f"overlong frame: length {size}, more than {_MAX_FRAME_SIZE}"
                raise Http2Error(text, ErrorCode.FRAME_SIZE_ERROR)
            start = at + _FRAME_HEAD_SIZE
            if end - start < size:
                break
            at = start + size
            kind = word & 0xFF
            if self._block and kind != _CONTINUATION:
                raise Http2Error(f"frame of type {kind} within a header block")
            if kind <= _CONTINUATION:
                self._handlers[kind](data[start:at], flags, stream_id & MAX_STREAM_ID)
        self._rest = data[at:]

    def _ignore(self, payload: bytes, flags: int, stream_id: int) -> None:
        """Ignore a frame."""

    def _on_data(self, payload: bytes, flags: int, stream_id: int) -> None:
        response = self._find(stream_id, "DATA")
        size = len(payload)
        self._unacknowledged += size
        if self._unacknowledged > CONNECTION_WINDOW:
            text = "more DATA than the connection's window allows"
            raise Http2Error(text, ErrorCode.FLOW_CONTROL_ERROR)
        if self._unacknowledged >= CONNECTION_WINDOW // 2:
            self._open_window(0, self._unacknowledged)
            self._unacknowledged = 0
        if response is None:
            return
        if not response.status:
            self._refuse(response, "DATA before its head")
            return
        response.unacknowledged += size
        if response.unacknowledged > WINDOW:
            text = "more DATA than the stream's window allows"
            self._refuse(response, text, ErrorCode.FLOW_CONTROL_ERROR)
            return
        response.received += size - (_padding(payload) if flags & _PADDED else 0)
        expected = response.expected
        if expected is not None and response.received > expected:
            text = f"{response.received} bytes and more, but its Content-Length is {expected}"
            self._refuse(response, text)
        elif flags & _END_STREAM:
            self._end(response)
        elif response.unacknowledged >= WINDOW // 2:
            self._open_window(stream_id, response.unacknowledged)
            response.unacknowledged = 0

    def _on_headers(self, payload: bytes, flags: int, stream_id: int) -> None:
        self._find(stream_id, "HEADERS")
        if flags & (_PADDED | _HAS_PRIORITY):
            payload = _without_extras(payload, flags)
        if flags & _END_HEADERS:
            self._on_block(payload, flags, stream_id)
        else:
            self._block.append(payload)
            self._block_stream = stream_id
            self._block_flags = flags

    def _on_continuation(self, payload: bytes, flags: int, stream_id: int) -> None:
        if not self._block or stream_id != self._block_stream:
            raise Http2Error(f"CONTINUATION without a header block on stream {stream_id}")
        self._block.append(payload)
        size = sum(map(len, self._block))
        if len(self._block) > _MAX_CONTINUATIONS or size > _MAX_BLOCK_SIZE:
            text = f"header block of more than {size} bytes in {len(self._block)} pieces"
            raise Http2Error(text, ErrorCode.ENHANCE_YOUR_CALM)
        if flags & _END_HEADERS:
            block = b"".join(self._block)
            self._block.clear()
            self._on_block(block, self._block_flags, stream_id)

    def _on_block(self, block: bytes, flags: int, stream_id: int) -> None:
        """Decode a complete header block.

        A block of an unknown stream is decoded as well, since it changes the decoder's table.
        """
        try:
            head = self._decoder.decode_head(block)
        except (HPACKError, IndexError) as error:  # hpack raises IndexError for a truncated block
            text = f"header block: {type(error).__name__}: {error}"
            raise Http2Error(text, ErrorCode.COMPRESSION_ERROR) from None
        response = self.streams.get(stream_id)
        if response is None:
            return
        is_end = bool(flags & _END_STREAM)
        if response.status:
            self._on_trailers(response, head, is_end)
        elif head.error:
            response.status = head.status  # it shows that the target speaks HTTP
            self._refuse(response, head.error)
        elif head.status >= 200:
            response.add_head(head, self._now)
            if is_end:
                self._end(response)
        elif is_end:
            self._refuse(response, "informational response that ends its stream")

    def _on_trailers(self, response: Http2Response, head: ResponseHead, is_end: bool) -> None:
        if not is_end:
            self._refuse(response, "trailers that do not end its stream")
            return
        response.add_trailers(head)
        self._end(response)

    def _end(self, response: Http2Response) -> None:
        expected = response.expected
        if expected is not None and response.received != expected:
            text = f"{response.received} bytes, but its Content-Length is {expected}"
            self._refuse(response, text)
        else:
            self._listener.on_end(response)

    def _refuse(
        self, response: Http2Response, text: str, code: ErrorCode = ErrorCode.PROTOCOL_ERROR
    ) -> None:
        """Reset only the stream of a malformed response (RFC 9113, 8.1.1)."""
        self.reset(response.stream_id, code)
        self._listener.on_malformed(response, text)

    def _on_rst_stream(self, payload: bytes, flags: int, stream_id: int) -> None:
        response = self._find(stream_id, "RST_STREAM")
        _check_size("RST_STREAM", payload, 4)
        if response is not None:
            self._listener.on_reset(response, _NUMBER.unpack(payload)[0])

    def _on_settings(self, payload: bytes, flags: int, stream_id: int) -> None:
        _check_connection("SETTINGS", stream_id)
        if flags & _ACK:
            _check_size("acknowledging SETTINGS", payload, 0)
            return
        if len(payload) % _SETTING.size:
            text = f"SETTINGS of {len(payload)} bytes, not a multiple of {_SETTING.size}"
            raise Http2Error(text, ErrorCode.FRAME_SIZE_ERROR)
        for name, value in _SETTING.iter_unpack(payload):
            if name == _MAX_CONCURRENT_STREAMS:
                self.max_streams = value
            elif name == _INITIAL_WINDOW_SIZE:
                self._change_windows(value)
            elif name == _SETTING_MAX_FRAME_SIZE:
                if not _MAX_FRAME_SIZE <= value <= _LARGEST_FRAME_SIZE:
                    raise Http2Error(f"SETTINGS with a MAX_FRAME_SIZE of {value}")
                self._max_frame_size = value
            elif name == _HEADER_TABLE_SIZE:
                self._encoder.header_table_size = value
        self._add(_SETTINGS, b"", flags=_ACK)
        self._listener.on_settings()

    def _change_windows(self, size: int) -> None:
        """Change the windows of all streams by the change of the initial one (6.9.2)."""
        change = size - self._initial_window
        self._initial_window = size
        largest = max((each.window for each in self.streams.values()), default=0)
        if max(size, largest + change) > _MAX_WINDOW:
            text = f"SETTINGS with an INITIAL_WINDOW_SIZE of {size}"
            raise Http2Error(text, ErrorCode.FLOW_CONTROL_ERROR)
        for response in self.streams.values():
            response.window += change

    def _on_push_promise(self, payload: bytes, flags: int, stream_id: int) -> None:
        raise Http2Error("pushed stream, which our SETTINGS rule out")

    def _on_ping(self, payload: bytes, flags: int, stream_id: int) -> None:
        _check_connection("PING", stream_id)
        _check_size("PING", payload, 8)
        if not flags & _ACK:
            self._add(_PING, payload, flags=_ACK)

    def _on_goaway(self, payload: bytes, flags: int, stream_id: int) -> None:
        _check_connection("GOAWAY", stream_id)
        if len(payload) < _TWO_NUMBERS.size:
            _check_size("GOAWAY", payload, _TWO_NUMBERS.size)
        last, code = _TWO_NUMBERS.unpack_from(payload)
        self._listener.on_goaway(last & MAX_STREAM_ID, code, payload[_TWO_NUMBERS.size :])

    def _on_window_update(self, payload: bytes, flags: int, stream_id: int) -> None:
        _check_size("WINDOW_UPDATE", payload, 4)
        size = _NUMBER.unpack(payload)[0] & _MAX_WINDOW
        if not stream_id:
            self._window += size
            if not size or self._window > _MAX_WINDOW:
                text = f"window of the connection opened by {size}"
                raise Http2Error(text, ErrorCode.FLOW_CONTROL_ERROR)
            return
        response = self._find(stream_id, "WINDOW_UPDATE")
        if response is not None:
            response.window += size
            if not size or response.window > _MAX_WINDOW:
                text = f"window of its stream opened by {size}"
                self._refuse(response, text, ErrorCode.FLOW_CONTROL_ERROR)

    def _find(self, stream_id: int, kind: str) -> Http2Response | None:
        """Return the response on a stream; None for a closed stream."""
        response = self.streams.get(stream_id)
        if response is None and (stream_id > self.last_id or not stream_id & 1):
            raise Http2Error(f"{kind} on stream {stream_id}, which was never opened")
        return response


def _check_connection(kind: str, stream_id: int) -> None:
    if stream_id:
        raise Http2Error(f"{kind} on stream {stream_id}, but it concerns the connection")


def _check_size(kind: str, payload: bytes, size: int) -> None:
    if len(payload) != size:
        text = f"{kind} of {len(payload)} bytes instead of {size}"
        raise Http2Error(text, ErrorCode.FRAME_SIZE_ERROR)


def _padding(payload: bytes) -> int:
    """Return the size of a payload's padding (RFC 9113, 6.1), its length byte included."""
    if not payload or payload[0] >= len(payload):
        raise Http2Error("padding of a frame as long as the frame")
    return payload[0] + 1


def _without_extras(payload: bytes, flags: int) -> bytes:
    """Return the fields of HEADERS without padding and priority (RFC 9113, 6.2)."""
    start, end = 0, len(payload)
    if flags & _PADDED:
        start = 1
        end -= _padding(payload) - 1
    if flags & _HAS_PRIORITY:
        start += 5
    if start > end:
        raise Http2Error("HEADERS shorter than its padding and priority")
    return payload[start:end]
