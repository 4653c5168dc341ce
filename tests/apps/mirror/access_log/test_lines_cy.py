import asyncio
import json
import os
import re
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from spoakit.apps.line_output import BATCH_SIZE
from spoakit.apps.line_writer import LogWriter
from spoakit.apps.mirror._request_cy import OutgoingRequest
from spoakit.apps.mirror.config.schema import LogSettings
from spoakit.exceptions import ConfigurationError
from tests.support.forms import Form
from tests.support.waiting import until, wait_until


@pytest.fixture(scope="session")
def logging(form: Form) -> ModuleType:
    """`spoakit.apps.mirror.access_log._lines_cy`, in each form."""
    return form("spoakit.apps.mirror.access_log._lines_cy")


def response_of(
    logging: ModuleType, version: bytes = b"1.1", status: int = 200, received: int = 5
) -> Any:
    """Return a response to a request that was sent just now."""
    response = logging.Response()
    response.version = version
    response.status = status
    response.received = received
    response.sent_at = time.perf_counter()
    return response


def test_lines_appear_soon_and_in_the_form_of_the_c_program(
    logging: ModuleType, tmp_path: Path
) -> None:
    path = tmp_path / "log"

    async def scenario() -> None:
        with path.open("wb") as file:
            log = logging.AccessLog(LogWriter(file.fileno()), worker=3)
            get = OutgoingRequest(b"GET /a HTTP/1.1\r\n\r\n", 19, 3, 2)
            response = response_of(logging)
            log.write(
                response,
                get,
                logging.TargetLabel("name", "http://h"),
                b"ok",
                response.sent_at + 0.0015004,
            )
            await until(lambda: path.stat().st_size > 0)
            post = OutgoingRequest(b"POST /\xe9?b HTTP/1.1\r\n\r\nhello", 22, 4, 4)
            none = response_of(logging, b"???", 0, 0)
            none.sent_at = response.sent_at
            log.write(
                none,
                post,
                logging.TargetLabel("name", "http://h:81"),
                b"caf\xe9",
                response.sent_at + 100_000.2500004,
            )
            log.close()

    asyncio.run(scenario())
    first, second = path.read_bytes().splitlines()
    assert first.startswith(b"[ 3][    0.0")
    assert first.endswith(b'] "GET http://h/a HTTP/1.1" 200 0/5 1.500 ok')
    assert second.startswith(b"[ 3][100000.25")
    assert second.endswith(b'] "POST http://h:81/\\xE9?b HTTP/???" 0 5/0 100000250.000 caf\xe9')


def test_many_lines_are_written_without_waiting_for_the_time(
    logging: ModuleType, tmp_path: Path
) -> None:
    path = tmp_path / "log"

    async def scenario() -> None:
        with path.open("wb") as file:
            writer = LogWriter(file.fileno())
            log = logging.AccessLog(writer)
            get = OutgoingRequest(b"GET /a HTTP/1.1\r\n\r\n", 19, 3, 2)
            response = response_of(logging)
            for _ in range(4000):
                log.write(
                    response, get, logging.TargetLabel("name", "http://h"), b"ok", response.sent_at
                )
            wait_until(
                lambda: path.stat().st_size >= BATCH_SIZE
            )  # without giving the event loop its turn
            log.close()
            assert writer.dropped == 0

    asyncio.run(scenario())
    assert path.read_bytes().count(b" ok\n") == 4000


def lines(
    logging: ModuleType, path: Path, settings: LogSettings, results: list[bytes]
) -> list[str]:
    """Log a response for each result; return the lines."""

    async def scenario() -> None:
        with path.open("wb") as file:
            log = logging.AccessLog(LogWriter(file.fileno()), 2, settings)
            get = OutgoingRequest(b"GET /a\xe9 HTTP/1.1\r\n\r\n", 20, 3, 3)
            response = response_of(logging)
            for result in results:
                log.write(
                    response,
                    get,
                    logging.TargetLabel("name", "http://h"),
                    result,
                    response.sent_at + 0.0015004,
                )
            log.close()

    asyncio.run(scenario())
    return path.read_text("latin-1").splitlines()


