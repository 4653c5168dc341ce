import asyncio
import os
import re
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from spoakit.apps.iprep.check import check_files, check_sources
from spoakit.apps.iprep.config.schema import (
    AuditSettings,
    BanSettings,
    ControlSettings,
    ReputationSettings,
)
from spoakit.apps.iprep.config.sources import SourceSettings
from spoakit.exceptions import ConfigurationError
from tests.support.dns_server import name_server
from tests.support.iprep_sources import dnsbl, feed, mine
from tests.support.waiting import TIMEOUT
from tests.support.web_server import web_server


def checked(folder: Path, *sources: SourceSettings) -> list[str]:
    settings = ReputationSettings(sources, cache=str(folder / "cache"))
    results = asyncio.run(asyncio.wait_for(check_sources(settings), TIMEOUT))
    assert not (folder / "cache").exists()
    return list(map(str, results))


def assert_matches(lines: list[str], *patterns: str) -> None:
    for line, pattern in zip(lines, patterns, strict=True):
        assert re.fullmatch(pattern, line)


def test_files_are_opened(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_text("8.8.8.8\n" * 500)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    assert checked(
        tmp_path,
        mine(path),
        mine(tmp_path / "none", "none"),
        mine(tmp_path, "folder"),
        mine(pipe, "pipe"),
    ) == [
        f"source mine: {path} ok: 4,000 bytes",
        f"source none: {tmp_path}/none failed: it cannot be read: No such file or directory",
        f"source folder: {tmp_path} failed: it is not a regular file",
        f"source pipe: {pipe} failed: it is not a regular file",
    ]


@pytest.mark.parametrize("has_head", [True, False])
def test_servers_are_asked_for_headers(tmp_path: Path, has_head: bool) -> None:
    with web_server() as page:
        page.has_head = has_head
        [line] = checked(tmp_path, feed(page.url.replace("//", "//me:secret@")))
        shown = page.url.replace("//", r"//\*\*\*@")
        assert re.fullmatch(rf"source feed: {shown} ok: 200 OK, \d+ ms", line)
        assert page.methods == ["HEAD"] + ["GET"] * (not has_head)
        assert all(asked["Authorization"].startswith("Basic ") for asked in page.asked)
        page.status = 403
        [line] = checked(tmp_path, feed(page.url))
        assert line == f"source feed: {page.url} failed: the server answered 403 Forbidden"


def test_what_cannot_be_reached_is_named_within_its_timeout(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as hanging, socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        silent, dead = (f"http://127.0.0.1:{s.getsockname()[1]}/" for s in (hanging, bound))
        start = time.monotonic()
        lines = checked(
            tmp_path,
            feed(silent, "silent", timeout=0.3),
            feed(dead, "dead"),
            feed("http://name.invalid/", "unknown"),
        )
        assert time.monotonic() - start < 10
    assert_matches(
        lines,
        rf"source silent: {silent} failed: (no response within 0\.3 s.*|.*timed out)",
        rf"source dead: {dead} failed: it cannot be downloaded: .*refused",
        r"source unknown: http://name\.invalid/ failed: it cannot be downloaded: .*",
    )


def test_dnsbls_are_asked_for_the_address_that_each_has(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with name_server() as server:
            source = dnsbl(server.address)
            settings = ReputationSettings((source,))
            [result] = await check_sources(settings)
            assert "127.0.0.2 is not listed" in str(result)
            server.answers["2.0.0.127.bl.example"] = ["127.0.0.2"]
            [result] = await check_sources(settings)
            assert re.fullmatch(
                r"source bl: bl\.example ok: 127\.0\.0\.2 is listed, \d+ ms", str(result)
            )
        [result] = await check_sources(ReputationSettings((dnsbl(server.address, 0.05),)))
        assert str(result).startswith("source bl: bl.example failed: ")

    asyncio.run(asyncio.wait_for(scenario(), TIMEOUT))


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"bans": BanSettings("{}/none/bans")}, "bans.path: '{}/none/bans' cannot be written"),
        ({"audit": AuditSettings("{}")}, "audit.path: '{}' cannot be written: it is a folder"),
        ({"cache": "{}/file/cache"}, "cache: '{}/file/cache' cannot be made in '{}/file'"),
        ({"control": ControlSettings("{}/none/c")}, "control.path: no permission in '{}/none'"),
    ],
)
def test_files_that_cannot_be_written_are_refused(
    tmp_path: Path, settings: dict[str, Any], error: str
) -> None:
    (tmp_path / "file").touch()

    def placed(value: Any) -> Any:
        if isinstance(value, str):
            return value.format(tmp_path)
        return type(value)(value.path.format(tmp_path))

    wrong = ReputationSettings(**{key: placed(value) for key, value in settings.items()})
    with pytest.raises(ConfigurationError, match=re.escape(error.replace("{}", str(tmp_path)))):
        check_files(wrong)


def test_files_that_can_be_written_are_left_alone(tmp_path: Path) -> None:
    check_files(
        ReputationSettings(
            bans=BanSettings(str(tmp_path / "bans")),
            audit=AuditSettings(str(tmp_path / "audit")),
            cache=str(tmp_path / "new" / "cache"),
            control=ControlSettings(str(tmp_path / "control")),
        )
    )
    check_files(ReputationSettings(cache=str(tmp_path)))
    check_files(ReputationSettings(control=ControlSettings("/none/c", is_default=True)))
    assert list(tmp_path.iterdir()) == []
