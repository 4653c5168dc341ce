"""The queue of one target: its bounds, its age, and its end."""

import asyncio

import pytest

from spoakit.apps.mirror.config.schema import Overflow, QueueSettings, Timeouts
from tests.support.copier import Copying, Run
from tests.support.origin import origin
from tests.support.ports import free_port
from tests.support.waiting import until


def test_a_full_queue_drops_the_oldest_and_counts(
    run: Run, copying: Copying, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with origin() as server:
            port = server.port
            await server.stop()
            limits = {
                "timeouts": Timeouts(min_backoff=0.05),
                "connections": 1,
                "queue": QueueSettings(length=10),
            }
            async with copying(port, **limits) as mirror:
                for number in range(1000):
                    mirror.get(b"/%d" % number)
                assert mirror.target.counters.dropped == 990
                await server.start(port)
                await mirror.answered(10)
            paths = [request.split(b" ")[1] for request in server.requests]
            assert paths == [b"/%d" % number for number in range(990, 1000)]

    run(scenario())
    assert len([line for line in caplog.messages if "the queue is full" in line]) == 1


def test_a_queue_is_bounded_in_bytes_too(run: Run, copying: Copying) -> None:
    async def scenario() -> None:
        async with copying(free_port(), queue=QueueSettings(bytes=100_000), drain=0) as mirror:
            for _ in range(100):
                mirror.copy(b"POST", b"/", b"host: h\r\n\r\n", b"x" * 9_900)
            assert mirror.target.counters.dropped == 90
            # One that exceeds it by itself costs none of the others.
            mirror.copy(b"POST", b"/", b"host: h\r\n\r\n", b"x" * 200_000)
            assert mirror.target.counters.dropped == 91
            assert mirror.target.pools[0].queue.waiting == 10
        assert mirror.target.counters.dropped == 101

    run(scenario())


@pytest.mark.parametrize("overflow", ["drop-oldest", "drop-newest"])
def test_what_exceeds_the_queue_by_itself_is_sent_if_nothing_waits(
    run: Run, copying: Copying, overflow: Overflow
) -> None:
    async def scenario() -> None:
        queue = QueueSettings(bytes=10_000, overflow=overflow)
        async with origin() as server, copying(server.port, queue=queue) as mirror:
            for count in range(1, 21):
                mirror.copy(b"POST", b"/", b"host: h\r\n\r\n", b"x" * 200_000)
                await mirror.answered(count)
            assert mirror.target.counters.dropped == 0
        assert len(server.requests) == 20

    run(scenario())


def test_what_has_waited_for_too_long_is_not_sent(
    run: Run, copying: Copying, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with origin() as server:
            port = server.port
            await server.stop()
            settings = {
                "timeouts": Timeouts(min_backoff=0.05, max_backoff=0.05),
                "queue": QueueSettings(max_age=0.4),
            }
            async with copying(port, **settings) as mirror:
                for number in range(10):
                    mirror.get(b"/old/%d" % number)
                await until(lambda: mirror.target.counters.dropped == 10)
                pool = mirror.target.pools[0].queue
                assert (pool.waiting, pool.waiting_bytes, pool.too_old) == (0, 0, 10)
                mirror.get(b"/new")
                await server.start(port)
                await mirror.answered(1)
            assert [request.split(b" ")[1] for request in server.requests] == [b"/new"]

    run(scenario())
    [line] = [line for line in caplog.messages if "waited" in line]
    assert "10 requests have waited for longer than queue.max-age (0.4 s), and are dropped" in line


def test_the_queue_is_sent_before_the_end(run: Run, copying: Copying) -> None:
    async def scenario() -> None:
        async with origin() as server:
            async with copying(server.port, connections=2) as mirror:
                for _ in range(500):
                    mirror.get()
            assert len(server.requests) == 500
            assert mirror.target.counters.responses == 500

    run(scenario())


def test_what_cannot_be_sent_before_the_end_is_counted(
    run: Run, copying: Copying, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with origin(lambda request: []) as server:
            async with copying(server.port, connections=2, drain=0.05) as mirror:
                for _ in range(10):
                    mirror.get()
            counters = mirror.target.counters
            assert (counters.failed, counters.dropped) == (2, 8)
            assert all("the mirror is stopping" in line for line in mirror.lines())

    run(scenario())
    assert "stopped with 8 requests not sent" in caplog.text


def test_a_target_that_is_down_does_not_hold_up_the_end(run: Run, copying: Copying) -> None:
    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        async with copying(free_port(), drain=20) as mirror:
            mirror.get()
            started = loop.time()
        assert loop.time() - started < 10
        assert mirror.target.counters.dropped == 1

    run(scenario())


def test_a_full_queue_may_drop_the_newest(run: Run, copying: Copying) -> None:
    async def scenario() -> None:
        async with origin() as server:
            port = server.port
            await server.stop()
            queue = QueueSettings(length=10, overflow="drop-newest")
            settings = {"queue": queue, "timeouts": Timeouts(min_backoff=0.05)}
            async with copying(port, connections=1, **settings) as mirror:
                for number in range(100):
                    mirror.get(b"/%d" % number)
                assert mirror.target.counters.dropped == 90
                await server.start(port)
                await mirror.answered(10)
            paths = [request.split(b" ")[1] for request in server.requests]
            assert paths == [b"/%d" % number for number in range(10)]

    run(scenario())


def test_a_rate_limit_lets_so_many_pass(run: Run, copying: Copying) -> None:
    async def scenario() -> None:
        async with origin() as server, copying(server.port, rate=5) as mirror:
            for _ in range(100):
                mirror.get()
            counters = mirror.target.counters
            assert 5 <= counters.received - counters.rate_limited < 20
            await mirror.answered(counters.received - counters.rate_limited)

    run(scenario())