def test_lines_may_be_json(logging: ModuleType, tmp_path: Path) -> None:
    [line] = lines(logging, tmp_path / "log", LogSettings("json"), [b"ok"])
    fields = json.loads(line)
    assert fields.pop("time").endswith("Z")
    assert fields == {
        "worker": 2,
        "target": "name",
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
            response = response_of(logging)
            get = OutgoingRequest(b"GET /a HTTP/1.1\r\n\r\n", 19, 3, 2)
            log.write(
                response, get, logging.TargetLabel("name", "http://h"), b"ok", response.sent_at
            )
            wait_until(lambda: path.stat().st_size)  # without giving the event loop its turn
            log.close()

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("path", "written"),
    [
        (b'/?q="a"', rb"/?q=\x22a\x22"),
        (b"/a\\x22", rb"/a\x5Cx22"),
        (b"/caf\xc3\xa9\xff\x80", rb"/caf\xC3\xA9\xFF\x80"),
        (b"/!#$&'()*+,-.:;<=>?@[]^_`{|}~%22", b"/!#$&'()*+,-.:;<=>?@[]^_`{|}~%22"),
    ],
)
def test_a_line_of_text_can_be_taken_apart_whatever_the_path(
    logging: ModuleType, tmp_path: Path, path: bytes, written: bytes
) -> None:
    file = tmp_path / "log"
    request = OutgoingRequest(b"GET %b HTTP/1.1\r\n\r\n" % path, 17 + len(path), 3, len(path))

    async def scenario() -> None:
        with file.open("wb") as stream:
            log = logging.AccessLog(LogWriter(stream.fileno()), names_targets=True)
            label = logging.TargetLabel('a "b" \u00e9', "http://h")
            log.write(response_of(logging), request, label, b"ok", time.perf_counter())
            log.close()

    asyncio.run(scenario())
    line = (
        rb'\[ 1\]\[ *\d+\.\d{6}\] "([^"]*)" "GET http://h([^"]*) HTTP/1.1" 200 0/5 \d+\.\d{3} ok\n'
    )
    taken = re.fullmatch(line, file.read_bytes())
    assert taken is not None, file.read_bytes()
    assert taken[1] == rb"a \x22b\x22 \xC3\xA9"
    assert taken[2] == written
    # The escapes are Python's as well: what was logged can be had back.
    assert taken[2].decode("unicode-escape").encode("latin-1") == path


def test_its_settings_change_under_way(logging: ModuleType, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    get = OutgoingRequest(b"GET /a HTTP/1.1\r\n\r\n", 19, 3, 2)

    async def scenario() -> None:
        label = logging.TargetLabel("name", "http://h")

        def write(result: bytes) -> None:
            log.write(response_of(logging), get, label, result, time.perf_counter())

        with one.open("ab") as file:
            log = logging.AccessLog(LogWriter(file.fileno()))
            write(b"1")
            log.configure(LogSettings("json", path=str(two)), True)
            write(b"2")
            log.configure(LogSettings(path=str(two)), True)
            write(b"3")
            with pytest.raises(ConfigurationError, match=r"absent/log' cannot be opened: No such"):
                log.configure(LogSettings("json", path=str(tmp_path / "absent" / "log")), False)
            write(b"4")
            two.rename(tmp_path / "moved")
            log.reopen()
            write(b"5")
            log.configure(LogSettings(quiet=True, path=str(two)), False)
            write(b"6")
            log.configure(LogSettings(buffered=False), False)
            write(b"7")
            await until(lambda: one.read_bytes().endswith(b"7\n"))
            log.close()

    asyncio.run(scenario())
    assert [line[-1:] for line in one.read_bytes().splitlines()] == [b"1", b"7"]
    second, third, fourth = (tmp_path / "moved").read_bytes().splitlines()
    assert json.loads(second)["result"] == "2"
    assert third.endswith(b" 3")
    assert fourth.endswith(b" 4")
    assert b'"name" "GET' in fourth
    assert two.read_bytes().endswith(b" 5\n")
    assert len(two.read_bytes().splitlines()) == 1
    assert b"name" not in one.read_bytes()


def test_files_it_has_left_are_closed(logging: ModuleType, tmp_path: Path) -> None:
    async def scenario() -> None:
        with (tmp_path / "first").open("wb") as file:
            before = os.listdir("/dev/fd")
            log = logging.AccessLog(LogWriter(file.fileno()))
            for name in ("a", "b", "a"):
                log.configure(LogSettings(path=str(tmp_path / name)), False)
                log.reopen()
            log.close()
            assert os.listdir("/dev/fd") == before

    asyncio.run(scenario())
