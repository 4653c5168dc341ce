"""Responses that break the rules (RFC 9113, 8.1.1): each costs its own stream and no other."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from h2.errors import ErrorCodes
from h2.events import StreamReset
from h2.settings import SettingCodes

from tests.support.copier import Run
from tests.support.http2_peer import (
    OK,
    Fields,
    Peer,
    answer_nothing,
    connected,
    frame,
    get,
    listening,
)
from tests.support.waiting import until

Copying = Callable[..., Any]

DATA, HEADERS, CONTINUATION = 0, 1, 9
END_STREAM, END_HEADERS = 1, 4

STATUS = (b":status", b"200")


def sized(*lengths: bytes, status: bytes = b"200") -> Fields:
    """Return the fields of a response with these lengths."""
    return [(b":status", status), *((b"content-length", length) for length in lengths)]


Part = tuple[Fields | bytes, bool]
"""Fields or data, and whether they end the stream."""


def write(peer: Peer, stream_id: int, parts: Sequence[Part]) -> None:
    """Write frames of a stream behind h2's back."""
    for content, is_end in parts:
        flags = END_STREAM if is_end else 0
        if isinstance(content, bytes):
            peer.write(frame(DATA, content, stream_id, flags))
        else:
            block = peer.h2.encoder.encode(content)
            peer.write(frame(HEADERS, block, stream_id, flags | END_HEADERS))


MALFORMED: dict[str, tuple[list[Part], str]] = {
    "too many bytes": ([(sized(b"2"), False), (b"abc", True)], "Content-Length"),
    "too many bytes, later": ([(sized(b"2"), False), (b"ab", False), (b"c", False)], "Content-"),
    "too few bytes": ([(sized(b"5"), False), (b"ok", True)], "Content-Length"),
    "too few bytes, empty DATA": ([(sized(b"5"), False), (b"ok", False), (b"", True)], "Content-"),
    "too few bytes, trailers": (
        [(sized(b"5"), False), (b"ok", False), ([(b"a", b"b")], True)],
        "Content-Length",
    ),
    "no bytes": ([(sized(b"5"), True)], "Content-Length"),
    "not a number": ([(sized(b"two"), False), (b"ok", True)], "Content-Length"),
    "a sign": ([(sized(b"+2"), False), (b"ok", True)], "Content-Length"),
    "two lengths": ([(sized(b"2", b"3"), False), (b"ok", True)], "Content-Length"),
    "a list of lengths": ([(sized(b"2, 3"), False), (b"ok", True)], "Content-Length"),
    "trailers that do not end it": (
        [([STATUS], False), (b"ok", False), ([(b"a", b"b")], False)],
        "railers",
    ),
    "informational at the end": ([([(b":status", b"103")], True)], "nformational"),
    "no final response": ([([(b":status", b"103")], False), (b"", True)], "before"),
    "data before the head": ([(b"ok", True)], "before"),
    "no status": ([([(b"a", b"b")], True)], "status"),
    "status of two digits": ([([(b":status", b"20")], True)], "status"),
    "status of letters": ([([(b":status", b"abc")], True)], "status"),
}


