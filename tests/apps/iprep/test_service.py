import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from spoakit.apps.iprep.config.settings import (
    AnswerSettings,
    BanSettings,
    DnsblSettings,
    FeedSettings,
    ForwardedSettings,
    PolicySettings,
    ReputationSettings,
    SourceSettings,
)
from spoakit.apps.iprep.service import open_reputation, reloadable_settings, snapshots_folder
from spoakit.apps.iprep.snapshot.builder import build_snapshot
from spoakit.apps.iprep.snapshot.manifest import manifest_of, read_snapshot
from spoakit.exceptions import ConfigurationError, SpoakitError, StartupError
from spoakit.metrics.memory import SharedMetrics
from tests.support.iprep_service import Service
from tests.support.iprep_sources import put
from tests.support.processes import children_of, is_running
from tests.support.waiting import TIMEOUT, wait_until
from tests.support.web_server import web_server


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    service = Service(tmp_path)
    yield service
    service.kill()
    print(service.log)  # shown if the test fails


def a_list(path: Path, name: str = "mine") -> str:
    return f'[[source]]\nname = "{name}"\ntype = "list"\npath = "{path}"\n'


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "list.txt"
    path.write_text("8.8.8.8\n")
    return path


# --- the service -------------------------------------------------------------------------


def test_it_serves_follows_its_files_and_leaves_nothing(service: Service, path: Path) -> None:
    service.start(a_list(path)).ready()
    assert service.score("8.8.8.8") == 0
    put(path, "9.9.9.9\n")
    wait_until(lambda: service.score("9.9.9.9") == 0, "the new list")
    assert service.score("8.8.8.8") == 100
    assert service.stop() == 0
    assert service.folders == []
    assert not os.path.exists(service.control)
    assert "Traceback" not in service.log


def test_a_reload_adds_and_removes_sources(service: Service, path: Path) -> None:
    service.start(a_list(path), workers=1).ready()
    other = path.with_name("other.txt")
    other.write_text("9.9.9.9\n")
    service.configure(a_list(path) + a_list(other, "other"))
    service.signal(signal.SIGHUP)
    wait_until(lambda: service.score("9.9.9.9") == 0, "the other list")
    service.configure(a_list(other, "other"))
    service.signal(signal.SIGHUP)
    wait_until(lambda: service.score("8.8.8.8") == 100, "no more of the first list")
    assert service.score("9.9.9.9") == 0
    assert service.stop() == 0


def test_commands_update_a_source_and_see_all_workers(service: Service, path: Path) -> None:
    with web_server() as page:
        page.body = b"9.9.9.9\n" * 200
        audit = path.with_name("audit.log")
        feed = f'[[source]]\nname = "feed"\ntype = "list"\nurl = "{page.url}"\n'
        config = (
            f'cache = "cache"\nbans.path = "bans"\naudit.path = "audit.log"\n{a_list(path)}{feed}'
        )
        service.start(config).ready()
        page.body = b"7.7.7.7\n"
        with pytest.raises(SpoakitError, match="source feed: it shrank from 200 entries to 1"):
            service.ask("update", source="feed")
        answer = service.ask("update", source="feed", **{"accept-shrink": True})
        assert answer == {"source": "feed", "download": "new", "entries": 1, "fault": ""}
        put(path, "8.8.8.8\n6.6.6.6\n")
        assert service.ask("update", source="mine")["entries"] == 2
        wait_until(lambda: service.score("6.6.6.6") == 0, "the new table")
        service.ask("ban", address="5.5.5.5", seconds=0.2)
        wait_until(lambda: audit.read_text().count("\n") == 2, "the end of the ban")
        ban, end = map(json.loads, audit.read_text().splitlines())
        assert (ban["event"], ban["by"], ban["user"]) == ("ban", "command", os.geteuid())
        assert (end["event"], end["by"], end["address"]) == ("unban", "expiry", "5.5.5.5")
        assert service.stop() == 0


