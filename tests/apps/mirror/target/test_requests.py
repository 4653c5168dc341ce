"""Requests to one target: they arrive as they were, and their responses are read."""

import asyncio
import logging
import struct
from collections.abc import Sequence

import pytest

from spoakit.apps.mirror.config.schema import HeaderSettings, Timeouts
from tests.support.copier import Copying, Run
from tests.support.http2_peer import listening
from tests.support.origin import OK, origin
from tests.support.waiting import until


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
        rewrite = {"host": "target", "headers": HeaderSettings(secrets="strip")}
        more = {"server": "me:secret@127.0.0.1", "http": http, **rewrite}
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
            async with copying(server.port, connections=1) as mirror:
                for count in range(1, 4):
                    mirror.get()
                    await mirror.answered(count)
            assert server.connections == 1
            assert all(f'" {logged} ' in line for line in mirror.lines())

    run(scenario())


def test_the_answer_to_head_has_no_body(run: Run, copying: Copying) -> None:
    async def scenario() -> None:
        head = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"
        async with origin(lambda request: [head if request[:4] == b"HEAD" else OK]) as server:
            async with copying(server.port, connections=1) as mirror:
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


def test_a_target_that_never_answers_is_given_up(run: Run, copying: Copying) -> None:
    async def scenario() -> None:
        async with origin(lambda request: []) as server:
            settings = {
                "timeouts": Timeouts(first_byte=0.2, min_backoff=0.01, max_backoff=0.01),
                "connections": 4,
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
        marked = {"marker": ("X-Mirrored", "yes")}
        async with origin() as server, copying(server.port, **marked) as mirror:
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
