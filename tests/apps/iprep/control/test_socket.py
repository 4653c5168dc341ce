import asyncio
import os
import socket
import stat
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from spoakit.apps.iprep.control.socket import (
    MAX_REQUEST,
    Answer,
    ControlError,
    Request,
    ask,
    serve_control,
)
from spoakit.exceptions import SpoakitError, StartupError


async def echo(request: Request) -> Answer:
    if request.get("command") == "wrong":
        raise SpoakitError("score: 101 is not in the range")
    return {"got": request}


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "control")


def served(path: str, scenario: Callable[[], Coroutine[Any, Any, None]], mode: int = 0o600) -> None:
    async def run() -> None:
        async with serve_control(path, mode, echo):
            await scenario()

    asyncio.run(run())


async def asked(path: str, request: Request) -> Answer:
    return await asyncio.to_thread(ask, path, request)


def test_a_request_is_answered(path: str) -> None:
    async def scenario() -> None:
        request = {"command": "ban", "reason": "caf\u00e9\n"}
        assert await asked(path, request) == {"got": request}

    served(path, scenario)


def test_an_error_is_told_to_whoever_asked(path: str) -> None:
    async def scenario() -> None:
        with pytest.raises(ControlError, match="score: 101"):
            await asked(path, {"command": "wrong"})

    served(path, scenario)


@pytest.mark.parametrize("mode", [0o600, 0o660])
def test_the_socket_has_the_permissions_it_is_to_have(path: str, mode: int) -> None:
    async def scenario() -> None:
        assert stat.S_IMODE(os.stat(path).st_mode) == mode

    served(path, scenario, mode)
    assert not os.path.exists(path)


def test_a_socket_that_was_left_behind_is_replaced(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(path)

    async def scenario() -> None:
        assert await asked(path, {}) == {"got": {}}

    served(path, scenario)


def test_a_socket_that_is_in_use_is_left_alone(path: str) -> None:
    async def scenario() -> None:
        with pytest.raises(StartupError, match="control socket"):
            async with serve_control(path, 0o600, echo):
                pass
        assert await asked(path, {}) == {"got": {}}

    served(path, scenario)


def test_a_file_in_its_place_is_left_alone(path: str) -> None:
    Path(path).write_text("precious")
    with pytest.raises(StartupError, match=r"control socket '.*': what is there is no socket"):
        served(path, lambda: asyncio.sleep(0))
    assert Path(path).read_text() == "precious"


@pytest.mark.parametrize("line", [b"{\n", b"\xff\n", b"[]\n", b"1\n"])
def test_what_is_no_request_is_refused(path: str, line: bytes) -> None:
    async def scenario() -> None:
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(line)
        assert b"error" in await reader.readline()
        writer.close()
        assert await asked(path, {}) == {"got": {}}

    served(path, scenario)


def test_a_request_without_end_costs_its_connection(path: str) -> None:
    async def scenario() -> None:
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(b"x" * (MAX_REQUEST * 3))
        assert await reader.readline() == b'{"error": "the request is over 65536 bytes long"}\n'
        writer.close()
        assert await asked(path, {}) == {"got": {}}

    served(path, scenario)


def test_callers_that_say_nothing_do_not_hold_up_the_end(path: str) -> None:
    callers: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def scenario() -> None:
        callers.extend([await asyncio.open_unix_connection(path) for _ in range(20)])
        assert await asked(path, {}) == {"got": {}}

    async def run() -> None:
        async with serve_control(path, 0o600, echo):
            await scenario()
        for reader, writer in callers:
            assert await reader.read() == b""
            writer.close()
            await writer.wait_closed()

    asyncio.run(run())


def test_where_nobody_answers_that_is_said(path: str) -> None:
    with pytest.raises(ControlError, match="is it running"):
        ask(path, {})


@pytest.mark.parametrize("answer", [b"", b'{"bans": ['])
def test_an_answer_that_is_cut_off_is_none(path: str, answer: bytes) -> None:
    async def break_off(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(answer)
        writer.close()
        await writer.wait_closed()

    async def scenario() -> None:
        async with await asyncio.start_unix_server(break_off, path):
            with pytest.raises(ControlError, match="closed the connection without an answer"):
                await asked(path, {})

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "answer", [b"HTTP/1.1 400\r\n", b"[1]\n", b"\xff\xfe\n", b"[" * 60_000 + b"\n"]
)
def test_something_else_that_answers_is_said_to_be_so(path: str, answer: bytes) -> None:
    async def answer_so(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(answer)
        writer.close()
        await writer.wait_closed()

    async def scenario() -> None:
        async with await asyncio.start_unix_server(answer_so, path):
            with pytest.raises(ControlError, match="is no spoa-iprep"):
                await asked(path, {})

    asyncio.run(scenario())


def test_callers_beyond_the_limit_are_turned_away_and_logged(
    path: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        callers = [await asyncio.open_unix_connection(path) for _ in range(33)]
        assert await callers[-1][0].read() == b""
        for _, writer in callers:
            writer.close()
            await writer.wait_closed()

    served(path, scenario)
    assert "control: over 32 connections at once" in caplog.text