def test_a_table_that_cannot_be_made_shows_in_the_sources(service: Service, path: Path) -> None:
    service.start(a_list(path), workers=1).ready()
    [folder] = service.folders
    (folder / "build.lock").unlink()
    (folder / "build.lock").mkdir()
    with pytest.raises(SpoakitError, match=r"source mine: no new table: .* Is a dir"):
        service.ask("update", source="mine")
    table = service.ask("sources")["table"]
    assert "Is a directory" in table["error"]
    assert table["failed"] <= time.time()
    (folder / "build.lock").rmdir()
    service.ask("update", source="mine")
    assert "error" not in service.ask("sources")["table"]
    assert service.stop() == 0


def test_a_configuration_that_is_refused_leaves_the_one_in_force(
    service: Service, path: Path
) -> None:
    service.start(a_list(path)).ready()
    service.configure(a_list(path) + a_list(path, "again") + "score = 101\n")
    service.signal(signal.SIGHUP)
    service.wait_for("source[2].score: ")
    service.configure(a_list(path) + '[[source]]\nname = "bl"\ntype = "dnsbl"\nzone = "a.example"')
    service.signal(signal.SIGHUP)
    service.wait_for("source: the first one of the type 'dnsbl' takes a restart")
    assert service.score("8.8.8.8") == 0
    assert len(service.ask("sources")["sources"]) == 1
    assert service.stop() == 0


@pytest.mark.parametrize(("failed", "score"), [("open", 100), ("closed", 0)])
def test_a_file_that_is_missing_at_the_start_is_a_failed_source_until_it_is_there(
    service: Service, path: Path, failed: str, score: int
) -> None:
    late = path.with_name("late.txt")
    service.start(
        f'bans.path = "{path.with_name("bans.db")}"\n{a_list(path)}{a_list(late, "late")}'
        f'failed = "{failed}"\n'
    ).ready()
    assert [service.score(address) for address in ("8.8.8.8", "9.9.9.9")] == [0, score]
    _, report = service.ask("sources")["sources"]
    assert (report["state"], "No such file" in report["error"]) == ("failed", True)
    # Bans are kept and made although the source is not there.
    assert service.ask("ban", address="1.1.1.1", seconds=60.0, score=7)["score"] == 7
    assert service.score("1.1.1.1") == 7
    put(late, "9.9.9.8\n")
    wait_until(
        lambda: [service.score(address) for address in ("9.9.9.8", "9.9.9.9")] == [0, 100],
        "the list that came late",
    )
    assert service.stop() == 0


def test_a_keeper_that_is_killed_has_a_successor(service: Service, path: Path) -> None:
    service.start(a_list(path)).ready()
    first = service.updater()
    assert first in service.workers()
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: service.updater() not in (0, first), "another updater")
    put(path, "9.9.9.9\n")
    wait_until(lambda: service.score("9.9.9.9") == 0, "the new list")
    wait_until(lambda: len(service.workers()) == 2, "the successor")
    assert service.stop() == 0
    assert service.folders == []


def test_what_is_killed_leaves_no_process_and_its_folder_is_the_next_starts(
    service: Service, path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as hanging:
        url = f"http://127.0.0.1:{hanging.getsockname()[1]}/"
        config = f'cache = "cache"\n{a_list(path)}[[source]]\nname = "f"\ntype = "list"\n'
        service.start(f'{config}url = "{url}"\ntimeout = 3000\n', workers=2)
        connection, _ = hanging.accept()  # so there is a job
        workers = service.workers()
        jobs = children_of(service.updater())
        assert jobs
        service.signal(signal.SIGKILL)
        assert service.process is not None
        service.process.wait()
        wait_until(lambda: not any(map(is_running, (*workers, *jobs))))
        connection.close()
    assert service.folders == []
    log = len(service.log)
    service.start(f'cache = "cache"\n{a_list(path)}').ready()
    assert "another service uses it" not in service.log[log:]
    assert service.folders == []
    assert service.stop() == 0


def test_it_ends_at_once_while_it_waits_for_a_feed(service: Service, path: Path) -> None:
    with web_server() as page:
        page.pause = 5
        service.start(
            f'cache = "cache"\n{a_list(path)}[[source]]\nname = "f"\ntype = "list"\n'
            f'url = "{page.url}"\n'
        )
        wait_until(lambda: page.asked, "the question")
        jobs = children_of(service.updater())
        assert service.stop() == 0
        assert not any(map(is_running, jobs))
    assert service.folders == []


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ('bans.path = "none/bans"\n', "bans: "),
        ('control.mode = "660"\nbans.path = "."\n', "bans: "),
    ],
)
def test_what_cannot_be_had_is_an_error_at_the_start(
    service: Service, config: str, reason: str
) -> None:
    service.start(config)
    assert service.process is not None
    assert service.process.wait(TIMEOUT) == 1
    assert reason in service.log
    assert service.folders == []