@pytest.mark.parametrize("parts", MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_response_costs_its_stream_alone(
    run: Run, parts: tuple[list[Part], str]
) -> None:
    written, error = parts

    async def scenario() -> None:
        async with listening(answer_nothing) as target, connected(target.port) as listener:
            requests = [get(b"/%d" % number) for number in range(11)]
            listener.send(*requests)
            await until(lambda: len(target.requests()) == 11)
            write(target.peer, 11, written)
            for stream_id in range(1, 23, 2):
                if stream_id != 11:
                    target.peer.response(stream_id)
            await listener.ended(11)
            assert listener.statuses() == [200] * 10
            [(request, said, retry)] = listener.failures
            assert request is requests[5]
            assert said.startswith("malformed response: ")
            assert error in said
            assert not retry
            await until(lambda: target.peer.has(StreamReset))
            [reset] = [each for each in target.peer.events if isinstance(each, StreamReset)]
            assert (reset.stream_id, reset.error_code) == (11, ErrorCodes.PROTOCOL_ERROR)
            # What comes late of it does not matter, and the connection goes on.
            write(target.peer, 11, [(b"late", False), ([(b"late", b"x")], True)])
            await target.peer.pinged()
            listener.send(get())
            await until(lambda: len(target.requests()) == 12)
            target.peer.response(23)
            await listener.ended(12)
            assert len(target.peers) == 1

    run(scenario())


EMPTY: dict[str, tuple[bytes, list[Part]]] = {
    "304": (b"GET", [(sized(b"5", status=b"304"), True)]),
    "304, empty DATA": (b"GET", [(sized(b"5", status=b"304"), False), (b"", True)]),
    "204": (b"GET", [(sized(b"0", status=b"204"), True)]),
    "204 with a length, empty DATA": (b"GET", [(sized(b"5", status=b"204"), False), (b"", True)]),
    "HEAD": (b"HEAD", [(sized(b"1000"), True)]),
    "HEAD, empty DATA": (b"HEAD", [(sized(b"1000"), False), (b"", True)]),
    "HEAD, trailers": (b"HEAD", [(sized(b"1000"), False), ([(b"a", b"b")], True)]),
    "equal lengths": (b"GET", [(sized(b"0", b"0"), True)]),
}


@pytest.mark.parametrize(("method", "parts"), EMPTY.values(), ids=EMPTY)
def test_a_length_of_a_response_without_a_body_is_fine(
    run: Run, method: bytes, parts: list[Part]
) -> None:
    async def scenario() -> None:
        def response(peer: Peer, stream_id: int) -> None:
            write(peer, stream_id, parts)

        async with (
            listening(response) as target,
            connected(target.port, get(method=method)) as listener,
        ):
            await listener.ended(1)
            assert listener.failures == []
            [(answer, _)] = listener.responses
            assert answer.received == 0
            await target.peer.pinged()
            assert not target.peer.has(StreamReset)

    run(scenario())


@pytest.mark.parametrize(("method", "status"), [(b"HEAD", b"200"), (b"GET", b"304")])
def test_a_body_where_there_is_none_is_odd(run: Run, method: bytes, status: bytes) -> None:
    async def scenario() -> None:
        def response(peer: Peer, stream_id: int) -> None:
            write(peer, stream_id, [(sized(b"5", status=status), False), (b"ok", True)])

        request = get(method=method)
        async with listening(response) as target, connected(target.port, request) as listener:
            await listener.ended(1)
            assert listener.statuses() == [int(status)]
            assert listener.calls == ["open", "odd", "response", "room"]

    run(scenario())


@pytest.mark.parametrize("malformed", [(sized(b"5"), True), (b"ok", True)], ids=["length", "data"])
def test_a_malformed_response_counts_and_the_others_arrive(
    run: Run, copying: Copying, malformed: Part
) -> None:
    def response(peer: Peer, stream_id: int) -> None:
        if stream_id == 11:
            write(peer, stream_id, [malformed])
        else:
            peer.response(stream_id)

    async def scenario() -> None:
        pool = {"connections": 1}
        async with listening(response) as server:
            async with copying(server.port, http="2", **pool) as mirror:
                for number in range(11):
                    mirror.get(b"/%d" % number)
                await mirror.answered(10)
                await until(lambda: mirror.target.counters.failed == 1)
                assert mirror.target.counters.failures == {"malformed": 1}
                # Ten responses show that the target is well.
                assert mirror.target.counters.responses == 10
            assert len(server.peers) == 1
            assert sum("malformed response: " in line for line in mirror.lines()) == 1

    run(scenario())


@pytest.mark.parametrize("kind", ["two lengths", "too few bytes", "not a number"])
def test_a_target_that_speaks_http_badly_gets_all_copies(
    run: Run, copying: Copying, kind: str
) -> None:
    parts, _ = MALFORMED[kind]

    def response(peer: Peer, stream_id: int) -> None:
        write(peer, stream_id, parts)

    async def scenario() -> None:
        async with listening(response) as server, copying(server.port, http="2") as mirror:
            for _ in range(20):
                mirror.get()
            await until(lambda: mirror.target.counters.failed == 20)
            assert mirror.target.counters.failures == {"malformed": 20}
            [pool] = mirror.target._pools
            assert pool.health.trouble is None
            assert len(server.peers) == 1

    run(scenario())


def test_a_head_in_pieces_is_one(run: Run) -> None:
    def response(peer: Peer, stream_id: int) -> None:
        block = peer.h2.encoder.encode(OK)
        peer.write(
            frame(HEADERS, block[:1], stream_id)
            + frame(CONTINUATION, b"", stream_id)
            + frame(CONTINUATION, block[1:], stream_id, END_HEADERS)
            + frame(DATA, b"ok", stream_id, END_STREAM)
        )

    async def scenario() -> None:
        async with listening(response) as target, connected(target.port, get()) as listener:
            await listener.ended(1)
            assert listener.statuses() == [200]

    run(scenario())


# Slots follow a limit that changes.


def limit(peer: Peer, streams: int) -> None:
    """Change how many streams the peer allows."""
    peer.h2.update_settings({SettingCodes.MAX_CONCURRENT_STREAMS: streams})
    peer.flush()


@pytest.mark.parametrize("connections", [1, 64])
@pytest.mark.parametrize("in_flight", [0, 5])
def test_all_requests_arrive_when_the_limit_is_lowered(
    run: Run, copying: Copying, connections: int, in_flight: int
) -> None:
    held: list[int] = []
    most = 0
    is_holding = True

    def response(peer: Peer, stream_id: int) -> None:
        nonlocal most
        if is_holding and in_flight:
            held.append(stream_id)
        else:
            most = max(most, peer.h2.open_inbound_streams)
            peer.response(stream_id)

    async def scenario() -> None:
        nonlocal is_holding
        pool = {"connections": connections}
        async with listening(response) as server:
            async with copying(server.port, http="2", **pool) as mirror:
                first = in_flight or 1
                for number in range(first):
                    mirror.get(b"/first-%d" % number)
                await until(lambda: len(server.requests()) == first)
                peer = server.peers[0]
                limit(peer, 1)
                await peer.pinged()
                is_holding = False
                for number in range(10):
                    mirror.get(b"/%d" % number)
                for stream_id in held:
                    peer.response(stream_id)
                await mirror.answered(first + 10)
                assert mirror.target.counters.failed == mirror.target.counters.dropped == 0
            if connections == 1:
                assert most == 1
                assert len(server.peers) == 1

    run(scenario())


def test_all_requests_arrive_at_a_stop_when_the_limit_is_lowered(
    run: Run, copying: Copying
) -> None:
    async def scenario() -> None:
        pool = {"connections": 1}
        async with listening() as server:
            async with copying(server.port, http="2", **pool) as mirror:
                mirror.get()
                await mirror.answered(1)
                limit(server.peer, 1)
                await server.peer.pinged()
                for number in range(10):
                    mirror.get(b"/%d" % number)
            counters = mirror.target.counters
            assert (counters.responses, counters.failed, counters.dropped) == (11, 0, 0)
            assert len(server.requests()) == 11

    run(scenario())


@pytest.mark.parametrize("raised", [1, 100])
def test_a_limit_of_0_holds_requests_until_it_is_raised(
    run: Run, copying: Copying, raised: int
) -> None:
    async def scenario() -> None:
        pool = {"connections": 1}
        async with (
            listening() as server,
            copying(server.port, http="2", **pool) as mirror,
        ):
            mirror.get()
            await mirror.answered(1)
            limit(server.peer, 0)
            await server.peer.pinged()
            for number in range(10):
                mirror.get(b"/%d" % number)
            await server.peer.pinged()
            assert len(server.requests()) == 1
            limit(server.peer, raised)
            await mirror.answered(11)
            assert len(server.peers) == 1

    run(scenario())


def test_a_limit_that_is_raised_again_is_used(run: Run, copying: Copying) -> None:
    answers = True

    def response(peer: Peer, stream_id: int) -> None:
        if answers:
            peer.response(stream_id)

    async def scenario() -> None:
        nonlocal answers
        pool = {"connections": 1}
        async with (
            listening(response) as server,
            copying(server.port, http="2", **pool) as mirror,
        ):
            mirror.get()
            await mirror.answered(1)
            for streams in (1, 7):
                limit(server.peer, streams)
                await server.peer.pinged()
            answers = False
            for number in range(10):
                mirror.get(b"/%d" % number)
            await until(lambda: server.peer.h2.open_inbound_streams == 7)
            await server.peer.pinged()
            assert server.peer.h2.open_inbound_streams == 7
            assert mirror.target.counters.received == 11
            answers = True
            for stream_id in range(3, 17, 2):
                server.peer.response(stream_id)
            await mirror.answered(11)

    run(scenario())


def test_room_follows_each_change(run: Run) -> None:
    async def scenario() -> None:
        async with listening() as target, connected(target.port) as listener:
            for streams in (1, 0, 100, 5):
                limit(target.peer, streams)
                await target.peer.pinged()
                assert listener.connection.room == streams

    run(scenario())
