"""Frames of every type (SPOE.txt 3.2); `split_notifies` is the fast way for NOTIFYs."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

from spoakit.exceptions import InvalidFrameError
from spoakit.spop._decode_cy import decode_varint
from spoakit.spop._encode_cy import encode_varint
from spoakit.spop.constants import FrameFlag, FrameType

LENGTH_SIZE = 4
FLAGS_SIZE = 4
_IDS_AT = 1 + FLAGS_SIZE
_SMALL = 256

T = TypeVar("T")
# Indexed by the two bits that are defined; bits 2 to 31 are reserved (3.2).
_FLAGS = tuple(map(FrameFlag, range(4)))
_FINAL = tuple(flags for flags in _FLAGS if FrameFlag.FIN in flags)


@dataclass(frozen=True, slots=True)
class Frame:
    """Parsed frame; ``ids`` are STREAM-ID and FRAME-ID as they came."""

    type: int
    flags: FrameFlag
    ids: bytes
    payload: bytes

    @property
    def stream_id(self) -> int:
        """The number of the stream; 0 in handshakes and disconnects."""
        return decode_varint(self.ids)[0]

    @property
    def frame_id(self) -> int:
        """The number of the frame in its stream; 0 in handshakes and disconnects."""
        return decode_varint(self.ids, decode_varint(self.ids)[1])[0]

    @property
    def is_final(self) -> bool:
        """True for the last or only fragment of a payload."""
        return self.flags in _FINAL


def cache_small(decode: Callable[[bytes], T]) -> Callable[[bytes], T]:
    """Cache the last 64 results of a decoder, for data of up to 256 bytes.

    An engine's HELLOs and DISCONNECTs are the same on each of its connections.
    """
    cached = lru_cache(64)(decode)

    def decode_cached(data: bytes) -> T:
        return cached(data) if len(data) <= _SMALL else decode(data)

    return decode_cached


@cache_small
def decode_frame(data: bytes) -> Frame:
    """Decode a complete frame, given without its length.

    Raises:
        InvalidFrameError: it ends before its payload.
    """
    if len(data) < _IDS_AT:
        raise InvalidFrameError(f"a frame of {len(data)} bytes is too short for its flags")
    flags = _FLAGS[data[_IDS_AT - 1] & 0b11]
    _, frame_id_at = decode_varint(data, _IDS_AT)
    _, payload_at = decode_varint(data, frame_id_at)
    return Frame(data[0], flags, data[_IDS_AT:payload_at], data[payload_at:])


def encode_ids(stream_id: int, frame_id: int) -> bytes:
    """Encode STREAM-ID and FRAME-ID."""
    return encode_varint(stream_id) + encode_varint(frame_id)


NO_IDS = encode_ids(0, 0)


def encode_frame(
    kind: FrameType, payload: bytes, *, ids: bytes = NO_IDS, flags: FrameFlag = FrameFlag.FIN
) -> bytes:
    """Encode a frame, beginning with its length."""
    frame = bytes((kind,)) + flags.to_bytes(FLAGS_SIZE, "big") + ids + payload
    return len(frame).to_bytes(LENGTH_SIZE, "big") + frame
