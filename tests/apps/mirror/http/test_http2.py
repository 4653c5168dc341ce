import asyncio
import shutil
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from h2.errors import ErrorCodes
from h2.events import ConnectionTerminated, SettingsAcknowledged, StreamReset
from h2.settings import SettingCodes
from hypothesis import given
from hypothesis import strategies as st

from spoakit.apps.mirror.http.http2 import Http2Connection
from tests.support.copier import Run
from tests.support.http2_peer import (
    Listener,
    Peer,
    answer_nothing,
    connected,
    frame,
    get,
    listening,
)
from tests.support.ports import free_port
from tests.support.waiting import until

# Frame types (RFC 9113, 6).
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY = range(8)
END_STREAM, END_HEADERS = 1, 4


def test_a_request_arrives_as_it_was_and_is_answered(run: Run) -> None:
    async def scenario() -> None:
        request = get(b"/p?q", b"PATCH", b"hello", b"B: 1\r\na:\r\nb: \xe9\r\nB: 1\r\n")
        async with listening() as target, connected(target.port, request) as listener:
            await listener.ended(1)
            [seen] = target.requests()
            assert seen.body == b"hello"
            assert seen.fields == [
                (b":method", b"PATCH"),
                (b":scheme", b"http"),
                (b":authority", b"h"),
                (b":path", b"/p?q"),
                (b"b", b"1"),
                (b"a", b""),
                (b"b", b"\xe9"),
                (b"b", b"1"),
                (b"content-length", b"5"),
            ]
            [(response, answered)] = listener.responses
            assert answered is request
            assert (response.version, response.status, response.received) == (b"2", 200, 2)
            assert response.grpc_status is None
            assert listener.calls == ["open", "response", "room"]

    run(scenario())


def test_many_requests_share_a_connection(run: Run) -> None:
    async def scenario() -> None:
        requests = [get(b"/%d" % number) for number in range(2000)]
        async with listening() as target, connected(target.port, *requests) as listener:
            await listener.ended(2000)
            assert listener.statuses() == [200] * 2000
            assert {request.target for _, request in listener.responses} == {
                request.target for request in requests
            }
            assert len(target.peers) == 1
            assert listener.connection.room == 100
            assert listener.calls.count("room") < 1000

    run(scenario())


def test_what_one_round_of_the_loop_sends_arrives_in_one_piece(run: Run) -> None:
    async def scenario() -> None:
        async with listening() as target, connected(target.port) as listener:
            await target.peer.pinged()
            target.peer.sizes.clear()
            listener.send(*[get() for _ in range(20)])
            await listener.ended(20)
            assert len(target.peer.sizes) == 1

    run(scenario())


def test_the_peer_says_how_many_requests_it_takes_at_a_time(run: Run) -> None:
    async def scenario() -> None:
        limit = {SettingCodes.MAX_CONCURRENT_STREAMS: 3}
        requests = [get() for _ in range(10)]
        async with (
            listening(answer_nothing, settings=limit) as target,
            connected(target.port, *requests) as listener,
        ):
            await until(lambda: len(target.requests()) == 3)
            assert (listener.connection.room, listener.connection.in_flight) == (0, 3)
            target.peer.response(1)
            await until(lambda: len(target.requests()) == 4)
            target.peer.h2.update_settings({SettingCodes.MAX_CONCURRENT_STREAMS: 7})
            target.peer.flush()
            await until(lambda: len(target.requests()) == 8)
            assert listener.connection.in_flight == 7

    run(scenario())


def test_a_peer_without_a_limit_gets_a_bounded_number(run: Run) -> None:
    async def scenario() -> None:
        limit = {SettingCodes.MAX_CONCURRENT_STREAMS: 100_000}
        async with listening(settings=limit) as target, connected(target.port) as listener:
            assert listener.connection.room == 128

    run(scenario())


def test_a_peer_that_takes_none_for_now_gets_none(run: Run) -> None:
    async def scenario() -> None:
        limit = {SettingCodes.MAX_CONCURRENT_STREAMS: 0}
        async with (
            listening(settings=limit) as target,
            connected(target.port, get(), opens=False) as listener,
        ):
            await until(lambda: bool(target.peers) and target.peer.has(SettingsAcknowledged))
            assert listener.connection.room == 0
            assert listener.calls == []
            target.peer.h2.update_settings({SettingCodes.MAX_CONCURRENT_STREAMS: 1})
            target.peer.flush()
            await listener.ended(1)
            assert listener.calls == ["open", "response", "room"]

    run(scenario())


