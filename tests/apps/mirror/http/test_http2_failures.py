"""Failures over HTTP/2: resets, malformed frames, and targets that speak something else."""

import asyncio

import pytest
from h2.errors import ErrorCodes
from h2.events import ConnectionTerminated

from tests.support.copier import Run
from tests.support.http2_frames import (
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PUSH_PROMISE,
    SETTINGS,
)
from tests.support.http2_peer import Peer, answer_nothing, connected, frame, get, listening
from tests.support.waiting import until


@pytest.mark.parametrize(
    ("code", "retry"),
    [
        (ErrorCodes.REFUSED_STREAM, True),
        (ErrorCodes.INTERNAL_ERROR, False),
        (ErrorCodes.HTTP_1_1_REQUIRED, False),
        (0x7777, False),
    ],
)
def test_a_reset_request_failed_and_the_others_go_on(run: Run, code: int, retry: bool) -> None:
    async def scenario() -> None:
        def response(peer: Peer, stream_id: int) -> None:
            if stream_id == 3:
                peer.h2.reset_stream(stream_id, code)
            else:
                peer.response(stream_id)

        requests = [get(b"/%d" % number) for number in range(3)]
        async with listening(response) as target, connected(target.port, *requests) as listener:
            await listener.ended(3)
            [(request, error, retried)] = listener.failures
            assert request is requests[1]
            name = code.name if isinstance(code, ErrorCodes) else "error 30583"
            assert error == f"the target reset the request's stream: {name}"
            assert retried is retry
            assert listener.connection.room == 100

    run(scenario())


def test_what_was_never_written_may_be_sent_again(run: Run) -> None:
    async def scenario() -> None:
        async with (
            listening(answer_nothing) as target,
            connected(target.port, get(b"/1")) as listener,
        ):
            await until(lambda: len(target.requests()) == 1)
            listener.connection.send(get(b"/2"))
            listener.connection.connection_lost(ConnectionResetError("reset"))
            assert [(request.target, retry) for request, _, retry in listener.failures] == [
                (b"/1", False),
                (b"/2", True),
            ]

    run(scenario())


def test_a_connection_that_ends_fails_what_was_on_its_way(run: Run) -> None:
    async def scenario() -> None:
        def response(peer: Peer, stream_id: int) -> None:
            peer.transport.close()

        async with listening(response) as target, connected(target.port, get()) as listener:
            await until(lambda: "closed" in listener.calls)
            [(_, error, retry)] = listener.failures
            assert (error, retry) == ("the target closed the connection", False)
            assert listener.calls == ["open", "failure", "closed"]

    run(scenario())


def test_an_idle_connection_that_the_target_closes_is_no_failure(run: Run) -> None:
    async def scenario() -> None:
        async with listening() as target, connected(target.port) as listener:
            target.peer.transport.close()
            await until(lambda: "closed" in listener.calls)
            assert listener.failures == []
            assert listener.error is None

    run(scenario())


@pytest.mark.parametrize(
    ("broken", "error"),
    [
        (frame(DATA, b"x", 0), "DATA|Frame|frame|Stream ID"),
        (frame(DATA, b"x", 9, END_STREAM), "stream|9|Stream"),
        (frame(HEADERS, b"\xff\xff\xff\xff\xff", 1, END_HEADERS), "header block"),
        (frame(SETTINGS, b"xxx"), "SETTINGS of 3 bytes"),
        (frame(SETTINGS, b"\0\4\xff\xff\xff\xff"), "INITIAL_WINDOW_SIZE|Invalid|value"),
        (frame(DATA, bytes(20_000), 1), "overlong frame: length 20000"),
        (frame(PUSH_PROMISE, (2).to_bytes(4) + b"\x88", 1, END_HEADERS), "pushed stream"),
        (frame(9, b"", 1, END_HEADERS), "RECV_CONTINUATION|CONTINUATION|Stream"),
        (frame(8, b"\x7f\xff\xff\xff", 0) * 2, "window|Window"),
        (frame(HEADERS, b"\x88", 1, END_HEADERS) + frame(DATA, b"", 2), "Stream|stream|2"),
    ],
)
def test_malformed_frames_end_the_connection(run: Run, broken: bytes, error: str) -> None:
    async def scenario() -> None:
        def response(peer: Peer, stream_id: int) -> None:
            peer.write(broken)

        async with listening(response) as target, connected(target.port, get()) as listener:
            await until(lambda: "closed" in listener.calls)
            [(_, said, retry)] = listener.failures
            assert said.startswith("malformed HTTP/2: ")
            assert any(each in said for each in error.split("|")), said
            assert retry is False
            assert listener.error == said
            await until(lambda: target.peer.is_lost)
            [goaway] = [each for each in target.peer.events if type(each) is ConnectionTerminated]
            assert goaway.error_code != ErrorCodes.NO_ERROR

    run(scenario())


