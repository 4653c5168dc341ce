"""Connections to one target: kept, replaced, limited, and tried again."""

import asyncio
import logging
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager

import pytest

from spoakit.apps.mirror.config.schema import Timeouts
from spoakit.apps.mirror.metrics import Counters
from tests.support.copier import Copying, Run
from tests.support.origin import OK, Origin, origin
from tests.support.ports import free_port
from tests.support.waiting import until

pytestmark = pytest.mark.slow

Response = Sequence[bytes | None]


@asynccontextmanager
async def slow_origin(delay: float) -> AsyncIterator[Origin]:
    """Run an `Origin` that takes time for each response."""

    class Slow(Origin):
        async def pause(self) -> None:
            await asyncio.sleep(delay)

    server = Slow()
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


def test_connections_are_used_again_and_not_more_than_allowed(run: Run, copying: Copying) -> None:
    async def scenario() -> None:
        async with (
            origin() as server,
            copying(server.port, connections=3) as mirror,
        ):
            for number in range(200):
                mirror.get(b"/%d" % number)
            await mirror.answered(200)
            assert len(server.requests) == 200
            assert server.connections == 3
            for _ in range(5):
                mirror.get()
                await mirror.answered(mirror.target.counters.received)
            assert server.connections == 3

    run(scenario())


