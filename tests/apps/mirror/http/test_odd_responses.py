"""Targets that are alive but odd: every copy arrives, and what they send counts as responses."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from spoakit.apps.mirror.http.odd_heads import OddHeadError, tidy
from tests.support.copier import Run
from tests.support.origin import OK, origin
from tests.support.waiting import until

Copying = Callable[..., Any]
START = b"HTTP/1.1 200 OK\r\n"

# What libcurl takes. The first of each read is a response.
ODD: dict[str, list[bytes]] = {
    "an obsolete folded field": [START + b"X: a\r\n b\r\nContent-Length: 2\r\n\r\nok"],
    "a fold in pieces": [START + b"X: a\r\n", b" b\r\nContent-", b"Length: 2\r\n\r\no", b"k"],
    "two equal Content-Lengths": [START + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\nok"],
    "Content-Lengths in a list": [START + b"Content-Length: 2, 2\r\n\r\nok"],
    "204 with a body": [b"HTTP/1.1 204 No Content\r\nContent-Length: 2\r\n\r\nok"],
    "204 with a body without a length": [b"HTTP/1.1 204 No Content\r\n\r\nhello"],
    "304 with a body": [b"HTTP/1.1 304 Not Modified\r\nContent-Length: 2\r\n\r\nok"],
    "lines that end with LF": [b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok"],
    "white space before a colon": [START + b"Content-Length : 2\r\n\r\nok"],
    "a line without a colon": [START + b"nonsense\r\nContent-Length: 2\r\n\r\nok"],
    "a space in a name": [START + b"X Y: a\r\nContent-Length: 2\r\n\r\nok"],
    "a length beside chunked": [
        START + b"Content-Length: 9\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"
    ],
    "bytes behind the body": [OK + b"XX"],
    "a whole response behind the body": [OK + OK],
    "chunks that end with LF": [START + b"Transfer-Encoding: chunked\r\n\r\n2\nok\n0\n\n"],
    "a chunk that is no number": [START + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n"],
    "an interim response in front": [
        b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
        + START
        + b"X: a\r\n\tb\r\nContent-Length: 2\r\n\r\nok"
    ],
}
# What the reader of plain responses, or the parser, takes without a word.
NOT_NOTICED = {"a whole response behind the body", "a line without a colon", "a space in a name"}


@pytest.mark.parametrize("name", ODD)
def test_every_copy_arrives_at_a_target_that_answers_oddly(
    run: Run, copying: Copying, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    pieces: Sequence[bytes | None] = ODD[name]

    async def scenario() -> None:
        async with origin(lambda _: pieces) as server:
            async with copying(server.port, connections=4) as mirror:
                for _ in range(60):
                    mirror.get()
                    await asyncio.sleep(0.002)
                await mirror.answered(60)
                assert mirror.target.counters.failed == 0
                assert mirror.target.counters.odd > 0 or name in NOT_NOTICED
            assert len(server.requests) == 60

    run(scenario())
    told = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(told) <= 1
    assert all("an odd response: " in record.getMessage() for record in told)


@pytest.mark.parametrize(
    ("response", "text"),
    [
        (START + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\nok", "its Content-Length is"),
        (START + b"Content-Length: +2\r\n\r\nok", r"its Content-Length is b'\+2'"),
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", "it begins with b'SSH-2.0-OpenSSH_9.2'"),
        (b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\n\r\n", "changed the protocol"),
    ],
)
def test_what_has_no_meaning_fails_and_says_why(
    run: Run, copying: Copying, response: bytes, text: str
) -> None:
    async def scenario() -> None:
        async with origin(lambda _: [response]) as server, copying(server.port) as mirror:
            mirror.get()
            await until(lambda: mirror.target.counters.failed == 1)
        [line] = mirror.lines()
        assert "malformed response" in line or "changed the protocol" in line

    run(scenario())
    if b"101" not in response:
        with pytest.raises(OddHeadError, match=text):
            tidy(response)


def test_a_response_that_stops_in_the_middle_is_no_reason_to_pause(
    run: Run, copying: Copying, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        cut = [START + b"Content-Length: 100\r\n\r\nsome", None]
        async with origin(lambda _: cut) as server:
            async with copying(server.port, connections=2) as mirror:
                for _ in range(50):
                    mirror.get()
                    await asyncio.sleep(0.002)
                await until(lambda: mirror.target.counters.failed == 50)
            assert len(server.requests) == 50

    run(scenario())
    assert "copies wait" not in caplog.text


def test_a_response_counts_as_odd_once(run: Run, copying: Copying) -> None:
    odd = b"HTTP/1.1 204 No\r\nX: a\r\n b\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nok"

    async def scenario() -> None:
        async with origin(lambda _: [odd]) as server, copying(server.port) as mirror:
            for count in range(1, 4):
                mirror.get()
                await mirror.answered(count)
            assert mirror.target.counters.odd == 3

    run(scenario())


def test_of_two_answers_in_one_read_the_first_is_the_answer(run: Run, copying: Copying) -> None:
    second = b"HTTP/1.1 500 No\r\nContent-Length: 5\r\n\r\nwrong"

    async def scenario() -> None:
        async with origin(lambda _: [OK + second]) as server, copying(server.port) as mirror:
            for count in range(1, 4):
                mirror.get()
                await mirror.answered(count)
            assert server.connections == 3
        assert [line.split('"')[2].split()[:2] for line in mirror.lines()] == [["200", "0/2"]] * 3

    run(scenario())


def test_tidied_heads() -> None:
    assert tidy(START + b"X: a\r\n  b \r\nY :c\r\n") is None
    assert tidy(START + b"X: a\r\n  b \r\nY :c\r\n\r\nbody") == (
        START + b"X: a b\r\nY: c\r\n\r\nbody",
        False,
    )
    assert tidy(b"HTTP/1.0 200\n\n") == (b"HTTP/1.0 200 \r\n\r\n", False)
    chunked = (
        START + b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\n"
    )
    assert tidy(chunked) == (START + b"Transfer-Encoding: chunked\r\n\r\n", True)