def test_a_control_socket_that_is_in_use_is_an_error_at_the_start(
    service: Service, path: Path, tmp_path: Path
) -> None:
    service.start(a_list(path)).ready()
    (tmp_path / "second").mkdir()
    second = Service(tmp_path / "second")
    second.control = service.control
    try:
        second.start(a_list(path))
        assert second.process is not None
        assert second.process.wait(TIMEOUT) == 1
        assert "control socket" in second.log
    finally:
        second.kill()
    assert service.score("8.8.8.8") == 0
    assert service.stop() == 0


def test_without_its_control_socket_a_later_keeper_keeps_the_sources(
    service: Service, path: Path
) -> None:
    sockets = path.with_name("sockets")
    sockets.mkdir()
    service.control = str(sockets / "control")
    service.start(a_list(path)).ready()
    first = service.updater()
    (sockets / "control").unlink()
    (sockets / "control").mkdir()
    os.kill(first, signal.SIGKILL)
    service.wait_for("the sources are kept, but nobody can ask for them")
    tables = service.log.count(": table ")
    put(path, "9.9.9.9\n")
    service.wait_for(": table ", tables + 1)
    assert service.log.count("nobody can ask for them") == 1
    (sockets / "control").rmdir()
    assert service.stop() == 0


# --- the cache ---------------------------------------------------------------------------

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
    source = replace(source, feed=FeedSettings(timeout=5, headers=(("Auth-Key", "hush"),)))
    settings = replace(
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
    with snapshots_folder(replace(kept.settings, **change)) as folder:
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


# --- the folder --------------------------------------------------------------------------


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def test_a_folder_in_use_stays_and_an_abandoned_one_goes(temporary: Path) -> None:
    abandoned = temporary / "spoa-iprep-abandoned"
    abandoned.mkdir()
    (abandoned / "table-1").write_bytes(b"left")
    other = temporary / "other"
    other.mkdir()
    with snapshots_folder(ReputationSettings()) as first:
        assert not abandoned.exists()
        assert first.stat().st_mode & 0o777 == 0o700
        (first / "table-1").write_bytes(b"used")
        with snapshots_folder(ReputationSettings()) as second:
            assert (first / "table-1").exists()
            assert first != second
        assert not second.exists()
        assert (first / "table-1").exists()
    assert list(temporary.iterdir()) == [other]


def test_no_trap_in_a_folder_of_all_users_is_fallen_into(temporary: Path, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_text("precious")
    (temporary / "spoa-iprep-link").symlink_to(precious)
    trap = temporary / "spoa-iprep-trap"
    trap.mkdir()
    (trap / "service.lock").symlink_to(precious / "file")
    (trap / "updater.lock").symlink_to(precious / "file")
    (trap / "folder").symlink_to(precious)
    (temporary / "spoa-iprep-file").write_text("no folder")
    with snapshots_folder(ReputationSettings()):
        pass
    assert (precious / "file").read_text() == "precious"
    assert (temporary / "spoa-iprep-file").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_folder_of_somebody_else_stays(temporary: Path) -> None:
    theirs = temporary / "spoa-iprep-theirs"
    theirs.mkdir()
    os.chown(theirs, 65534, 65534)
    with snapshots_folder(ReputationSettings()):
        assert theirs.exists()


def test_many_that_start_at_the_same_time_get_along(temporary: Path) -> None:
    program = (
        "from spoakit.apps.iprep.config.settings import ReputationSettings\n"
        "from spoakit.apps.iprep.service import snapshots_folder\n"
        "import sys\n"
        "for _ in range(100):\n"
        "    with snapshots_folder(ReputationSettings()) as folder:\n"
        "        (folder / 'file').write_text('x')\n"
        "        assert (folder / 'file').read_text() == 'x'\n"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program], env={**os.environ, "TMPDIR": str(temporary)}
        )
        for _ in range(3)
    ]
    assert [process.wait(TIMEOUT) for process in processes] == [0, 0, 0]
    with snapshots_folder(ReputationSettings()):
        pass
    assert list(temporary.iterdir()) == []


