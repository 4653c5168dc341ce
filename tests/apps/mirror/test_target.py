import asyncio
import logging
import os
import pty
import ssl
import struct
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from spoakit.apps.mirror.config.settings import (
    Overflow,
    PoolSettings,
    QueueSettings,
    Rewrite,
    Timeouts,
    TlsSettings,
    Truncated,
    TruncatedSuspect,
)
from spoakit.apps.mirror.metrics import Counters
from spoakit.exceptions import ConfigurationError
from tests.support.copier import Run
from tests.support.http2_peer import listening
from tests.support.origin import OK, Origin, origin
from tests.support.ports import free_port
from tests.support.waiting import until

Response = Sequence[bytes | None]
Copying = Callable[..., Any]


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


def test_a_request_arrives_as_it_was_and_is_logged(run: Run, copying: Copying) -> None:
    async def scenario() -> None:
        async with origin() as server:
            async with copying(server.port) as mirror:
                headers = b"Host: x.org\r\nB: 1\r\na: 2\r\nB: 3\r\nContent-Length: 5\r\n\r\n"
                mirror.copy(b"PATCH", b"/p?q", headers, b"hello")
                await mirror.answered(1)
            assert server.requests == [b"PATCH /p?q HTTP/1.1\r\n" + headers + b"hello"]
            [line] = mirror.lines()
            url = f"http://127.0.0.1:{server.port}/p?q"
            start, _, end = line.rpartition(" ")[0].rpartition(" ")
            assert start == f'"PATCH {url} HTTP/1.1" 200 5/2'
            assert 0 < float(end) < 5000
            assert line.endswith(" ok")

    run(scenario())


@pytest.mark.parametrize("http", ["1.1", "2"])
def test_user_and_password_are_sent_and_not_logged(
    run: Run, copying: Copying, caplog: pytest.LogCaptureFixture, http: str
) -> None:
    async def scenario() -> None:
        lines = b"Host: h\r\nAuthorization: Bearer original\r\n\r\n"
        rewrite = Rewrite(host="target", strip_secrets=True)
        more = {"host": "me:secret@127.0.0.1", "http": http, "rewrite": rewrite}
        async with origin() as old, listening() as new:
            port = new.port if http == "2" else old.port
            async with copying(port, **more) as mirror:
                mirror.copy(b"GET", b"/p", lines)
                await mirror.answered(1)
            if http == "2":
                [seen] = new.requests()
                assert dict(seen.fields)[b"authorization"] == b"Basic bWU6c2VjcmV0"
                assert dict(seen.fields)[b":authority"] == b"127.0.0.1:%d" % port
            else:
                assert old.requests == [
                    b"GET /p HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n"
                    b"Authorization: Basic bWU6c2VjcmV0\r\n\r\n" % port
                ]
            [line] = mirror.lines()
            assert f"http://127.0.0.1:{port}/p" in line
            assert "secret" not in line

    caplog.set_level(logging.DEBUG)
    run(scenario())
    assert "secret" not in caplog.text


def test_a_base_path_goes_in_front(run: Run, copying: Copying) -> None:
    async def scenario() -> None:
        async with origin() as server:
            async with copying(server.port, base="/base/") as mirror:
                mirror.get(b"/a")
                await mirror.answered(1)
            assert server.requests[0].startswith(b"GET /base/a HTTP/1.1\r\n")
            assert "/base/a HTTP" in mirror.lines()[0]

    run(scenario())


