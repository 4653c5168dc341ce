import pytest

from spoakit.exceptions import InvalidFrameError
from spoakit.spop.constants import FrameFlag, FrameType
from spoakit.spop.frames import decode_frame, encode_frame, encode_ids


def test_a_frame_is_its_length_type_flags_ids_and_payload() -> None:
    data = encode_frame(FrameType.NOTIFY, b"payload", ids=encode_ids(240, 1))
    assert data == b"\0\0\0\x0f" + b"\x03" + b"\0\0\0\x01" + b"\xf0\x00\x01" + b"payload"


@pytest.mark.parametrize("kind", FrameType)
@pytest.mark.parametrize("flags", [FrameFlag(value) for value in range(4)])
def test_every_frame_is_read_as_it_was_written(kind: FrameType, flags: FrameFlag) -> None:
    data = encode_frame(kind, b"payload", ids=encode_ids(2**64 - 1, 300), flags=flags)
    frame = decode_frame(data[4:])
    assert (frame.type, frame.flags, frame.payload) == (kind, flags, b"payload")
    assert (frame.stream_id, frame.frame_id) == (2**64 - 1, 300)
    assert frame.is_final is (FrameFlag.FIN in flags)


def test_a_frame_without_ids_of_its_own_has_zeros() -> None:
    frame = decode_frame(encode_frame(FrameType.AGENT_HELLO, b"")[4:])
    assert (frame.stream_id, frame.frame_id, frame.payload) == (0, 0, b"")
    assert frame.flags is FrameFlag.FIN


def test_reserved_flags_are_ignored() -> None:
    assert decode_frame(b"\x03\xff\xff\xff\xfd\x01\x01").flags is FrameFlag.FIN


def test_an_unknown_type_is_read_all_the_same() -> None:
    assert decode_frame(b"\x2a\0\0\0\x01\x01\x01").type == 42


def test_a_frame_that_ends_before_its_payload_is_invalid() -> None:
    data = encode_frame(FrameType.NOTIFY, b"", ids=encode_ids(240, 240))[4:]
    for size in range(len(data)):
        with pytest.raises(InvalidFrameError):
            decode_frame(data[:size])
