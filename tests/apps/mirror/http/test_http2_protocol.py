import pytest
from hpack import Decoder, Encoder, OversizedHeaderListError
from hypothesis import given
from hypothesis import strategies as st

from spoakit.apps.mirror.http.http2_protocol import RepeatingDecoder

fields = st.lists(
    st.tuples(
        st.sampled_from([b":status", b"a", b"b"]),
        st.sampled_from([b"200", b"x", b"y", b"z" * 40]),
        st.booleans(),
    ),
    max_size=4,
)


@given(blocks=st.lists(fields, max_size=30), sizes=st.lists(st.sampled_from([0, 70, 4096])))
def test_what_is_known_by_heart_is_what_would_be_decoded(
    blocks: list[list[tuple[bytes, bytes, bool]]], sizes: list[int]
) -> None:
    encoder, plain, repeating = Encoder(), Decoder(), RepeatingDecoder(65536)
    for number, block in enumerate(blocks):
        if number % 5 == 4 and sizes:
            encoder.header_table_size = sizes.pop()
        encoded = encoder.encode(block)
        expected = [field[:2] for field in block]
        assert [tuple(field) for field in plain.decode(encoded, raw=True)] == expected
        assert [tuple(field) for field in repeating.decode(encoded, raw=True)] == expected


def test_a_block_that_is_too_large_stays_so() -> None:
    block = Encoder().encode([(b"a", b"x" * 100, True)])
    decoder = RepeatingDecoder(50)
    for _ in range(2):
        with pytest.raises(OversizedHeaderListError):
            decoder.decode(block, raw=True)