def test_a_head_without_a_status_is_no_answer_and_the_others_go_on(run: Run) -> None:
    async def scenario() -> None:
        def response(peer: Peer, stream_id: int) -> None:
            if stream_id == 1:
                peer.write(frame(HEADERS, b"\x90", 1, END_HEADERS))  # accept-encoding
            else:
                peer.response(stream_id)

        async with listening(response) as target, connected(target.port, get(), get()) as listener:
            await listener.ended(2)
            [(_, error, _)] = listener.failures
            assert error == "malformed response: it has no status"
            assert listener.statuses() == [200]

    run(scenario())


def test_a_head_that_is_too_large_ends_the_connection(run: Run) -> None:
    async def scenario() -> None:
        def response(peer: Peer, stream_id: int) -> None:
            large = [(b"x-%d" % number, b"y" * 1000) for number in range(70)]
            peer.response(stream_id, [(b":status", b"200"), *large])

        async with listening(response) as target, connected(target.port, get()) as listener:
            await listener.ended(1)
            [(_, error, _)] = listener.failures
            assert "header list larger than 65536" in error

    run(scenario())


@pytest.mark.parametrize(
    "greeting",
    [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"SSH-2.0-OpenSSH_9.2\r\n", frame(GOAWAY, bytes(8))],
)
def test_a_target_that_speaks_something_else_is_told_apart(run: Run, greeting: bytes) -> None:
    async def scenario() -> None:
        async with (
            listening(greeting=greeting) as target,
            connected(target.port, opens=False) as listener,
        ):
            await until(lambda: "closed" in listener.calls)
            error = listener.error
            assert error is not None
            assert error.startswith("the target does not speak HTTP/2: it begins with b")
            assert listener.calls == ["closed"]

    run(scenario())


def test_settings_may_come_byte_by_byte(run: Run) -> None:
    async def scenario() -> None:
        async with (
            listening(greeting=b"") as target,
            connected(target.port, opens=False) as listener,
        ):
            await until(lambda: bool(target.peers))
            for byte in frame(SETTINGS, b"\0\3\0\0\0\5"):
                target.peer.transport.write(bytes((byte,)))
                await asyncio.sleep(0.001)
            await until(lambda: listener.calls == ["open"])
            assert listener.connection.room == 5

    run(scenario())


def test_a_target_that_says_nothing_is_given_up(run: Run) -> None:
    async def scenario() -> None:
        async with (
            listening(greeting=b"") as target,
            connected(target.port, opens=False) as listener,
        ):
            await until(lambda: bool(target.peers))
            listener.connection.give_up_opening(5)
            assert listener.error is not None
            assert "no SETTINGS within 5 s" in listener.error

    run(scenario())


def test_a_target_that_closes_at_once_may_not_speak_http2(run: Run) -> None:
    async def scenario() -> None:
        async with (
            listening(greeting=b"") as target,
            connected(target.port, opens=False) as listener,
        ):
            await until(lambda: bool(target.peers))
            target.peer.transport.close()
            await until(lambda: "closed" in listener.calls)
            assert "does not speak HTTP/2?" in str(listener.error)

    run(scenario())
