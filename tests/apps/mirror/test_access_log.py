import asyncio
import contextlib
import os
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from tests.apps.mirror.conftest import until

from spoakit.apps.mirror._request_cy import Request
from spoakit.apps.mirror.access_log import AccessLog

REQUEST = Request(b"GET /a HTTP/1.1\r\n\r\n", 19)


@dataclass(frozen=True)
class Answer:
    version: str = "1.1"
    status: int = 200
    received: int = 5
    sent_at: float = field(default_factory=time.perf_counter)


def write(log: AccessLog, count: int = 1, result: str = "ok") -> None:
    answer = Answer()
    for _ in range(count):
        log.write(answer, REQUEST, "http://h", result, answer.sent_at + 0.0015)


def test_lines_appear_soon_and_in_the_form_of_the_c_program(tmp_path: Path) -> None:
    path = tmp_path / "log"

    async def scenario() -> None:
        with path.open("wb") as file:
            log = AccessLog(file.fileno(), worker=3)
            write(log)
            await until(lambda: path.stat().st_size > 0)
            write(log, result="\u2014 caf\u00e9")
            log.close()

    asyncio.run(scenario())
    first, second = path.read_bytes().splitlines()
    assert first.startswith(b"[ 3][    0.0")
    assert first.endswith(b'] "GET http://h/a HTTP/1.1" 200 0/5 1.500 ok')
    assert second.endswith(b"1.500 ? caf\xe9")


def test_many_lines_are_written_without_waiting_for_the_time(tmp_path: Path) -> None:
    path = tmp_path / "log"

    async def scenario() -> None:
        with path.open("wb") as file:
            log = AccessLog(file.fileno())
            write(log, 2000)
            while path.stat().st_size < 60_000:  # without giving the event loop its turn
                time.sleep(0.001)
            log.close()
            assert log.dropped == 0

    asyncio.run(scenario())
    assert path.read_bytes().count(b" ok\n") == 2000


def test_a_full_pipe_drops_lines_and_holds_up_nobody(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        reader, writer = os.pipe()
        os.set_blocking(reader, False)
        log = AccessLog(writer)
        count = 120_000
        started = time.perf_counter()
        write(log, count)
        assert time.perf_counter() - started < 10
        assert 0 < log.dropped < count
        received = bytearray()

        def has_all() -> bool:
            with contextlib.suppress(BlockingIOError):
                received.extend(os.read(reader, 65536))
            return received.count(b"\n") + log.dropped >= count

        await until(has_all)
        assert all(line.endswith(b" ok") for line in received.splitlines())
        log.close()
        os.close(reader)
        os.close(writer)

    asyncio.run(scenario())
    assert "lines could not be written so far" in caplog.text


def test_lines_that_cannot_be_written_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        descriptor = os.open("/dev/full", os.O_WRONLY)
        log = AccessLog(descriptor)
        write(log, 3)
        log.close()
        os.close(descriptor)
        assert log.dropped == 3

    asyncio.run(scenario())
    assert "access log: 3 lines could not be written so far" in caplog.text


def test_lines_that_a_stuck_reader_left_unwritten_are_counted_at_the_end() -> None:
    async def scenario() -> None:
        reader, writer = os.pipe()
        log = AccessLog(writer)
        write(log, 3000, result="x" * 100)
        log.close()
        # The pipe holds 64 KiB, which are a few hundred lines.
        assert 2000 < log.dropped < 3000
        os.close(reader)
        os.close(writer)

    asyncio.run(scenario())
