"""Requests over HTTP/2: they arrive, and share a connection as its peer allows."""

from h2.events import SettingsAcknowledged
from h2.settings import SettingCodes

from tests.support.copier import Run
from tests.support.http2_peer import answer_nothing, connected, get, listening
from tests.support.waiting import until


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
