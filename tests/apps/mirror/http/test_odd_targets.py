"""Targets that behave oddly on their connections: no copy is lost silently, whatever they do."""

import asyncio
import logging
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from spoakit.apps.mirror.config.schema import Timeouts
from spoakit.apps.mirror.http.outcome import Trouble
from tests.support.copier import Copier, Run
from tests.support.origin import OK
from tests.support.waiting import until

pytestmark = pytest.mark.slow

Copying = Callable[..., Any]
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

START = b"HTTP/1.1 200 OK\r\n"
COUNT = 40
QUICK = Timeouts(first_byte=0.2, total=0.4, min_backoff=0.01, max_backoff=0.02)


@asynccontextmanager
async def target(serve: Serve) -> AsyncIterator[int]:
    """Run a server whose connections are served by a function, until they close; give its port."""
    tasks: set[asyncio.Task[None]] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await serve(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            tasks.discard(task)
            writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await server.wait_closed()


async def read_request(reader: asyncio.StreamReader) -> bytes:
    return await reader.readuntil(b"\r\n\r\n")


def saying(*pieces: bytes, closes: bool = False) -> Serve:
    """Return a target that answers each request with these pieces, one after the other."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await read_request(reader)
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0)
            if closes:
                return

    return serve


async def reset_after_a_response(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    await read_request(reader)
    writer.write(OK)
    await writer.drain()
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


async def time_out_when_idle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await read_request(reader)
    writer.write(OK)
    await writer.drain()
    await asyncio.sleep(0.01)
    writer.write(b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")


async def answer_the_third(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Serve two requests and close at the third, having read it."""
    for _ in range(2):
        await read_request(reader)
        writer.write(OK)
    await read_request(reader)


async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()


async def close_at_once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Close without having read."""


async def send_without_end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await read_request(reader)
    writer.write(START + b"\r\n")
    while True:
        writer.write(bytes(1000))
        await writer.drain()
        await asyncio.sleep(0.01)


ANSWERED: dict[str, Serve] = {
    "closes after each response without saying so": saying(OK, closes=True),
    "resets after each response": reset_after_a_response,
    "sends 408 on an idle connection": time_out_when_idle,
    "closes at every third request": answer_the_third,
    "sends a response byte by byte": saying(*[OK[i : i + 1] for i in range(len(OK))]),
    "sends a hundred interim responses": saying(
        b"HTTP/1.1 103 Hints\r\nLink: </a>\r\n\r\n" * 100, OK
    ),
    "speaks HTTP/1.0 and keeps the connection": saying(
        b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok"
    ),
    "speaks HTTP/1.0 and ends the body by closing": saying(
        b"HTTP/1.0 200 OK\r\n\r\nsome", b"thing", closes=True
    ),
    "has extensions of chunks and trailers": saying(
        START + b"Transfer-Encoding: chunked\r\n\r\n2;a=b;c\r\nok\r\n0\r\nX: y\r\n\r\n"
    ),
    "has no reason phrase": saying(b"HTTP/1.1 200\r\nContent-Length: 2\r\n\r\nok"),
    "has a status of its own": saying(b"HTTP/1.1 999 Denied\r\nContent-Length: 2\r\n\r\nok"),
    "begins with an empty line": saying(b"\r\n" + OK),
    "ends its body with an empty line too many": saying(OK + b"\r\n"),
    "has bytes that are not ASCII in its head": saying(
        b"HTTP/1.1 200 \xc3\x96K\r\nX: \xff\xfe\r\nContent-Length: 2\r\n\r\nok"
    ),
    "encodes what it does not name": saying(
        START + b"Content-Encoding: x\r\nContent-Length: 2\r\n\r\nok"
    ),
}
FAILED: dict[str, tuple[Serve, str, Trouble | None]] = {
    "says nothing": (say_nothing, "timeout", Trouble.SILENT),
    "closes at once": (close_at_once, "closed", Trouble.REFUSING),
    "stops in the body": (saying(START + b"Content-Length: 9\r\n\r\nok"), "timeout", None),
    "sends without end": (send_without_end, "timeout", None),
    "stops in the head": (saying(START + b"X: "), "timeout", Trouble.SILENT),
    "has a head of 70 KiB": (
        saying(START + b"X: a\r\n" * 12_000),
        "malformed",
        Trouble.UNINTELLIGIBLE,
    ),
    "speaks HTTP/2": (
        saying(bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))),
        "malformed",
        Trouble.UNINTELLIGIBLE,
    ),
    "speaks TLS": (saying(b"\x15\x03\x01\0\2\2F"), "malformed", Trouble.UNINTELLIGIBLE),
    "has control characters in its head": (
        saying(START + b"X: a\0b\r\n\r\n"),
        "malformed",
        Trouble.UNINTELLIGIBLE,
    ),
}


def unaccounted(mirror: Copier) -> int:
    """Return how many requests are in none of the figures."""
    counters, pools = mirror.target.counters, mirror.target.pools
    here = sum(pool.queue.waiting + pool.in_flight for pool in pools)
    return counters.received - counters.responses - counters.failed - counters.dropped - here


async def copy_many(mirror: Copier) -> None:
    for number in range(COUNT):
        mirror.get(b"/%d" % number)
        await asyncio.sleep(0.004)
        assert unaccounted(mirror) == 0


@pytest.mark.parametrize("name", ANSWERED)
def test_all_copies_are_answered_by_a_target_that(
    run: Run, copying: Copying, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    async def scenario() -> None:
        async with target(ANSWERED[name]) as port:
            async with copying(port, connections=4) as mirror:
                await copy_many(mirror)
                await mirror.answered(COUNT)
                assert mirror.target.counters.failed == 0
                assert mirror.target.pools[0].health.trouble is None
            assert unaccounted(mirror) == 0

    caplog.set_level(logging.WARNING)
    run(scenario())
    assert "copies wait" not in caplog.text


@pytest.mark.parametrize("name", FAILED)
def test_copies_fail_and_are_counted_at_a_target_that(
    run: Run, copying: Copying, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    serve, reason, trouble = FAILED[name]

    async def scenario() -> None:
        async with target(serve) as port:
            pool = {"connections": 4}
            async with copying(port, **pool, timeouts=QUICK, drain=0) as mirror:
                await copy_many(mirror)
                counters = mirror.target.counters
                await until(lambda: counters.failed >= 8)
                assert counters.failures.keys() == {reason}
                health = mirror.target.pools[0].health
                assert set(health.pauses) == ({str(trouble)} if trouble else set())
            assert mirror.target.counters.responses == 0
            assert unaccounted(mirror) == 0

    run(scenario())
    assert caplog.text.count("; copies wait\n") == (1 if trouble else 0)
    assert len(caplog.records) < 10


def test_a_target_that_is_well_again_is_said_to_be(
    run: Run, copying: Copying, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    behaviour: list[Serve] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await behaviour[-1](reader, writer)

    async def scenario() -> None:
        behaviour.append(close_at_once)
        async with target(serve) as port, copying(port, timeouts=QUICK) as mirror:
            health = mirror.target.pools[0].health
            for behaves, trouble in (
                (close_at_once, Trouble.REFUSING),
                (say_nothing, Trouble.SILENT),
                (FAILED["speaks TLS"][0], Trouble.UNINTELLIGIBLE),
            ):
                behaviour.append(behaves)
                while health.trouble != trouble:
                    mirror.get()
                    await asyncio.sleep(0.01)
            behaviour.append(saying(OK))
            while health.trouble is not None:
                mirror.get()
                await asyncio.sleep(0.01)
            assert health.pauses.keys() == {"refusing", "silent", "unintelligible"}

    run(scenario())
    for line in (
        "ends connections without a response: ",
        "does not respond: no response within 0.2 s",
        "does not speak HTTP: malformed response",
        "speaks HTTP again after",
    ):
        assert line in caplog.text
