import gzip
from io import BytesIO

import pytest

from spoakit.apps.iprep.exceptions import SourceError
from spoakit.apps.iprep.sources.chunks import CHUNK_SIZE, chunks_of


def test_pieces_are_whole_lines_and_all_of_the_file() -> None:
    data = b"".join(b"%d\n" % number for number in range(200_000))
    pieces = list(chunks_of(BytesIO(data)))
    assert len(pieces) > 2
    assert all(piece.endswith(b"\n") and len(piece) < 2 * CHUNK_SIZE for piece in pieces)
    assert b"".join(pieces) == data


@pytest.mark.parametrize("data", [b"a\nb", b"a\nb\n", b"\xef\xbb\xbfa\nb"])
def test_the_last_line_has_an_end_and_the_first_no_byte_order_mark(data: bytes) -> None:
    assert b"".join(chunks_of(BytesIO(data))) == b"a\nb\n"


def test_an_empty_file_has_no_pieces() -> None:
    assert list(chunks_of(BytesIO())) == []


def test_gzip_is_decompressed_also_of_several_members() -> None:
    data = gzip.compress(b"a\n") + gzip.compress(b"b\n")
    assert b"".join(chunks_of(BytesIO(data))) == b"a\nb\n"


def test_gzip_that_is_cut_off_or_damaged_is_refused() -> None:
    data = gzip.compress(bytes(range(256)) * 100)
    with pytest.raises(SourceError, match="it is cut off: its gzip has no end"):
        list(chunks_of(BytesIO(data[:-9])))
    with pytest.raises(SourceError, match="its gzip is damaged"):
        list(chunks_of(BytesIO(data[:40] + b"\xff" * 20 + data[60:])))


def test_what_is_too_large_is_refused_also_out_of_gzip() -> None:
    for data in (b"1" * 1001, gzip.compress(b"1" * 10_000_000)):
        with pytest.raises(SourceError, match="it is larger than 1000 bytes"):
            list(chunks_of(BytesIO(data), 1000))


def test_a_line_without_an_end_is_not_kept_whole() -> None:
    (piece,) = chunks_of(BytesIO(b"1" * (8 * CHUNK_SIZE)))
    assert len(piece) <= CHUNK_SIZE + 1
