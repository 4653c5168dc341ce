"""The service of spoa-iprep as processes: files, reloads, updaters and starts."""

import asyncio
import json
import os
import signal
import socket
import time
from pathlib import Path

import pytest

from spoakit.apps.iprep.config.schema import (
    AnswerSettings,
    BanSettings,
    PolicySettings,
    ReputationSettings,
)
from spoakit.apps.iprep.config.sources import DnsblSettings, SourceSettings
from spoakit.apps.iprep.service import open_reputation, reloadable_settings
from spoakit.exceptions import ConfigurationError, SpoakitError, StartupError
from spoakit.metrics.memory import SharedMetrics
from tests.support.iprep_service import Service
from tests.support.iprep_service_files import a_list
from tests.support.iprep_sources import put
from tests.support.processes import children_of, is_running
from tests.support.waiting import TIMEOUT, wait_until
from tests.support.web_server import web_server

pytestmark = pytest.mark.slow


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
    service.wait_for("source: the first one of the type 'dnsbl' needs a restart")
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


def test_what_a_reload_cannot_change_stays(caplog: pytest.LogCaptureFixture) -> None:
    bl = SourceSettings("bl", "dnsbl", dnsbl=DnsblSettings("bl.example"))
    current = ReputationSettings()
    live = reloadable_settings(lambda: current)
    current = ReputationSettings(
        policy=PolicySettings(unknown=50), answers=AnswerSettings(("ip_list",))
    )
    live.reload()
    assert live.current == ReputationSettings(policy=PolicySettings(unknown=50))
    assert "a changed answers needs a restart" in caplog.text
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
