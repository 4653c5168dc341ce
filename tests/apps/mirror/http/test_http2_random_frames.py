"""Random frames of a peer: each request still ends exactly once."""

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from spoakit.apps.mirror.http.http2 import Http2Connection
from tests.support.http2_frames import (
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    RST_STREAM,
    SETTINGS,
)
from tests.support.http2_peer import Listener, frame, get

frames = st.lists(
    st.one_of(
        st.builds(
            frame,
            st.integers(0, 12),
            st.binary(max_size=24),
            st.sampled_from([0, 1, 2, 3, 5, 2**31]),
            st.integers(0, 255),
        ),
        st.sampled_from(
            [
                frame(HEADERS, b"\x88", 1, END_HEADERS),
                frame(HEADERS, b"\x88", 3, END_HEADERS | END_STREAM),
                frame(DATA, b"abc", 1, END_STREAM),
                frame(RST_STREAM, bytes(4), 3),
                frame(GOAWAY, (1).to_bytes(4) + bytes(4)),
                frame(8, (100).to_bytes(4), 5),
                frame(SETTINGS, b"\0\4\0\0\0\0"),
            ]
        ),
        st.binary(max_size=12),
    ),
    max_size=12,
)


class Sink(asyncio.Transport):
    """A transport that leads nowhere, for what is about frames alone."""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        pass

    def close(self) -> None:
        pass

    def abort(self) -> None:
        pass


@given(pieces=frames)
def test_whatever_a_peer_says_each_request_ends_exactly_once(pieces: list[bytes]) -> None:
    async def scenario() -> None:
        listener = Listener()
        connection = listener.connection = Http2Connection(listener)
        connection.connection_made(Sink())
        connection.data_received(frame(SETTINGS))
        requests = [get(), get(), get(b"/", b"POST", bytes(70_000)), get()]
        listener.send(*requests)
        await asyncio.sleep(0)
        for piece in pieces:
            connection.data_received(piece)
        connection.connection_lost(None)
        sent = [request for _, request in listener.responses] + [
            each for each, _, _ in listener.failures
        ]
        assert len(sent) == len(requests)
        assert set(map(id, sent)) == set(map(id, requests))
        assert listener.calls.count("closed") == 1
        assert listener.calls[-1] == "closed"

    asyncio.run(scenario())