def test_connections_are_used_again_and_not_more_than_allowed(run: Run, copying: Copying) -> None:
    async def scenario() -> None:
        async with (
            origin() as server,
            copying(server.port, pool=PoolSettings(connections=3)) as mirror,
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
        ([b"HTTP/1.1 100 Continue\r\n\r\n", OK], "200 0/2"),
        ([b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + OK], "200 0/2"),
        ([b"HTTP/1.1 204 No Content\r\n\r\n"], "204 0/0"),
        ([b"HTTP/1.1 304 Not Modified\r\nContent-Length: 99\r\n\r\n"], "304 0/0"),
        ([b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n"], "404 0/0"),
        ([bytes((byte,)) for byte in OK], "200 0/2"),
        (
            [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n", b"0\r\n\r\n"],
            "200 0/3",
        ),
        (
            [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nX: y\r\n\r\n"],
            "200 0/1",
        ),
    ],
)
def test_answers_of_all_kinds_are_read_and_the_connection_stays(
    run: Run, copying: Copying, response: Sequence[bytes], logged: str
) -> None:
    async def scenario() -> None:
        async with origin(lambda request: response) as server:
            async with copying(server.port, pool=PoolSettings(connections=1)) as mirror:
                for count in range(1, 4):
                    mirror.get()
                    await mirror.answered(count)
            assert server.connections == 1
            assert all(f'" {logged} ' in line for line in mirror.lines())

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
            async with copying(server.port, pool=PoolSettings(connections=1)) as mirror:
                for _ in range(3):
                    mirror.get()
                await mirror.answered(3)
            assert server.connections == 3
            assert all(f"{logged} " in line for line in mirror.lines())

    run(scenario())


def test_the_answer_to_head_has_no_body(run: Run, copying: Copying) -> None:
    async def scenario() -> None:
        head = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"
        async with origin(lambda request: [head if request[:4] == b"HEAD" else OK]) as server:
            async with copying(server.port, pool=PoolSettings(connections=1)) as mirror:
                for method in (b"HEAD", b"GET", b"HEAD", b"HEAD"):
                    mirror.get(method=method)
                await mirror.answered(4)
            assert server.connections == 1
            assert ['" 200 0/0 ' in line for line in mirror.lines()] == [True, False, True, True]

    run(scenario())


@pytest.mark.parametrize(
    ("response", "error"),
    [
        ([None], "the target closed the connection"),
        ([b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nab", None], "the target closed the"),
        ([b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n", None], "closed"),
        ([b"SSH-2.0-x\r\n"], "malformed response: "),
        ([b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nab"], "malformed"),
        ([b"HTTP/1.1 101 X\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n"], "changed the protocol"),
        (
            [b"HTTP/1.1 200 OK\r\n", b"X: y" * 1000 + b"\r\n"] + [b"X: " + b"y" * 9999] * 9,
            "head is",
        ),
        (
            [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n"]
            + [b"X: " + b"y" * 9999] * 9,
            "trailers are",
        ),
    ],
)
def test_a_request_without_a_whole_answer_failed(
    run: Run, copying: Copying, response: Sequence[bytes | None], error: str
) -> None:
    async def scenario() -> None:
        async with origin(lambda request: response) as server:
            async with copying(server.port, timeouts=Timeouts(min_backoff=0.001)) as mirror:
                mirror.get(b"/a")
                await until(lambda: mirror.target.counters.failed == 1)
                mirror.get(b"/b")
                await until(lambda: mirror.target.counters.failed == 2)
            assert len(server.requests) == 2
            assert all(error in line for line in mirror.lines())

    run(scenario())


def test_a_failure_is_logged_as_the_c_program_does(run: Run, copying: Copying) -> None:
    async def scenario() -> None:
        async with origin(lambda request: [None]) as server:
            async with copying(server.port) as mirror:
                mirror.get(b"/dead")
                await until(lambda: mirror.target.counters.failed == 1)
            [line] = mirror.lines()
            assert line.startswith(f'"GET http://127.0.0.1:{server.port}/dead HTTP/???" 0 0/0 ')

    run(scenario())


@pytest.mark.parametrize(("method", "sent"), [(b"GET", 2), (b"PUT", 2), (b"POST", 1)])
def test_what_met_the_end_of_a_kept_connection_is_sent_again_if_it_may_be(
    run: Run, copying: Copying, method: bytes, sent: int
) -> None:
    async def scenario() -> None:
        responses: Iterator[Response] = iter([[OK], [None], [OK]])
        async with origin(lambda request: next(responses)) as server:
            async with copying(server.port, pool=PoolSettings(connections=1)) as mirror:
                mirror.get()
                await mirror.answered(1)
                mirror.get(b"/late", method)

                def ended() -> int:
                    counters: Counters = mirror.target.counters
                    return counters.answered + counters.failed

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
                server.port, pool=PoolSettings(connections=1), timeouts=Timeouts(min_backoff=0.01)
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


def test_a_full_queue_drops_the_oldest_and_counts(
    run: Run, copying: Copying, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with origin() as server:
            port = server.port
            await server.stop()
            limits = {
                "timeouts": Timeouts(min_backoff=0.05),
                "pool": PoolSettings(connections=1),
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


def test_head_needs_no_length_to_keep_its_connection(run: Run, copying: Copying) -> None:
    async def scenario() -> None:
        async with (
            origin(lambda _: [b"HTTP/1.1 200 OK\r\nX: y\r\n\r\n"]) as server,
            copying(server.port, pool=PoolSettings(connections=1)) as mirror,
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
            copying(server.port, pool=PoolSettings(connections=1)) as mirror,
        ):
            for count in range(1, 4):
                mirror.get(method=b"HEAD")
                await mirror.answered(count)
            assert server.connections == 3

    run(scenario())


def test_unused_time_begins_with_the_end_of_the_answer(run: Run, copying: Copying) -> None:
    async def scenario() -> None:
        settings = {"pool": PoolSettings(connections=1, idle=0.3)}
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
            "pool": PoolSettings(idle=600, lifetime=0.2),
        }
        async with origin() as server, copying(server.port, **settings) as mirror:
            mirror.get()
            await mirror.answered(1)
            await until(lambda: server.open == 0)

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


def test_a_target_that_never_answers_is_given_up(run: Run, copying: Copying) -> None:
    async def scenario() -> None:
        async with origin(lambda request: []) as server:
            settings = {
                "timeouts": Timeouts(first_byte=0.2, min_backoff=0.01, max_backoff=0.01),
                "pool": PoolSettings(connections=4),
            }
            async with copying(server.port, **settings) as mirror:
                for _ in range(5):
                    mirror.get()
                await until(lambda: mirror.target.counters.failed == 5)
            assert all(" no response within 0.2 s" in line for line in mirror.lines())
            assert server.connections == 5

    run(scenario())


def test_one_slow_answer_does_not_hold_up_the_others(run: Run, copying: Copying) -> None:
    async def scenario() -> None:
        async with origin(lambda request: [] if b"/slow" in request else [OK]) as server:
            async with copying(server.port, timeouts=Timeouts(first_byte=0.3)) as mirror:
                mirror.get(b"/slow")
                for count in range(1, 100):
                    mirror.get()
                    await mirror.answered(count)
                counters = mirror.target.counters
                while not counters.failed:
                    mirror.get()
                    await mirror.answered(counters.received - 1)
            assert mirror.target.counters.failed == 1

    run(scenario())


def test_a_reset_is_a_failure(run: Run, copying: Copying) -> None:
    async def scenario() -> None:
        async def reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            linger = struct.pack("ii", 1, 0)
            writer.get_extra_info("socket").setsockopt(1, 13, linger)  # SOL_SOCKET, SO_LINGER
            writer.close()

        server = await asyncio.start_server(reset, "127.0.0.1", 0)
        async with server, copying(server.sockets[0].getsockname()[1]) as mirror:
            mirror.get()
            await until(lambda: mirror.target.counters.failed == 1)
        assert "reset" in mirror.lines()[0]

    run(scenario())


def test_what_cannot_be_copied_is_counted_and_logged(
    run: Run, copying: Copying, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with origin() as server, copying(server.port) as mirror:
            mirror.copy(b"GET", b"/\r\nx", b"\r\n", b"")
            mirror.copy(b"POST", b"/", b"content-length: 9\r\n\r\n", b"short")
            counters = mirror.target.counters
            assert (counters.received, counters.malformed, counters.body_cut) == (2, 1, 1)

    run(scenario())
    assert "white space or a control" in caplog.text
    assert "5 bytes of a body of 9" in caplog.text
    assert "tune.bufsize" in caplog.text


@pytest.mark.parametrize("version", [b"1.1", b"2.0"])
def test_a_marked_request_is_not_copied_and_said_once_a_minute(
    run: Run, copying: Copying, caplog: pytest.LogCaptureFixture, version: bytes
) -> None:
    async def scenario() -> None:
        marked = Rewrite(marker=("X-Mirrored", "yes"))
        async with origin() as server, copying(server.port, rewrite=marked) as mirror:
            for _ in range(3):
                lines = b"Host: h\r\nx-mirrored: yes\r\n\r\n"
                mirror.copy(b"GET", b"/again", lines, version=version)
            mirror.get()
            await mirror.answered(1)
            counters = mirror.target.counters
            assert (counters.received, counters.looped, counters.malformed) == (4, 3, 0)
            assert "3 looped" in str(counters)
            assert len(server.requests) == 1

    run(scenario())
    [line] = [each.getMessage() for each in caplog.records if each.levelname == "WARNING"]
    assert "a request has the marker 'X-Mirrored: yes' already, and is not copied again" in line


def test_the_queue_is_sent_before_the_end(run: Run, copying: Copying) -> None:
    async def scenario() -> None:
        async with origin() as server:
            async with copying(server.port, pool=PoolSettings(connections=2)) as mirror:
                for _ in range(500):
                    mirror.get()
            assert len(server.requests) == 500
            assert mirror.target.counters.answered == 500

    run(scenario())


def test_what_cannot_be_sent_before_the_end_is_counted(
    run: Run, copying: Copying, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with origin(lambda request: []) as server:
            async with copying(server.port, pool=PoolSettings(connections=2), drain=0.05) as mirror:
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


def test_a_name_that_cannot_be_resolved_is_said(
    run: Run, copying: Copying, caplog: pytest.LogCaptureFixture
) -> None:
    host = "no-such-host.invalid"

    async def scenario() -> None:
        async with copying(1, host=host, drain=0) as mirror:
            mirror.get()
            await until(lambda: "copies wait" in caplog.text)
            assert mirror.target.counters.connect_failures == 1

    run(scenario())
    assert host in caplog.text


@pytest.mark.parametrize(
    ("tls", "is_trusted"),
    [
        (lambda path: TlsSettings(), False),
        (lambda path: TlsSettings(ca_file=str(path)), True),
        (lambda path: TlsSettings(ca_file=str(path), server_name="other.example"), False),
        (lambda path: TlsSettings(verify=False), True),
    ],
)
def test_a_target_is_reached_by_tls_if_its_certificate_is_good(
    run: Run,
    copying: Copying,
    certificate: Path,
    caplog: pytest.LogCaptureFixture,
    tls: Callable[[Path], TlsSettings],
    is_trusted: bool,
) -> None:
    async def scenario() -> None:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(certificate)
        async with origin() as server:
            port = server.port
            await server.stop()
            await server.start(port, ssl=context)
            name = {"scheme": "https", "host": "localhost", "drain": 0}
            async with copying(port, tls=tls(certificate), **name) as mirror:
                for _ in range(3):
                    mirror.get()
                if is_trusted:
                    await mirror.answered(3)
                else:
                    await until(lambda: "certificate" in caplog.text)
            assert len(server.requests) == (3 if is_trusted else 0)

    run(scenario())


def test_a_client_certificate_is_shown(run: Run, copying: Copying, certificate: Path) -> None:
    async def scenario() -> None:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(certificate))
        context.load_cert_chain(certificate)
        context.verify_mode = ssl.CERT_REQUIRED
        async with origin() as server:
            port = server.port
            await server.stop()
            await server.start(port, ssl=context)
            tls = TlsSettings(ca_file=str(certificate), certificate=str(certificate))
            async with copying(port, scheme="https", host="localhost", tls=tls) as mirror:
                mirror.get()
                await mirror.answered(1)

    run(scenario())


def test_a_certificate_that_cannot_be_read_is_said(run: Run, copying: Copying) -> None:
    async def scenario() -> None:
        for tls in (TlsSettings(ca_file="/nowhere"), TlsSettings(certificate="/dev/null")):
            with pytest.raises(ConfigurationError, match=r"/nowhere|/dev/null"):
                async with copying(1, scheme="https", tls=tls):
                    pass

    run(scenario())


def test_a_key_with_a_password_is_refused_and_nobody_is_asked(
    certificate: Path, tmp_path: Path
) -> None:
    locked = tmp_path / "locked.key"
    command = [
        *("openssl", "rsa", "-in", str(certificate)),
        *("-aes128", "-passout", "pass:x", "-out", str(locked)),
    ]
    subprocess.run(command, check=True, capture_output=True)
    load = (
        "from spoakit.apps.mirror.http.connector import check_connections;"
        "from spoakit.apps.mirror.config.settings import TargetSettings, TlsSettings;"
        "from spoakit.apps.mirror.url import TargetURL;"
        f"tls = TlsSettings(certificate={str(certificate)!r}, key={str(locked)!r});"
        "check_connections(TargetSettings(TargetURL.parse('https://localhost'), tls=tls))"
    )
    # With a terminal, where OpenSSL would ask for the password and wait.
    ours, theirs = pty.openpty()
    try:
        ended = subprocess.run(
            [sys.executable, "-c", load],
            stdin=theirs,
            stdout=theirs,
            stderr=subprocess.PIPE,
            text=True,
            timeout=20,
            start_new_session=True,
        )
    finally:
        os.close(ours)
        os.close(theirs)
    assert f"with key {str(locked)!r}" in ended.stderr


def test_a_full_queue_may_drop_the_newest(run: Run, copying: Copying) -> None:
    async def scenario() -> None:
        async with origin() as server:
            port = server.port
            await server.stop()
            queue = QueueSettings(length=10, overflow="drop-newest")
            settings = {"queue": queue, "timeouts": Timeouts(min_backoff=0.05)}
            async with copying(port, pool=PoolSettings(connections=1), **settings) as mirror:
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
        async with origin() as server, copying(server.port, queue=QueueSettings(rate=5)) as mirror:
            for _ in range(100):
                mirror.get()
            counters = mirror.target.counters
            assert 5 <= counters.received - counters.rate_limited < 20
            await mirror.answered(counters.received - counters.rate_limited)

    run(scenario())


def test_an_answer_that_begins_may_take_longer_than_its_first_byte(
    run: Run, copying: Copying
) -> None:
    begun = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"

    async def scenario() -> None:
        async with origin(lambda request: [begun] if b"/half" in request else []) as server:
            timeouts = Timeouts(first_byte=0.1, total=0.4, min_backoff=0.01, max_backoff=0.01)
            async with copying(server.port, timeouts=timeouts) as mirror:
                mirror.get(b"/half")
                mirror.get(b"/none")
                await until(lambda: mirror.target.counters.failed == 2)
            assert [line.rpartition(" no ")[2] for line in mirror.lines()] == [
                "response within 0.1 s",
                "whole response within 0.4 s",
            ]

    run(scenario())


def test_connections_are_closed_when_they_are_unused_or_old(run: Run, copying: Copying) -> None:
    async def scenario(pool: PoolSettings) -> None:
        async with origin() as server, copying(server.port, pool=pool) as mirror:
            mirror.get()
            await mirror.answered(1)
            await until(lambda: server.open == 0)
            mirror.get()
            await mirror.answered(2)
            assert server.connections == 2
            assert mirror.target.counters.failed == 0

    run(scenario(PoolSettings(idle=0.1)))
    run(scenario(PoolSettings(idle=60.0, lifetime=0.2)))


def test_connections_come_from_where_the_settings_say(run: Run, copying: Copying) -> None:
    async def scenario() -> None:
        first = free_port()
        async with origin() as server:
            pool = PoolSettings(interface="127.0.0.1", local_ports=(first, first + 20))
            async with copying(server.port, pool=pool) as mirror:
                mirror.get()
                await mirror.answered(1)
            assert server.peers[0][0] == "127.0.0.1"
            assert first <= server.peers[0][1] <= first + 20
            async with copying(server.port, pool=PoolSettings(interface="127.0.0.9")) as mirror:
                mirror.get()
                await mirror.answered(1)
            assert server.peers[1][0] == "127.0.0.9"

    run(scenario())


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux binds to interfaces by name")
def test_connections_go_through_the_interface_of_that_name(run: Run, copying: Copying) -> None:
    async def scenario() -> None:
        lo = PoolSettings(interface="lo")
        async with origin() as server, copying(server.port, pool=lo) as mirror:
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
        pool = PoolSettings(interface=interface)
        async with origin() as server, copying(server.port, pool=pool, drain=0) as mirror:
            mirror.get()
            await until(lambda: reason in caplog.text)

    run(scenario())


def test_a_local_port_that_somebody_has_is_said(
    run: Run, copying: Copying, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with origin() as server:
            pool = PoolSettings(interface="127.0.0.1", local_ports=(server.port, server.port))
            async with copying(server.port, pool=pool, drain=0) as mirror:
                mirror.get()
                said = f"none of the local ports {server.port}-{server.port} is free"
                await until(lambda: said in caplog.text)

    run(scenario())


@pytest.mark.parametrize(("truncated", "sent"), [("send", b""), ("mark", b"x-mirror-truncated: 4")])
def test_a_cut_body_may_be_copied_all_the_same(
    run: Run, copying: Copying, caplog: pytest.LogCaptureFixture, truncated: Truncated, sent: bytes
) -> None:
    async def scenario() -> None:
        async with origin() as server:
            rewrite = Rewrite(truncated=truncated)
            async with copying(server.port, rewrite=rewrite) as mirror:
                for _ in range(3):
                    mirror.copy(b"POST", b"/", b"host: h\r\ncontent-length: 9\r\n\r\n", b"short")
                await mirror.answered(3)
                assert mirror.target.counters.cut_bodies == 3
            head, _, body = server.requests[0].partition(b"\r\n\r\n")
            assert body == b"short"
            assert b"content-length: 5" in head
            assert sent in head

    run(scenario())
    assert caplog.text.count("5 bytes of a body of 9 were received") == 1
    assert "tune.bufsize" in caplog.text
    assert "-m" in caplog.text


CHUNKED = b"host: h\r\ntransfer-encoding: chunked\r\n\r\n"
ENDLESS = b"host: h\r\n\r\n"


@pytest.mark.parametrize(
    ("lines", "body", "reason", "setting"),
    [
        (CHUNKED, b"", "not_waited_for", "'option http-buffer-request'"),
        (ENDLESS, bytes(15_203), "probably_cut", "raise tune.bufsize, and max-frame-size"),
    ],
)
@pytest.mark.parametrize("what", ["send", "skip"])
def test_a_body_that_is_suspect_is_counted_and_told_of_once(
    run: Run,
    copying: Copying,
    caplog: pytest.LogCaptureFixture,
    lines: bytes,
    body: bytes,
    reason: str,
    setting: str,
    what: TruncatedSuspect,
) -> None:
    async def scenario() -> None:
        async with origin() as server:
            rewrite = Rewrite(truncated_suspect=what)
            async with copying(server.port, rewrite=rewrite) as mirror:
                for _ in range(3):
                    mirror.copy(b"PUT", b"/suspect", lines, body, max_frame_size=16380)
                mirror.copy(b"PUT", b"/whole", lines, b"x", max_frame_size=16380)
                counters = mirror.target.counters
                sent = 3 if what == "send" else 0
                await mirror.answered(sent + 1)
                assert counters.suspect_bodies == {reason: 3}
                assert (counters.body_suspect, counters.cut_bodies) == (3 - sent, 0)
            suspects = [each for each in server.requests if b"/suspect" in each]
            assert [each.partition(b"\r\n\r\n")[2] for each in suspects] == [body] * sent

    run(scenario())
    [warning] = [record for record in caplog.records if record.levelname == "WARNING"]
    assert setting in warning.getMessage()
    assert ("not copied" in warning.getMessage()) is (what == "skip")


def test_each_reason_to_suspect_a_body_is_told_of(
    run: Run, copying: Copying, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with origin() as server, copying(server.port) as mirror:
            for _ in range(2):
                mirror.copy(b"PUT", b"/", CHUNKED, b"", max_frame_size=16380)
                mirror.copy(b"PUT", b"/", ENDLESS, bytes(15_203), max_frame_size=16380)
                mirror.get()
            await mirror.answered(6)

    run(scenario())
    assert caplog.text.count("http-buffer-request") == caplog.text.count("tune.bufsize") == 1


def test_without_bodies_none_is_cut_or_suspect(
    run: Run, copying: Copying, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with origin() as server:
            rewrite = Rewrite(body="none", truncated_suspect="skip")
            async with copying(server.port, rewrite=rewrite) as mirror:
                mirror.copy(b"PUT", b"/", CHUNKED)
                mirror.copy(b"PUT", b"/", ENDLESS, bytes(15_203), max_frame_size=16380)
                mirror.copy(b"PUT", b"/", b"host: h\r\ncontent-length: 9\r\n\r\n", b"short")
                await mirror.answered(3)
                counters = mirror.target.counters
                assert (counters.suspect_bodies, counters.cut_bodies) == ({}, 0)
            for each in server.requests:
                head, _, body = each.partition(b"\r\n\r\n")
                assert (body, head.lower().count(b"content-length: 0")) == (b"", 1)

    run(scenario())
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_a_body_that_is_too_large_is_not_copied(
    run: Run, copying: Copying, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with origin() as server:
            async with copying(server.port, rewrite=Rewrite(max_body=10)) as mirror:
                for size in (10, 11, 12):
                    mirror.copy(b"PUT", b"/", b"host: h\r\n\r\n", bytes(size))
                # It is too large, and cut as well: one reason is enough.
                mirror.copy(b"PUT", b"/", b"host: h\r\ncontent-length: 11\r\n\r\n", b"short")
                await mirror.answered(1)
                counters = mirror.target.counters
                assert (counters.body_too_large, counters.malformed) == (3, 0)
                assert (counters.body_cut, counters.cut_bodies) == (0, 0)
            assert len(server.requests) == 1

    run(scenario())
    assert caplog.text.count("body of 11 bytes is larger than max-body, 10") == 1
    assert "body of 12" not in caplog.text


def test_a_target_that_closes_after_each_answer_loses_nothing(run: Run, copying: Copying) -> None:
    async def scenario() -> None:
        async with origin(lambda request: [OK, None]) as server:
            async with copying(server.port, pool=PoolSettings(connections=8)) as mirror:
                for _ in range(20):
                    for _ in range(50):
                        mirror.get()
                    await mirror.answered(mirror.target.counters.received)
            assert mirror.target.counters.failed == 0
            assert mirror.target.counters.answered == 1000

    run(scenario())


def test_a_post_that_met_a_closed_connection_does_not_make_the_others_wait(
    run: Run, copying: Copying, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        responses: Iterator[Response] = iter([[OK], [None], [OK]])
        async with (
            origin(lambda request: next(responses)) as server,
            copying(server.port, pool=PoolSettings(connections=1)) as mirror,
        ):
            mirror.get()
            await mirror.answered(1)
            mirror.get(method=b"POST")
            await until(lambda: mirror.target.counters.failed == 1)
            mirror.get()
            await mirror.answered(2)

    run(scenario())
    assert "requests wait" not in caplog.text