def test_a_limit_below_what_is_on_its_way_leaves_no_room(run: Run) -> None:
    async def scenario() -> None:
        requests = [get() for _ in range(5)]
        async with (
            listening(answer_nothing) as target,
            connected(target.port, *requests) as listener,
        ):
            await until(lambda: len(target.requests()) == 5)
            target.peer.h2.update_settings({SettingCodes.MAX_CONCURRENT_STREAMS: 2})
            target.peer.flush()
            await until(lambda: listener.connection.room == 0)
            for stream_id in (1, 3, 5, 7, 9):
                target.peer.response(stream_id)
            await listener.ended(5)
            assert listener.connection.room == 2

    run(scenario())


@pytest.mark.parametrize("window", [0, 1, 7, 65_535])
def test_a_body_is_sent_as_the_windows_allow(run: Run, window: int) -> None:
    async def scenario() -> None:
        size = 20 if window == 1 else 200_000
        body = bytes(range(250)) * (size // 10)
        body = body[:size]
        settings = {SettingCodes.INITIAL_WINDOW_SIZE: window}
        async with (
            listening(settings=settings, reads=False) as target,
            connected(target.port, get(b"/", b"POST", body), get(b"/2")) as listener,
        ):
            await until(lambda: len(listener.responses) == 1)
            assert len(target.peer.seen[1].body) <= window
            h2 = target.peer.h2
            h2.increment_flow_control_window(size)
            target.peer.flush()
            while len(listener.responses) < 2:
                step = min(size, 50_000)
                if 1 in h2.streams and not h2.streams[1].closed:
                    h2.increment_flow_control_window(step, 1)
                    target.peer.flush()
                await asyncio.sleep(0.002)
            assert target.peer.seen[1].body == body

    run(scenario())


def test_a_window_that_settings_open_lets_bodies_go_on(run: Run) -> None:
    async def scenario() -> None:
        settings = {SettingCodes.INITIAL_WINDOW_SIZE: 0}
        requests = [get(b"/", b"POST", b"x" * 100) for _ in range(3)]
        async with (
            listening(settings=settings) as target,
            connected(target.port, *requests) as listener,
        ):
            await until(lambda: len(target.peer.seen) == 3)
            target.peer.h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 1000})
            target.peer.flush()
            await listener.ended(3)
            assert [seen.body for seen in target.requests()] == [b"x" * 100] * 3

    run(scenario())


def test_a_body_that_nobody_reads_does_not_hold_up_its_answer(run: Run) -> None:
    async def scenario() -> None:
        settings = {SettingCodes.INITIAL_WINDOW_SIZE: 10}
        async with (
            listening(settings=settings, reads=False) as target,
            connected(target.port, get(b"/", b"POST", b"x" * 100)) as listener,
        ):
            await until(lambda: 1 in target.peer.seen)
            target.peer.response(1)
            await listener.ended(1)
            assert listener.statuses() == [200]
            await until(lambda: target.peer.has(StreamReset))
            listener.send(get())
            await listener.ended(2)
            assert listener.failures == []

    run(scenario())


def test_a_long_answer_is_read_to_its_end_and_counted(run: Run) -> None:
    async def scenario() -> None:
        size = 12_000_000

        async def feed(peer: Peer, stream_id: int) -> None:
            peer.h2.send_headers(stream_id, [(b":status", b"200")])
            sent = 0
            while sent < size:
                window = peer.h2.local_flow_control_window(stream_id)
                piece = min(16_000, window, size - sent)
                if piece:
                    pad = 9 if window > 20_000 else None
                    peer.h2.send_data(stream_id, bytes(piece), sent + piece == size, pad)
                    sent += piece
                    peer.flush()
                await asyncio.sleep(0)

        tasks: list[asyncio.Task[None]] = []

        def response(peer: Peer, stream_id: int) -> None:
            tasks.append(asyncio.ensure_future(feed(peer, stream_id)))

        async with listening(response) as target, connected(target.port, get()) as listener:
            await listener.ended(1)
            [(answer_, _)] = listener.responses
            assert answer_.received == size
            await asyncio.gather(*tasks)

    run(scenario())


@pytest.mark.parametrize("status", [b"204", b"304", b"500"])
def test_an_answer_may_have_no_body(run: Run, status: bytes) -> None:
    async def scenario() -> None:
        def response(peer: Peer, stream_id: int) -> None:
            peer.response(stream_id, [(b":status", status)], b"")

        async with listening(response) as target, connected(target.port, get()) as listener:
            await listener.ended(1)
            assert listener.statuses() == [int(status)]

    run(scenario())


