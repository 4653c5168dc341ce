"""Timeouts and pings of HTTP/2, and peers that do not read."""

import asyncio
import socket

import pytest
from h2.events import StreamReset
from h2.settings import SettingCodes

from tests.support.copier import Run
from tests.support.http2_frames import DATA, END_HEADERS, END_STREAM, HEADERS, PING
from tests.support.http2_peer import Peer, answer_nothing, connected, frame, get, listening
from tests.support.waiting import until


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
            assert listener.error == "the target does not read from the connection"

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
