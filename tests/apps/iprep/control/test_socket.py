import asyncio
import grp
import os
import socket
import stat
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from spoakit.apps.iprep.config.schema import ControlSettings
from spoakit.apps.iprep.control import socket as control_socket
from spoakit.apps.iprep.control.socket import (
    MAX_REQUEST,
    Answer,
    Connection,
    ControlError,
    Request,
    ask,
    serve_control,
)
from spoakit.exceptions import SpoakitError, StartupError
from tests.support.waiting import TIMEOUT, until


async def echo(request: Request, user: int) -> Answer:
    if request.get("command") == "wrong":
        raise SpoakitError("score: 101 is not in the range")
    return {"got": request}


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "control")


def served(path: str, scenario: Callable[[], Coroutine[Any, Any, None]], **settings: Any) -> None:
    async def run() -> None:
        async with serve_control(ControlSettings(path, **settings), echo):
            await asyncio.wait_for(scenario(), TIMEOUT)

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

    served(path, scenario, mode=mode)
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
            async with serve_control(ControlSettings(path), echo):
                pass
        assert await asked(path, {}) == {"got": {}}

    served(path, scenario)


def test_a_file_in_its_place_is_left_alone(path: str) -> None:
    Path(path).write_text("precious")
    with pytest.raises(
        StartupError, match=r"control socket '.*': there is a file that is not a socket"
    ):
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
        async with serve_control(ControlSettings(path), echo):
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
            with pytest.raises(ControlError, match="is not a spoa-iprep"):
                await asked(path, {})

    asyncio.run(scenario())


def test_a_hundred_callers_at_once_are_served(path: str) -> None:
    async def scenario() -> None:
        callers = [await asyncio.open_unix_connection(path) for _ in range(100)]
        for number, (_, writer) in enumerate(callers):
            writer.write(b'{"number": %d}\n' % number)
        for number, (reader, writer) in enumerate(callers):
            assert await reader.readline() == b'{"got": {"number": %d}}\n' % number
            writer.close()

    served(path, scenario)


def test_callers_beyond_the_limit_wait_and_are_served(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control_socket, "_MAX_CONNECTIONS", 2)

    async def scenario() -> None:
        silent = [await asyncio.open_unix_connection(path) for _ in range(2)]
        waiting = asyncio.create_task(asked(path, {"late": True}))
        done, _ = await asyncio.wait((waiting,), timeout=0.1)
        assert not done
        silent[0][1].close()
        assert await waiting == {"got": {"late": True}}
        silent[1][1].close()

    served(path, scenario)


def test_where_too_many_wait_a_command_tries_again(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(0)
        waiting = []
        while True:
            waiting.append(socket.socket(socket.AF_UNIX))
            waiting[-1].setblocking(False)
            try:
                waiting[-1].connect(path)
            except BlockingIOError:
                break

        def accept_all(interval: float) -> None:
            for _ in waiting[1:]:
                listener.accept()[0].close()

        monkeypatch.setattr(time, "sleep", accept_all)
        Connection(path).close()
        for each in waiting:
            each.close()


def _is_listened_on(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(path) == 0


@pytest.mark.parametrize("how", ["removed", "replaced"])
def test_a_socket_that_is_removed_comes_back(
    path: str, how: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(control_socket, "_LOOK_INTERVAL", 0.02)

    async def scenario() -> None:
        kept = Connection(path)
        for _ in range(2):
            os.unlink(path)
            if how == "replaced":
                with socket.socket(socket.AF_UNIX) as left:
                    left.bind(path)
            await until(lambda: _is_listened_on(path))
            assert await asked(path, {}) == {"got": {}}
        # A conversation goes on meanwhile.
        assert await asyncio.to_thread(kept.ask, {"kept": 1}) == {"got": {"kept": 1}}
        kept.close()

    served(path, scenario, mode=0o640)
    assert "was removed; it is there again" in caplog.text
    assert not os.path.exists(path)


def test_a_socket_that_another_has_taken_over_is_left_to_it(
    path: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(control_socket, "_LOOK_INTERVAL", 0.02)

    async def scenario() -> None:
        os.unlink(path)
        with socket.socket(socket.AF_UNIX) as other:
            other.bind(path)
            other.listen()
            await until(lambda: "commands cannot reach this spoa-iprep" in caplog.text)
        await until(lambda: "it is there again" in caplog.text)
        assert await asked(path, {}) == {"got": {}}

    served(path, scenario)


def test_a_request_has_the_number_of_its_user(path: str) -> None:
    users = []

    async def note(request: Request, user: int) -> Answer:
        users.append(user)
        return {}

    async def run() -> None:
        async with serve_control(ControlSettings(path), note):
            await asked(path, {})

    asyncio.run(run())
    assert users == [os.geteuid()]


def test_the_socket_has_the_owner_and_group_that_are_asked_for(path: str) -> None:
    async def scenario() -> None:
        status = os.stat(path)
        assert (status.st_uid, status.st_gid) == (os.geteuid(), os.getegid())

    served(path, scenario, owner=str(os.geteuid()), group=str(os.getegid()))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a socket away")
def test_root_gives_the_socket_to_a_group_by_its_name(path: str) -> None:
    group = grp.getgrall()[-1]

    async def scenario() -> None:
        assert os.stat(path).st_gid == group.gr_gid

    served(path, scenario, group=group.gr_name)


@pytest.mark.parametrize("option", ["owner", "group"])
def test_an_owner_that_the_system_does_not_have_is_named(path: str, option: str) -> None:
    with pytest.raises(StartupError, match=f"control.{option}: unknown .* 'nobody-"):
        served(path, lambda: asyncio.sleep(0), **{option: "nobody-of-that-name"})
    assert not os.path.exists(path)
