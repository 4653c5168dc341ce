"""The cache of spoa-iprep's service: the last table is used until there is a new one."""

import os
import re
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from spoakit.apps.iprep.config.schema import (
    AnswerSettings,
    BanSettings,
    ForwardedSettings,
    PolicySettings,
    ReputationSettings,
)
from spoakit.apps.iprep.config.sources import FeedSettings, SourceSettings
from spoakit.apps.iprep.service import snapshots_folder
from spoakit.apps.iprep.snapshot.builder import build_snapshot
from spoakit.apps.iprep.snapshot.manifest import manifest_of, read_snapshot
from tests.support.iprep_service import Service
from tests.support.iprep_service_files import a_list
from tests.support.iprep_sources import put
from tests.support.processes import children_of
from tests.support.waiting import wait_until
from tests.support.web_server import web_server

pytestmark = pytest.mark.slow

ADDRESSES = ("8.8.8.8", "9.9.9.9", "7.7.7.7")
USED = "the table of the last run is used until there is a new one"


def a_feed(url: str) -> str:
    return f'[[source]]\nname = "feed"\ntype = "list"\nurl = "{url}"\ntimeout = 25\n'


def test_a_start_without_a_network_begins_with_the_last_table_at_once(
    service: Service, path: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    with web_server() as page:
        page.body = b"9.9.9.9\n"
        port = int(page.url.split(":")[2].partition("/")[0])
        config = f'cache = "cache"\n{a_list(path)}{a_feed(page.url)}'
        service.start(config).ready()
        before = [service.score(address) for address in ADDRESSES]
        assert before == [0, 0, 100]
        assert service.stop() == 0
    for copy in cache.glob("*.*"):
        copy.unlink()  # so that without the table the download would be waited for
    with socket.create_server(("127.0.0.1", port)):  # and that never comes
        start = len(service.log)
        service.start(config)
        wait_until(lambda: "listening on" in service.log[start:], "the start")
        assert USED in service.log[start:]
        assert "it took longer" not in service.log[start:]
        assert [service.score(address) for address in ADDRESSES] == before
        put(path, "8.8.8.8\n6.6.6.6\n")
        wait_until(lambda: service.score("6.6.6.6") == 0, "what has changed since")
        assert [service.score(address) for address in ADDRESSES] == before
        assert service.stop() == 0
    kept = cache / "snapshots"
    assert len(list(kept.glob("table-*"))) <= 2
    assert kept.stat().st_mode & 0o777 == 0o700
    assert service.folders == []


def test_a_second_service_with_the_same_cache_does_without(
    service: Service, path: Path, tmp_path: Path
) -> None:
    config = f'cache = "{tmp_path / "cache"}"\n{a_list(path)}'
    service.start(config, workers=1).ready()
    (tmp_path / "second").mkdir()
    second = Service(tmp_path / "second")
    try:
        second.start(config, workers=1).ready()
        assert "snapshots: another service uses it; give each one a cache of its own" in second.log
        assert len(second.folders) == 1
        assert second.score("8.8.8.8") == 0
        assert second.stop() == 0
    finally:
        second.kill()
    assert second.folders == []
    assert service.stop() == 0


def test_a_feeds_key_is_neither_logged_nor_shown_nor_on_a_command_line(
    service: Service, path: Path, tmp_path: Path
) -> None:
    (tmp_path / "key").write_text("hush-hush\n")
    with web_server() as page:
        page.trickles = True
        feed = f'{a_feed(page.url)}headers = {{ Auth-Key = "@key" }}\nallow-html = true\n'
        service.start(f'cache = "cache"\n{a_list(path)}{feed}', workers=1)
        wait_until(lambda: page.asked, "the question")
        assert page.asked[0]["Auth-Key"] == "hush-hush"
        jobs = children_of(service.updater())
        assert jobs
        for process in (*service.workers(), *jobs):
            assert b"hush" not in Path(f"/proc/{process}/cmdline").read_bytes()
        page.trickles = False
        service.configure(f'cache = "cache"\n{a_list(path)}{feed.replace("= 25", "= 24")}')
        page.status = 403
        service.signal(signal.SIGHUP)
        service.wait_for("the server answered 403")
        service.ready()
        assert "hush" not in str(service.ask("sources"))
        assert service.stop() == 0
    assert "hush" not in service.log
    public = [file for file in (tmp_path / "cache").iterdir() if file.is_file()]
    assert public
    assert all(b"hush" not in file.read_bytes() for file in public)


class Kept:
    """A cache in which a service has left a snapshot."""

    def __init__(self, root: Path) -> None:
        self.path = root / "list.txt"
        self.path.write_text("8.8.8.8\n")
        self.settings = ReputationSettings(
            (SourceSettings("mine", "list", str(self.path)),), cache=str(root / "cache")
        )
        with snapshots_folder(self.settings) as self.folder:
            self.build()

    def build(self) -> None:
        build_snapshot(self.folder, self.settings, read_snapshot(self.folder))

    def table(self) -> Path:
        snapshot = read_snapshot(self.folder)
        assert snapshot is not None
        return self.folder / snapshot.table


@pytest.fixture
def kept(tmp_path: Path) -> Kept:
    return Kept(tmp_path)


def test_what_does_not_matter_to_a_table_may_have_changed(
    kept: Kept, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    [source] = kept.settings.sources
    source = structs.replace(source, feed=FeedSettings(timeout=5, headers=(("Auth-Key", "hush"),)))
    settings = structs.replace(
        kept.settings, sources=(source,), answers=AnswerSettings(("ip_list",)), bans=BanSettings()
    )
    with snapshots_folder(settings) as folder:
        assert read_snapshot(folder) is not None
    assert USED in caplog.text


@pytest.mark.parametrize(
    "change",
    [
        {"policy": PolicySettings(unknown=50)},
        {"sources": ()},
        {"forwarded": ForwardedSettings("xff", ("10.0.0.0/8",))},
    ],
)
def test_a_table_of_another_configuration_is_not_used(
    kept: Kept, caplog: pytest.LogCaptureFixture, change: dict[str, Any]
) -> None:
    with snapshots_folder(structs.replace(kept.settings, **change)) as folder:
        assert read_snapshot(folder) is None
        assert list(folder.glob("source-*"))  # what was read is of use
    assert "is not used: the configuration has changed since" in caplog.text


def damage_table(kept: Kept) -> None:
    data = bytearray(kept.table().read_bytes())
    data[len(data) // 2] ^= 1
    kept.table().write_bytes(data)


def damage_description(kept: Kept) -> None:
    manifest_of(kept.folder).write_bytes(b'{"generation": 1')


def remove_table(kept: Kept) -> None:
    kept.table().unlink()


def age(kept: Kept) -> None:
    path = manifest_of(kept.folder)
    text = re.sub('"version":"[^"]+"', '"version":"0.0.7"', path.read_text())
    path.write_text(text.replace('"reports"', '"reported"'))


def forget_version(kept: Kept) -> None:
    path = manifest_of(kept.folder)
    path.write_text(re.sub(',"version":"[^"]+"', "", path.read_text()))


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (damage_table, "its files are damaged"),
        (damage_description, r"snapshot\.json is damaged"),
        (remove_table, "No such file or directory"),
        (age, r"it is of version '0\.0\.7'"),
        (forget_version, "it is of version ''"),
    ],
)
def test_a_table_that_cannot_be_used_is_ignored_with_a_line(
    kept: Kept,
    caplog: pytest.LogCaptureFixture,
    harm: Callable[[Kept], None],
    reason: str,
) -> None:
    harm(kept)
    with snapshots_folder(kept.settings) as folder:
        assert folder == kept.folder
        assert list(folder.iterdir()) == []
        kept.build()
    [line] = caplog.messages
    assert re.search(f"the table of the last run is not used: .*{reason}", line)
    caplog.clear()
    with snapshots_folder(kept.settings) as folder:
        assert read_snapshot(folder) is not None
    assert caplog.messages == []


def test_the_folder_of_the_cache_does_not_grow(kept: Kept) -> None:
    for content in ("8.8.8.1\n", "8.8.8.2\n", "8.8.8.3\n"):
        with snapshots_folder(kept.settings):
            put(kept.path, content)
            kept.build()
            names = sorted(path.name.partition("-")[0] for path in kept.folder.iterdir())
            assert names == ["snapshot.json", "source", "table", "table"]


def test_a_cache_that_cannot_be_had_is_done_without(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "cache").write_text("no folder")
    with snapshots_folder(ReputationSettings(cache=str(tmp_path / "cache"))) as folder:
        assert folder.is_dir()
    assert "cache/snapshots: Not a directory; the next start begins without" in caplog.text
    assert not folder.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_folder_of_somebody_else_in_the_cache_is_not_trusted(
    kept: Kept, caplog: pytest.LogCaptureFixture
) -> None:
    os.chown(kept.folder, 65534, 65534)
    with snapshots_folder(kept.settings) as folder:
        assert folder != kept.folder
    assert "it belongs to another user" in caplog.text


def test_a_folder_that_others_may_enter_is_closed_to_them(kept: Kept) -> None:
    kept.folder.chmod(0o755)
    with snapshots_folder(kept.settings) as folder:
        assert folder.stat().st_mode & 0o777 == 0o700
