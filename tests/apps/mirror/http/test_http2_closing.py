"""Ends of a connection of HTTP/2: GOAWAY, retirement, closing."""

import pytest
from h2.errors import ErrorCodes
from h2.events import ConnectionTerminated

from tests.support.copier import Run
from tests.support.http2_frames import END_HEADERS, END_STREAM, GOAWAY, HEADERS
from tests.support.http2_peer import answer_nothing, connected, frame, get, listening
from tests.support.waiting import until


def test_after_goaway_what_was_begun_is_answered_and_the_rest_may_be_sent_again(run: Run) -> None:
    async def scenario() -> None:
        requests = [get(b"/%d" % number) for number in range(4)]
        async with (
            listening(answer_nothing) as target,
            connected(target.port, *requests) as listener,
        ):
            await until(lambda: len(target.requests()) == 4)
            # All in one piece, and h2 itself would not read on behind a GOAWAY.
            goaway = frame(GOAWAY, (3).to_bytes(4) + bytes(4))
            response = frame(HEADERS, b"\x88", 3, END_STREAM | END_HEADERS)
            target.peer.write(goaway + response)
            await listener.ended(3)
            assert listener.connection.room == 0
            assert [request for request, _, _ in listener.failures] == requests[2:]
            assert all(retry for _, _, retry in listener.failures)
            assert "closed" not in listener.calls
            target.peer.write(frame(HEADERS, b"\x88", 1, END_STREAM | END_HEADERS))
            await until(lambda: "closed" in listener.calls)
            assert [request for _, request in listener.responses] == [requests[1], requests[0]]
            assert listener.error == "the target ended the connection: NO_ERROR"
            await until(lambda: target.peer.is_lost)

    run(scenario())


def test_a_goaway_in_two_steps_is_followed(run: Run) -> None:
    async def scenario() -> None:
        requests = [get(b"/%d" % number) for number in range(3)]
        async with (
            listening(answer_nothing) as target,
            connected(target.port, *requests) as listener,
        ):
            await until(lambda: len(target.requests()) == 3)
            target.peer.write(frame(GOAWAY, b"\x7f\xff\xff\xff" + bytes(4)))
            await until(lambda: listener.connection.room == 0)
            assert listener.failures == []
            target.peer.write(frame(GOAWAY, (1).to_bytes(4) + bytes(4)))
            await listener.ended(2)
            target.peer.response(1)
            await until(lambda: "closed" in listener.calls)
            assert listener.statuses() == [200]

    run(scenario())


def test_a_goaway_without_requests_is_the_end(run: Run) -> None:
    async def scenario() -> None:
        async with listening() as target, connected(target.port) as listener:
            target.peer.write(frame(GOAWAY, bytes(8)))
            await until(lambda: "closed" in listener.calls)
            assert listener.error == "the target ended the connection: NO_ERROR"
            assert listener.connection.room == 0

    run(scenario())


def test_a_goaway_with_an_error_fails_all(run: Run) -> None:
    async def scenario() -> None:
        async with (
            listening(answer_nothing) as target,
            connected(target.port, get(), get()) as listener,
        ):
            await until(lambda: len(target.requests()) == 2)
            calm = int(ErrorCodes.ENHANCE_YOUR_CALM)
            target.peer.write(frame(GOAWAY, (1).to_bytes(4) + calm.to_bytes(4) + b"too many"))
            await until(lambda: "closed" in listener.calls)
            error = "the target ended the connection: ENHANCE_YOUR_CALM (b'too many')"
            assert {each for _, each, _ in listener.failures} == {error}
            assert sorted(retry for _, _, retry in listener.failures) == [False, True]
            assert listener.error == error

    run(scenario())


def test_a_retired_connection_closes_with_its_last_answer(run: Run) -> None:
    async def scenario() -> None:
        async with (
            listening(answer_nothing) as target,
            connected(target.port, get(), get()) as listener,
        ):
            await until(lambda: len(target.requests()) == 2)
            listener.connection.retire()
            assert listener.connection.room == 0
            target.peer.response(1)
            await listener.ended(1)
            assert "closed" not in listener.calls
            target.peer.response(3)
            await until(lambda: "closed" in listener.calls)
            assert listener.statuses() == [200, 200]
            await until(lambda: target.peer.is_lost)
            assert target.peer.has(ConnectionTerminated)

    run(scenario())


def test_a_retired_connection_without_requests_closes_at_once(run: Run) -> None:
    async def scenario() -> None:
        async with listening() as target, connected(target.port) as listener:
            listener.connection.retire()
            assert listener.calls == ["open", "closed"]

    run(scenario())


def test_closing_fails_what_is_on_its_way_and_says_goodbye(run: Run) -> None:
    async def scenario() -> None:
        async with (
            listening(answer_nothing) as target,
            connected(target.port, get()) as listener,
        ):
            await until(lambda: len(target.requests()) == 1)
            listener.connection.send(get(b"/written-with-the-goodbye"))
            listener.connection.close()
            assert [each[1:] for each in listener.failures] == [
                ("the mirror is stopping", False)
            ] * 2
            await until(lambda: target.peer.is_lost)
            assert target.peer.has(ConnectionTerminated)

    run(scenario())


def test_a_connection_without_further_stream_identifiers_retires(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        monkeypatch.setattr("spoakit.apps.mirror.http.http2.MAX_STREAM_ID", 7)
        requests = [get(b"/%d" % number) for number in range(6)]
        async with listening() as target, connected(target.port, *requests) as listener:
            await until(lambda: "closed" in listener.calls)
            assert listener.statuses() == [200] * 4
            assert len(listener.waiting) == 2

    run(scenario())


def test_streams_that_are_over_are_forgotten(run: Run) -> None:
    async def scenario() -> None:
        async with listening() as target, connected(target.port) as listener:
            for count in range(1, 300):
                listener.send(get())
                await listener.ended(count)
            assert len(listener.connection._protocol.streams) == 0

    run(scenario())