def test_the_answer_to_head_has_no_body_whatever_its_length(run: Run) -> None:
    async def scenario() -> None:
        def response(peer: Peer, stream_id: int) -> None:
            peer.response(stream_id, [(b":status", b"200"), (b"content-length", b"1000")], b"")

        async with (
            listening(response) as target,
            connected(target.port, get(method=b"HEAD")) as listener,
        ):
            await listener.ended(1)
            assert listener.statuses() == [200]

    run(scenario())


def test_interim_answers_are_not_the_answer(run: Run) -> None:
    async def scenario() -> None:
        def response(peer: Peer, stream_id: int) -> None:
            for status in (b"100", b"103", b"103"):
                peer.h2.send_headers(stream_id, [(b":status", status), (b"link", b"x")])
            peer.response(stream_id)

        async with listening(response) as target, connected(target.port, get()) as listener:
            await listener.ended(1)
            assert listener.statuses() == [200]

    run(scenario())


def test_trailers_are_read(run: Run) -> None:
    async def scenario() -> None:
        def response(peer: Peer, stream_id: int) -> None:
            if stream_id == 1:
                peer.h2.send_headers(stream_id, [(b":status", b"200")])
                peer.h2.send_data(stream_id, b"abc")
                peer.h2.send_headers(stream_id, [(b"grpc-status", b"5")], end_stream=True)
            else:
                peer.response(stream_id, [(b":status", b"200"), (b"grpc-status", b"12")], b"")

        async with listening(response) as target, connected(target.port, get(), get()) as listener:
            await listener.ended(2)
            assert [(each.received, each.grpc_status) for each, _ in listener.responses] == [
                (3, b"5"),
                (0, b"12"),
            ]

    run(scenario())


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


def test_a_ping_is_answered(run: Run) -> None:
    async def scenario() -> None:
        async with listening() as target, connected(target.port):
            await target.peer.pinged()

    run(scenario())


def test_a_peer_that_asks_and_does_not_read_is_given_up(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spoakit.apps.mirror.http.http2._MAX_UNREAD", 64 * 1024)

    async def scenario() -> None:
        async with listening() as target, connected(target.port) as listener:
            target.peer.transport.pause_reading()
            assert listener.connection._transport is not None
            # The kernel is to keep few of the responses: each costs h2 some microseconds.
            for transport, buffer in (
                (target.peer.transport, socket.SO_RCVBUF),
                (listener.connection._transport, socket.SO_SNDBUF),
            ):
                transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, buffer, 65536)
            while "closed" not in listener.calls:
                target.peer.transport.write(frame(PING, bytes(8)) * 1000)
                await asyncio.sleep(0.001)
            assert listener.error == "the target does not read what it is sent"

    run(scenario())


def test_there_is_no_room_while_the_peer_does_not_read(run: Run) -> None:
    async def scenario() -> None:
        settings = {
            SettingCodes.INITIAL_WINDOW_SIZE: 2**31 - 1,
            SettingCodes.MAX_CONCURRENT_STREAMS: 128,
        }
        requests = [get(b"/", b"POST", bytes(100_000)) for _ in range(300)]
        async with (
            listening(settings=settings) as target,
            connected(target.port) as listener,
        ):
            target.peer.h2.increment_flow_control_window(2**30)
            await target.peer.pinged()
            target.peer.transport.pause_reading()
            listener.send(*requests)
            await until(lambda: listener.connection.room == 0)
            assert listener.connection.in_flight < 128
            target.peer.transport.resume_reading()
            await listener.ended(300)
            assert len(listener.responses) == 300

    run(scenario())


def test_an_overdue_answer_is_given_up_and_the_others_are_awaited(run: Run) -> None:
    async def scenario() -> None:
        async with listening(answer_nothing) as target, connected(target.port) as listener:
            listener.send(get(b"/slow"))
            await until(lambda: len(target.requests()) == 1)
            await asyncio.sleep(0.02)
            listener.send(get(b"/fine"))
            await until(lambda: len(target.requests()) == 2)
            await target.peer.pinged()
            sent_at = [response.sent_at for response in listener.connection._responses.values()]
            listener.connection.expire(sent_at[0] + 0.99, 1, 2)
            assert listener.failures == []
            listener.connection.expire(sent_at[0] + 1.01, 1, 2)
            [(request, error, retry)] = listener.failures
            assert (request.target, error, retry) == (b"/slow", "no response within 1 s", False)
            await until(lambda: target.peer.has(StreamReset))
            target.peer.response(3)
            await listener.ended(2)
            assert listener.statuses() == [200]
            assert listener.connection.room == 100

    run(scenario())