# --- settings ----------------------------------------------------------------------------


def test_what_a_reload_cannot_change_stays(caplog: pytest.LogCaptureFixture) -> None:
    bl = SourceSettings("bl", "dnsbl", dnsbl=DnsblSettings("bl.example"))
    current = ReputationSettings()
    live = reloadable_settings(lambda: current)
    current = ReputationSettings(
        policy=PolicySettings(unknown=50), answers=AnswerSettings(("ip_list",))
    )
    live.reload()
    assert live.current == ReputationSettings(policy=PolicySettings(unknown=50))
    assert "another answers takes a restart" in caplog.text
    current = ReputationSettings((bl,))
    with pytest.raises(ConfigurationError, match="the first one of the type 'dnsbl'"):
        live.reload()
    assert live.current.policy.unknown == 50


def test_where_there_was_a_dnsbl_others_may_come_and_go() -> None:
    sources = [
        SourceSettings(name, "dnsbl", dnsbl=DnsblSettings(f"{name}.example")) for name in "ab"
    ]
    current = ReputationSettings((sources[0],))
    live = reloadable_settings(lambda: current)
    for chosen in ((), (sources[1],), tuple(sources)):
        current = ReputationSettings(chosen)
        live.reload()
        assert live.current.sources == chosen


def test_how_long_haproxy_must_wait_is_said_at_the_start_and_when_it_changes(
    service: Service, path: Path
) -> None:
    def a_dnsbl(name: str, deadline: str) -> str:
        return (
            f'[[source]]\nname = "{name}"\ntype = "dnsbl"\nzone = "{name}.example"\ntest = false\n'
            f'deadline = "{deadline}"\n'
        )

    text = r"'timeout processing' must be longer than %s ms, the longest deadline"
    service.start(a_list(path) + a_dnsbl("a", "20ms") + a_dnsbl("b", "70ms"), workers=2).ready()
    service.wait_for(text % 70)
    service.configure(a_list(path) + a_dnsbl("a", "20ms") + a_dnsbl("b", "120ms"))
    service.signal(signal.SIGHUP)
    service.wait_for(text % 120)
    assert service.stop() == 0
    assert service.log.count("'timeout processing'") == 2


def test_where_the_folder_is_gone_the_reason_is_logged_and_it_is_tried_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        live = reloadable_settings(ReputationSettings)
        async with asyncio.timeout(0.5):
            async with open_reputation(live, tmp_path / "none", SharedMetrics(1).worker(0)):
                pytest.fail("there cannot be a snapshot")

    with pytest.raises(TimeoutError):
        asyncio.run(scenario())
    assert "the updater of the sources failed; it is tried again" in caplog.text


def test_bans_that_cannot_be_kept_are_an_error(tmp_path: Path) -> None:
    async def scenario() -> None:
        live = reloadable_settings(lambda: ReputationSettings(bans=BanSettings(str(tmp_path))))
        async with open_reputation(live, tmp_path, SharedMetrics(1).worker(0)):
            pytest.fail("there is a folder in the place of the bans")

    with pytest.raises(StartupError, match="bans"):
        asyncio.run(scenario())
