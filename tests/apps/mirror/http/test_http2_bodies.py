"""Bodies over HTTP/2: flow control, and responses of all kinds."""

import asyncio

import pytest
from h2.events import StreamReset
from h2.settings import SettingCodes

from tests.support.copier import Run
from tests.support.http2_peer import Peer, connected, get, listening
from tests.support.waiting import until


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