def test_what_comes_late_of_an_answer_given_up_is_ignored(run: Run) -> None:
    async def scenario() -> None:
        async with listening(answer_nothing) as target, connected(target.port, get()) as listener:
            await until(lambda: len(target.requests()) == 1)
            await asyncio.sleep(0.02)
            listener.send(get())
            await until(lambda: len(target.requests()) == 2)
            await target.peer.pinged()
            listener.connection.expire(listener.connection._responses[1].sent_at + 1.01, 1, 2)
            assert len(listener.failures) == 1
            head = frame(HEADERS, b"\x88", 1, END_HEADERS)
            target.peer.write(head + frame(DATA, b"late", 1, END_STREAM))
            target.peer.write(frame(HEADERS, b"\x88", 3, END_HEADERS | END_STREAM))
            await listener.ended(2)
            assert listener.statuses() == [200]

    run(scenario())


def test_an_answer_that_does_not_end_is_given_up(run: Run) -> None:
    async def scenario() -> None:
        def response(peer: Peer, stream_id: int) -> None:
            peer.h2.send_headers(stream_id, [(b":status", b"200")])

        async with listening(response) as target, connected(target.port, get()) as listener:
            connection = listener.connection
            await until(
                lambda: bool(connection._responses) and connection._responses[1].status == 200
            )
            now = connection._responses[1].sent_at
            connection.expire(now + 9, 5, 10)
            assert listener.failures == []
            connection.expire(now + 11, 5, 10)
            [(_, error, _)] = listener.failures
            assert error == "no whole response within 10 s"
            assert "closed" not in listener.calls

    run(scenario())


def test_a_connection_that_says_nothing_any_more_is_given_up(run: Run) -> None:
    async def scenario() -> None:
        async with listening(answer_nothing) as target, connected(target.port) as listener:
            await target.peer.pinged()
            listener.send(get(b"/1"))
            await until(lambda: len(target.requests()) == 1)
            target.peer.transport.pause_reading()
            await asyncio.sleep(0.05)
            listener.send(get(b"/2"))
            first, second = (each.sent_at for each in listener.connection._responses.values())
            listener.connection.expire(first + 1.01, 1, 2)
            assert [request.target for request, _, _ in listener.failures] == [b"/1"]
            assert listener.connection.room == 0  # until it says something
            assert "closed" not in listener.calls
            listener.connection.expire(second + 1.01, 1, 2)
            assert listener.calls == ["open", "failure", "room", "failure", "closed"]
            assert listener.error == "no response within 1 s"

    run(scenario())


def test_a_connection_that_says_something_after_all_is_used_again(run: Run) -> None:
    async def scenario() -> None:
        async with listening(answer_nothing) as target, connected(target.port) as listener:
            await target.peer.pinged()
            listener.send(get(b"/1"))
            await until(lambda: len(target.requests()) == 1)
            await asyncio.sleep(0.05)
            listener.send(get(b"/2"))
            first = listener.connection._responses[1].sent_at
            listener.connection.expire(first + 1.01, 1, 2)
            assert listener.connection.room == 0
            await until(lambda: listener.connection.room > 0)  # it responds the PING
            assert listener.calls[-1] == "room"

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