@pytest.mark.parametrize(
    ("response", "logged"),
    [
        ([b"HTTP/1.1 200 OK\r\n\r\nall", b" there is", None], '1.1" 200 0/12'),
        ([b"HTTP/1.0 200 OK\r\n\r\n", None], '1.0" 200 0/0'),
        ([b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 1\r\n\r\n!"], '1.1" 200 0/1'),
        ([OK + b"HTTP/1.1 200 OK\r\n"], '1.1" 200 0/2'),
    ],
)
def test_a_connection_that_cannot_stay_is_replaced(
    run: Run, copying: Copying, response: Sequence[bytes | None], logged: str
) -> None:
    async def scenario() -> None:
        async with origin(lambda request: response) as server:
            async with copying(server.port, connections=1) as mirror:
                for _ in range(3):
                    mirror.get()
                await mirror.answered(3)
            assert server.connections == 3
            assert all(f"{logged} " in line for line in mirror.lines())

    run(scenario())


@pytest.mark.parametrize(("method", "sent"), [(b"GET", 2), (b"PUT", 2), (b"POST", 1)])
def test_what_met_the_end_of_a_kept_connection_is_sent_again_if_it_may_be(
    run: Run, copying: Copying, method: bytes, sent: int
) -> None:
    async def scenario() -> None:
        responses: Iterator[Response] = iter([[OK], [None], [OK]])
        async with origin(lambda request: next(responses)) as server:
            async with copying(server.port, connections=1) as mirror:
                mirror.get()
                await mirror.answered(1)
                mirror.get(b"/late", method)

                def ended() -> int:
                    counters: Counters = mirror.target.counters
                    return counters.responses + counters.failed

                await until(lambda: ended() == 2)
                assert mirror.target.counters.retried == sent - 1
                assert mirror.target.counters.failed == 2 - sent
            assert len(server.requests) == 1 + sent
            assert server.connections == sent

    run(scenario())


def test_nothing_is_sent_a_third_time(run: Run, copying: Copying) -> None:
    async def scenario() -> None:
        responses: Iterator[Response] = iter([[OK], [None], [None], [OK]])
        async with origin(lambda request: next(responses)) as server:
            async with copying(
                server.port, connections=1, timeouts=Timeouts(min_backoff=0.01)
            ) as mirror:
                mirror.get()
                await mirror.answered(1)
                mirror.get(b"/late")
                await until(lambda: mirror.target.counters.failed == 1)
                mirror.get()
                await mirror.answered(2)
            assert len(server.requests) == 4

    run(scenario())


def test_a_kept_connection_that_the_target_closes_is_not_used_again(
    run: Run, copying: Copying
) -> None:
    async def scenario() -> None:
        async with origin() as server, copying(server.port) as mirror:
            mirror.get()
            await mirror.answered(1)
            port = server.port
            await server.stop()
            await server.start(port)
            mirror.get(method=b"POST")
            await mirror.answered(2)
            assert mirror.target.counters.failed == 0

    run(scenario())


def test_requests_wait_for_a_target_that_is_down_and_arrive_when_it_is_up(
    run: Run, copying: Copying, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    async def scenario() -> None:
        async with origin() as server:
            port = server.port
            await server.stop()
            async with copying(
                port, timeouts=Timeouts(min_backoff=0.01, max_backoff=0.05)
            ) as mirror:
                for number in range(100):
                    mirror.get(b"/%d" % number)
                await until(lambda: "copies wait" in caplog.text)
                await server.start(port)
                await mirror.answered(100)
            assert len({request.partition(b" HTTP")[0] for request in server.requests}) == 100
            assert mirror.target.counters.failed == 0

    run(scenario())
    assert caplog.text.count("; copies wait\n") == 1
    assert "reached again after" in caplog.text


def test_a_target_that_is_down_is_tried_by_one_connection_at_a_time(
    run: Run, copying: Copying
) -> None:
    async def scenario() -> None:
        settings = {"timeouts": Timeouts(min_backoff=10, max_backoff=20), "drain": 0}
        async with (
            origin(lambda request: [None]) as server,
            copying(server.port, **settings) as mirror,
        ):
            for _ in range(50):
                mirror.get()
                await until(lambda: mirror.target.counters.failed > 0)
            assert server.connections == 1

    run(scenario())


def test_head_needs_no_length_to_keep_its_connection(run: Run, copying: Copying) -> None:
    async def scenario() -> None:
        async with (
            origin(lambda _: [b"HTTP/1.1 200 OK\r\nX: y\r\n\r\n"]) as server,
            copying(server.port, connections=1) as mirror,
        ):
            for count in range(1, 6):
                mirror.get(method=b"HEAD")
                await mirror.answered(count)
            assert server.connections == 1

    run(scenario())


@pytest.mark.parametrize("line", [b"Connection: close", b"connection: Close, x"])
def test_head_that_says_so_closes_its_connection(run: Run, copying: Copying, line: bytes) -> None:
    async def scenario() -> None:
        async with (
            origin(lambda _: [b"HTTP/1.1 200 OK\r\n" + line + b"\r\n\r\n"]) as server,
            copying(server.port, connections=1) as mirror,
        ):
            for count in range(1, 4):
                mirror.get(method=b"HEAD")
                await mirror.answered(count)
            assert server.connections == 3

    run(scenario())


def test_unused_time_begins_with_the_end_of_the_answer(run: Run, copying: Copying) -> None:
    async def scenario() -> None:
        settings = {"connections": 1, "keep_alive": 0.3}
        async with slow_origin(0.5) as server, copying(server.port, **settings) as mirror:
            for count in range(1, 4):
                mirror.get()
                await mirror.answered(count)
                # Longer than the keep-alive, from the request on; not from the response on.
                await asyncio.sleep(0.05)
            assert server.connections == 1

    run(scenario())


@pytest.mark.parametrize("pieces", [1, 2])
def test_what_a_target_says_of_its_connections_is_heeded_a_little_early(
    run: Run, copying: Copying, pieces: int
) -> None:
    hint = b"HTTP/1.1 200 OK\r\nKeep-Alive: timeout=2, max=100\r\nContent-Length: 2\r\n\r\n"
    response = [hint + b"ok"] if pieces == 1 else [hint, b"ok"]

    async def scenario() -> None:
        async with origin(lambda _: response) as server, copying(server.port) as mirror:
            mirror.get()
            await mirror.answered(1)
            began = time.monotonic()
            await until(lambda: server.open == 0)
            assert 0.9 < time.monotonic() - began < 1.9

    run(scenario())


def test_a_lifetime_is_kept_however_long_an_answer_may_take(run: Run, copying: Copying) -> None:
    async def scenario() -> None:
        settings = {
            "timeouts": Timeouts(first_byte=600, total=600),
            "keep_alive": 600,
            "lifetime": 0.2,
        }
        async with origin() as server, copying(server.port, **settings) as mirror:
            mirror.get()
            await mirror.answered(1)
            await until(lambda: server.open == 0)

    run(scenario())


def test_a_name_that_cannot_be_resolved_is_said(
    run: Run, copying: Copying, caplog: pytest.LogCaptureFixture
) -> None:
    host = "no-such-host.invalid"

    async def scenario() -> None:
        async with copying(1, server=host, drain=0) as mirror:
            mirror.get()
            await until(lambda: "copies wait" in caplog.text)
            assert mirror.target.counters.connect_failures == 1

    run(scenario())
    assert host in caplog.text


def test_connections_are_closed_when_they_are_unused_or_old(run: Run, copying: Copying) -> None:
    async def scenario(pool: dict[str, float]) -> None:
        async with origin() as server, copying(server.port, **pool) as mirror:
            mirror.get()
            await mirror.answered(1)
            await until(lambda: server.open == 0)
            mirror.get()
            await mirror.answered(2)
            assert server.connections == 2
            assert mirror.target.counters.failed == 0

    run(scenario({"keep_alive": 0.1}))
    run(scenario({"keep_alive": 60.0, "lifetime": 0.2}))


def test_connections_come_from_where_the_settings_say(run: Run, copying: Copying) -> None:
    async def scenario() -> None:
        first = free_port()
        async with origin() as server:
            pool = {"interface": "127.0.0.1", "local_ports": (first, first + 20)}
            async with copying(server.port, **pool) as mirror:
                mirror.get()
                await mirror.answered(1)
            assert server.peers[0][0] == "127.0.0.1"
            assert first <= server.peers[0][1] <= first + 20
            async with copying(server.port, interface="127.0.0.9") as mirror:
                mirror.get()
                await mirror.answered(1)
            assert server.peers[1][0] == "127.0.0.9"

    run(scenario())


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux binds to interfaces by name")
def test_connections_go_through_the_interface_of_that_name(run: Run, copying: Copying) -> None:
    async def scenario() -> None:
        lo = {"interface": "lo"}
        async with origin() as server, copying(server.port, **lo) as mirror:
            mirror.get()
            await mirror.answered(1)

    run(scenario())


@pytest.mark.parametrize(
    ("interface", "reason"),
    [("192.0.2.1", "Cannot assign requested address"), ("x" * 70, "Misformatted domain name")],
)
def test_an_interface_that_cannot_be_used_is_said(
    run: Run, copying: Copying, caplog: pytest.LogCaptureFixture, interface: str, reason: str
) -> None:
    async def scenario() -> None:
        pool = {"interface": interface}
        async with origin() as server, copying(server.port, **pool, drain=0) as mirror:
            mirror.get()
            await until(lambda: reason in caplog.text)

    run(scenario())


def test_a_local_port_that_somebody_has_is_said(
    run: Run, copying: Copying, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with origin() as server:
            pool = {"interface": "127.0.0.1", "local_ports": (server.port, server.port)}
            async with copying(server.port, **pool, drain=0) as mirror:
                mirror.get()
                said = f"none of the local ports {server.port}-{server.port} is free"
                await until(lambda: said in caplog.text)

    run(scenario())


def test_a_target_that_closes_after_each_answer_loses_nothing(run: Run, copying: Copying) -> None:
    async def scenario() -> None:
        async with origin(lambda request: [OK, None]) as server:
            async with copying(server.port, connections=8) as mirror:
                for _ in range(20):
                    for _ in range(50):
                        mirror.get()
                    await mirror.answered(mirror.target.counters.received)
            assert mirror.target.counters.failed == 0
            assert mirror.target.counters.responses == 1000

    run(scenario())


def test_a_post_that_met_a_closed_connection_does_not_make_the_others_wait(
    run: Run, copying: Copying, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        responses: Iterator[Response] = iter([[OK], [None], [OK]])
        async with (
            origin(lambda request: next(responses)) as server,
            copying(server.port, connections=1) as mirror,
        ):
            mirror.get()
            await mirror.answered(1)
            mirror.get(method=b"POST")
            await until(lambda: mirror.target.counters.failed == 1)
            mirror.get()
            await mirror.answered(2)

    run(scenario())
    assert "requests wait" not in caplog.text
