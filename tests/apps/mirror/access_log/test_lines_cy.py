import asyncio
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import pytest
from tests.apps.mirror.conftest import until
from tests.conftest import Form

from spoakit.apps.mirror._request_cy import OutgoingRequest
from spoakit.apps.mirror.access_log.writer import LogWriter
from spoakit.apps.mirror.config.settings import LogSettings


@dataclass(frozen=True)
class Response:
    version: bytes = b"1.1"
    status: int = 200
    received: int = 5
    sent_at: float = field(default_factory=time.perf_counter)


@pytest.fixture(scope="session")
def logging(form: Form) -> ModuleType:
    """`spoakit.apps.mirror.access_log._lines_cy`, in each form."""
    return form("spoakit.apps.mirror.access_log._lines_cy")


def test_lines_appear_soon_and_in_the_form_of_the_c_program(
    logging: ModuleType, tmp_path: Path
) -> None:
    path = tmp_path / "log"

    async def scenario() -> None:
        with path.open("wb") as file:
            log = logging.AccessLog(LogWriter(file.fileno()), worker=3)
            get = OutgoingRequest(b"GET /a HTTP/1.1\r\n\r\n", 19, 3, 2)
            response = Response()
            log.write(response, get, b"http://h", b"ok", response.sent_at + 0.0015004)
            await until(lambda: path.stat().st_size > 0)
            post = OutgoingRequest(b"POST /\xe9?b HTTP/1.1\r\n\r\nhello", 22, 4, 4)
            none = Response(b"???", 0, 0, response.sent_at)
            log.write(none, post, b"http://h:81", b"caf\xe9", response.sent_at + 100_000.2500004)
            log.close()

    asyncio.run(scenario())
    first, second = path.read_bytes().splitlines()
    assert first.startswith(b"[ 3][    0.0")
    assert first.endswith(b'] "GET http://h/a HTTP/1.1" 200 0/5 1.500 ok')
    assert second.startswith(b"[ 3][100000.25")
    assert second.endswith(b'] "POST http://h:81/\xe9?b HTTP/???" 0 5/0 100000250.000 caf\xe9')


def test_many_lines_are_written_without_waiting_for_the_time(
    logging: ModuleType, tmp_path: Path
) -> None:
    path = tmp_path / "log"

    async def scenario() -> None:
        with path.open("wb") as file:
            writer = LogWriter(file.fileno())
            log = logging.AccessLog(writer)
            get = OutgoingRequest(b"GET /a HTTP/1.1\r\n\r\n", 19, 3, 2)
            response = Response()
            for _ in range(2000):
                log.write(response, get, b"http://h", b"ok", response.sent_at)
            while path.stat().st_size < 60_000:  # without giving the event loop its turn
                time.sleep(0.001)
            log.close()
            assert writer.dropped == 0

    asyncio.run(scenario())
    assert path.read_bytes().count(b" ok\n") == 2000


def lines(
    logging: ModuleType, path: Path, settings: LogSettings, results: list[bytes]
) -> list[str]:
    """Log a response for each result; return the lines."""

    async def scenario() -> None:
        with path.open("wb") as file:
            log = logging.AccessLog(LogWriter(file.fileno()), 2, settings)
            get = OutgoingRequest(b"GET /a\xe9 HTTP/1.1\r\n\r\n", 20, 3, 3)
            response = Response()
            for result in results:
                log.write(response, get, b"http://h", result, response.sent_at + 0.0015004)
            log.close()

    asyncio.run(scenario())
    return path.read_text("latin-1").splitlines()


def test_lines_may_be_json(logging: ModuleType, tmp_path: Path) -> None:
    [line] = lines(logging, tmp_path / "log", LogSettings("json"), [b"ok"])
    fields = json.loads(line)
    assert fields.pop("time").endswith("Z")
    assert fields == {
        "worker": 2,
        "method": "GET",
        "url": "http://h/a\u00e9",
        "version": "1.1",
        "status": 200,
        "up": 0,
        "down": 5,
        "ms": 1.5,
        "result": "ok",
    }


def test_a_share_of_the_lines_is_written_and_every_failure(
    logging: ModuleType, tmp_path: Path
) -> None:
    settings = LogSettings(sample=10.0)
    written = lines(logging, tmp_path / "log", settings, [b"ok"] * 1000 + [b"reset"] * 3)
    assert len(written) - 3 == 100
    assert [line for line in written if line.endswith("reset")] == written[-3:]


def test_a_quiet_log_has_no_lines(logging: ModuleType, tmp_path: Path) -> None:
    assert lines(logging, tmp_path / "log", LogSettings(quiet=True), [b"ok", b"reset"]) == []


def test_a_log_that_is_not_buffered_writes_each_line_at_once(
    logging: ModuleType, tmp_path: Path
) -> None:
    path = tmp_path / "log"

    async def scenario() -> None:
        with path.open("wb") as file:
            log = logging.AccessLog(LogWriter(file.fileno()), 1, LogSettings(buffered=False))
            response = Response()
            get = OutgoingRequest(b"GET /a HTTP/1.1\r\n\r\n", 19, 3, 2)
            log.write(response, get, b"http://h", b"ok", response.sent_at)
            deadline = time.monotonic() + 10
            while not path.stat().st_size:  # without giving the event loop its turn
                assert time.monotonic() < deadline
                time.sleep(0.001)
            log.close()

    asyncio.run(scenario())