# The real thing.


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A key and a certificate for localhost: key.pem and cert.pem."""
    path = tmp_path_factory.mktemp("certificate")
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"),
            *("-keyout", path / "key.pem", "-out", path / "cert.pem"),
        ],
        check=True,
        capture_output=True,
    )
    return path


def tls(certificate: Path) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(certificate / "cert.pem"))
    context.set_alpn_protocols(["h2"])
    return context


@asynccontextmanager
async def running(port: int, *command: str | Path) -> AsyncIterator[None]:
    """Run a server until the end, having waited for its port."""
    process = await asyncio.create_subprocess_exec(
        *map(str, command),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        async with asyncio.timeout(10):
            while True:
                assert process.returncode is None, f"{command[0]} ended"
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                except OSError:
                    await asyncio.sleep(0.01)
                else:
                    writer.close()
                    break
        yield
    finally:
        process.terminate()
        await process.wait()


def program(name: str, package: str) -> str:
    path = shutil.which(name, path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin:/opt/bin")
    path = path or shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not installed (Debian: {package})")
    return path


@pytest.mark.parametrize("is_tls", [False, True], ids=["prior-knowledge", "tls"])
def test_nghttpd_is_copied_to(run: Run, tmp_path: Path, certificate: Path, is_tls: bool) -> None:
    nghttpd = program("nghttpd", "nghttp2-server")

    async def scenario() -> None:
        (tmp_path / "page").write_bytes(b"x" * 100_000)
        port = free_port()
        keys = [certificate / "key.pem", certificate / "cert.pem"] if is_tls else ["--no-tls"]
        options: dict[str, Any] = {}
        if is_tls:
            options = {"ssl": tls(certificate), "server_hostname": "localhost"}
        requests = [get(b"/page"), get(b"/none"), get(b"/page", b"POST", b"y" * 300_000)] * 100
        async with (
            running(port, nghttpd, "-a", "127.0.0.1", "-d", tmp_path, str(port), *keys),
            connected(port, *requests, **options) as listener,
        ):
            await listener.ended(300)
            assert listener.failures == []
            assert sorted(listener.statuses()) == [200] * 200 + [404] * 100
            assert {each.received for each, _ in listener.responses if each.status == 200} == {
                100_000
            }
            if is_tls:
                assert listener.connection._scheme == b"https"

    run(scenario())


def test_nginx_is_copied_to_until_it_goes_away(run: Run, tmp_path: Path, certificate: Path) -> None:
    nginx = program("nginx", "nginx-light")

    async def scenario() -> None:
        port = free_port()
        configuration = tmp_path / "nginx.conf"
        configuration.write_text(f"""
            daemon off; master_process off; pid {tmp_path}/pid; error_log /dev/null;
            events {{}}
            http {{
                access_log off; client_body_temp_path {tmp_path}/body;
                proxy_temp_path {tmp_path}/p; fastcgi_temp_path {tmp_path}/f;
                uwsgi_temp_path {tmp_path}/u; scgi_temp_path {tmp_path}/s;
                keepalive_requests 50;
                server {{
                    listen 127.0.0.1:{port} ssl http2;
                    ssl_certificate {certificate}/cert.pem;
                    ssl_certificate_key {certificate}/key.pem;
                    location / {{ return 200 "hello\\n"; }}
                }}
            }}""")
        requests = [get(b"/%d" % number) for number in range(120)]
        command = (nginx, "-p", tmp_path, "-c", configuration, "-e", "/dev/null")
        async with running(port, *command):
            answered: list[int] = []
            connections = 0
            while requests:
                async with connected(
                    port, *requests, ssl=tls(certificate), server_hostname="localhost"
                ) as listener:
                    await listener.ended(len(requests) - len(listener.waiting))
                    await until(lambda: listener.connection.in_flight == 0)
                    answered += [response.received for response, _ in listener.responses]
                    assert all(retry for _, _, retry in listener.failures), listener.failures
                    requests = [request for request, _, _ in listener.failures] + listener.waiting
                    connections += 1
            assert answered == [6] * 120
            assert connections > 1

    run(scenario())


@pytest.fixture
def grpc_server() -> Iterator[tuple[int, list[Any]]]:
    """A gRPC server that turns messages around; its port, and what it was called with."""
    grpc: Any = pytest.importorskip("grpc", reason="grpcio is not installed")
    calls: list[Any] = []

    def reverse(message: bytes, context: Any) -> bytes:
        calls.append((message, dict(context.invocation_metadata())))
        if message == b"wrong":
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "as asked for")
        return message[::-1]

    handlers = {"Reverse": grpc.unary_unary_rpc_method_handler(reverse)}
    server = grpc.server(ThreadPoolExecutor(1))
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("test.Test", handlers)])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield port, calls
    server.stop(None).wait()


def test_a_unary_grpc_call_arrives_and_its_trailers_are_read(
    run: Run, grpc_server: tuple[int, list[Any]]
) -> None:
    port, calls = grpc_server

    def call(message: bytes, method: bytes = b"Reverse") -> Any:
        body = b"\0" + len(message).to_bytes(4) + message
        fields = b"content-type: application/grpc\r\nx-key: value\r\n"
        return get(b"/test.Test/" + method, b"POST", body, fields)

    async def scenario() -> None:
        messages = [b"message", b"wrong", b"z" * 100_000]
        requests = [*map(call, messages), call(b"", b"Unknown")]
        async with connected(port, *requests) as listener:
            await listener.ended(4)
            assert listener.statuses() == [200] * 2
            assert sorted(each.received for each, _ in listener.responses) == [12, 100_005]
            assert {each.grpc_status for each, _ in listener.responses} == {b"0"}
            assert {id(request): (text, retry) for request, text, retry in listener.failures} == {
                id(requests[1]): ("grpc-status 3: as asked for", False),
                id(requests[3]): ("grpc-status 12: Method not found!", False),
            }

    run(scenario())
    assert sorted(message for message, _ in calls) == sorted([b"message", b"wrong", b"z" * 100_000])
    assert all(metadata["x-key"] == "value" for _, metadata in calls)
