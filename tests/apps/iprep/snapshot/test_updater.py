import asyncio
import logging
import os
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from spoakit.apps.iprep.config.schema import PolicySettings, ReputationSettings
from spoakit.apps.iprep.config.sources import SourceSettings
from spoakit.apps.iprep.metrics import DOWNLOADS, ENTRIES, FAILED, STALE, TABLES
from spoakit.apps.iprep.snapshot import downloader, due, jobs, scan, updater
from spoakit.apps.iprep.snapshot.jobs import JobError
from spoakit.apps.iprep.snapshot.manifest import Snapshot, manifest_of
from spoakit.apps.iprep.snapshot.updater import UpdateError, Updater, updater_lock
from spoakit.apps.iprep.sources.files import feed_of
from spoakit.metrics.families import Counter, Gauge
from spoakit.metrics.memory import SharedMetrics
from spoakit.metrics.snapshot import Snapshot as MetricsSnapshot
from spoakit.server.watch import identity_of
from tests.support.iprep_sources import dnsbl, feed, mine, put
from tests.support.waiting import TIMEOUT, until
from tests.support.web_server import Page, web_server

pytestmark = pytest.mark.slow


class Kept:
    """An updater that runs."""

    def __init__(self, updater: Updater, counters: SharedMetrics) -> None:
        self.updater = updater
        self._metrics = counters

    def get(self, family: Counter | Gauge, result: str = "") -> float:
        """Return what was counted by a family, of a result or all."""
        series = MetricsSnapshot.take(self._metrics).values[family]
        return sum(value for labels, value in series.items() if result in ("", labels[-1]))

    @property
    def snapshot(self) -> Snapshot:
        assert self.updater.snapshot is not None
        return self.updater.snapshot

    @property
    def entries(self) -> list[int]:
        """How many entries each source has in the last snapshot."""
        return [] if self.updater.snapshot is None else [each.entries for each in self._reports()]

    @property
    def errors(self) -> list[str]:
        return [] if self.updater.snapshot is None else [each.error for each in self._reports()]

    def _reports(self) -> tuple[Any, ...]:
        return self.snapshot.reports


class Site:
    """Where an updater works."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folder = root / "snapshots"
        self.folder.mkdir()
        self.list = root / "list.txt"
        self.list.write_text("8.8.8.8\n")

    def settings(self, *sources: SourceSettings, **more: Any) -> ReputationSettings:
        return ReputationSettings(sources, cache=str(self.root / "cache"), **more)

    @asynccontextmanager
    async def kept(self, *sources: SourceSettings, **more: Any) -> AsyncIterator[Kept]:
        counters = SharedMetrics(1)
        kept = Kept(
            Updater(self.folder, self.settings(*sources), counters.worker(0), **more), counters
        )
        running = asyncio.create_task(kept.updater.run())
        try:
            yield kept
        finally:
            assert not running.done()
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


async def _build(job: jobs.Build) -> Snapshot:
    try:
        return await asyncio.to_thread(jobs._build, job)
    except OSError as error:
        raise JobError(str(error)) from None


async def _fetch(job: jobs.Fetch) -> jobs.Fetched:
    return await asyncio.to_thread(jobs._fetch, job)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    """Have jobs done in threads, which is sooner; test_jobs.py has the processes."""
    monkeypatch.setattr(updater, "_LOOK_INTERVAL", 0.02)
    monkeypatch.setattr(jobs, "build", _build)
    monkeypatch.setattr(jobs, "fetch", _fetch)
    return Site(tmp_path)


@pytest.fixture
def site_with_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    monkeypatch.setattr(updater, "_LOOK_INTERVAL", 0.02)
    return Site(tmp_path)


@pytest.fixture
def page() -> Iterator[Page]:
    with web_server() as page:
        yield page


@pytest.fixture
def hanging() -> Iterator[str]:
    """A server that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}/"


Scenario = Callable[[], Any]


def run(scenario: Scenario) -> None:
    asyncio.run(asyncio.wait_for(scenario(), TIMEOUT))


def test_each_change_of_a_file_makes_an_snapshot(site: Site) -> None:
    async def scenario() -> None:
        async with site.kept(mine(site.list)) as kept:
            await until(lambda: kept.entries == [1])
            await until(lambda: kept.get(ENTRIES) == 1)
            put(site.list, "8.8.8.8\n9.9.9.9\n")
            await until(lambda: kept.entries == [2])
            site.list.unlink()
            await until(lambda: "No such file" in kept.errors[0])
            assert kept.entries == [2]
            await until(lambda: kept.get(FAILED) == 1)
            put(site.list, "8.8.8.8\n9.9.9.9\n7.7.7.7\n")
            await until(lambda: kept.entries == [3])
            await until(lambda: kept.get(FAILED) == 0)
            assert kept.get(TABLES, "built") == kept.snapshot.generation
            made = kept.snapshot.generation
            await asyncio.sleep(0.2)  # nothing changes
            assert kept.snapshot.generation == made

    run(scenario)


def test_a_file_that_appears_later_is_read(site: Site) -> None:
    async def scenario() -> None:
        later = site.root / "later.txt"
        async with site.kept(mine(site.list), mine(later, "later")) as kept:
            await until(lambda: kept.entries == [1, 0])
            put(later, "9.9.9.9\n")
            await until(lambda: kept.entries == [1, 1])

    run(scenario)


def test_a_file_that_changes_all_the_time_is_read_after_a_while(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(due, "_MAX_UNREST", 0.5)
    real = identity_of

    def identity(path: str | os.PathLike[str]) -> tuple[int, ...] | None:
        """Be told another one each time, as if somebody wrote without end."""
        return (time.monotonic_ns(),) if Path(path) == site.list else real(path)

    async def scenario() -> None:
        async with site.kept(mine(site.list)) as kept:
            await until(lambda: kept.entries == [1])
            monkeypatch.setattr(scan, "identity_of", identity)
            await until(lambda: kept.snapshot.generation == 3)

    run(scenario)


def test_other_settings_make_an_snapshot(site: Site) -> None:
    async def scenario() -> None:
        async with site.kept(mine(site.list)) as kept:
            await until(lambda: kept.entries == [1])
            policy = PolicySettings(unknown=50)
            kept.updater.reconfigure(site.settings(mine(site.list), policy=policy))
            await until(lambda: kept.snapshot.settings.policy == policy)
            kept.updater.reconfigure(site.settings())
            await until(lambda: kept.entries == [])

    run(scenario)


def test_an_edition_with_other_settings_that_failed_is_tried_again(
    site: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(due, "RETRY_INTERVAL", 0.1)

    async def scenario() -> None:
        async with site.kept(mine(site.list)) as kept:
            await until(lambda: kept.entries == [1])
            in_the_way = site.folder / "build.lock"
            in_the_way.unlink()
            in_the_way.mkdir()
            policy = PolicySettings(unknown=50)
            kept.updater.reconfigure(site.settings(mine(site.list), policy=policy))
            await until(lambda: kept.get(TABLES, "failed"))
            assert kept.snapshot.settings.policy != policy
            in_the_way.rmdir()
            await until(lambda: kept.snapshot.settings.policy == policy)

    run(scenario)
    assert "no new table, going on as before: [Errno 21] Is a directory" in caplog.text


@pytest.mark.parametrize("what", ["removed", "damaged", "table"])
def test_an_edition_that_somebody_damaged_is_made_anew(site: Site, what: str) -> None:
    async def scenario() -> None:
        async with site.kept(mine(site.list)) as kept:
            await until(lambda: kept.entries == [1])
            first = kept.snapshot.generation
            if what == "removed":
                manifest_of(site.folder).unlink()
            elif what == "damaged":
                manifest_of(site.folder).write_bytes(b"{")
            else:
                (site.folder / kept.snapshot.table).unlink()
            await until(lambda: kept.get(TABLES, "built") == first + 1)
            assert (site.folder / kept.snapshot.table).exists()
        if what == "damaged":  # the next updater gets along with it as well
            manifest_of(site.folder).write_bytes(b"{")
            async with site.kept(mine(site.list)) as kept:
                await until(lambda: kept.entries == [1])

    run(scenario)


def test_what_is_wrong_is_said_once(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    broken = site.root / "broken.txt"
    broken.write_text("8.8.8.8\nwrong\n")
    none = site.root / "none.txt"

    async def scenario() -> None:
        sources = mine(site.list), mine(broken, "broken"), mine(none, "none")
        async with site.kept(*sources) as kept:
            await until(lambda: kept.entries == [1, 1, 0])
            for count in range(2, 4):
                put(site.list, "8.8.8.8\n" * count)
                await until(partial(_has_first, kept, count))
            put(broken, "8.8.8.8\n")
            put(none, "8.8.8.8\n")
            await until(lambda: kept.entries == [3, 1, 1])

    caplog.set_level(logging.INFO)
    run(scenario)
    log = caplog.text
    assert log.count("source broken: 1 lines are refused: line 2: 'wrong' is not an address") == 1
    assert log.count(f"source none: {none}: it cannot be read: No such file") == 1
    for name in ("broken", "none"):
        assert log.count(f"source {name}: there is nothing wrong with it any more") == 1


def _has_first(kept: Kept, count: int) -> bool:
    return kept.entries[0] == count


def test_what_is_stale_is_said_once_and_counted(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    os.utime(site.list, (1, 1))

    async def scenario() -> None:
        async with site.kept(mine(site.list, max_age=60)) as kept:
            await until(lambda: kept.get(STALE))
            await asyncio.sleep(0.1)
            put(site.list, "8.8.8.8\n")
            await until(lambda: kept.entries and not kept.get(STALE))

    caplog.set_level(logging.INFO)
    run(scenario)
    assert caplog.text.count("it is stale, older than its max-age") == 1
    assert caplog.text.count("it is not stale any more") == 1


def test_only_one_is_elected(tmp_path: Path) -> None:
    with updater_lock(tmp_path) as first:
        assert first
        with updater_lock(tmp_path) as second:
            assert not second
    with updater_lock(tmp_path) as third:
        assert third


# --- feeds -------------------------------------------------------------------------------


def make_due(site: Site, source: SourceSettings) -> None:
    known = feed_of(source, str(site.root / "cache"))
    assert known is not None
    state = known.path.with_suffix(".json")
    state.write_bytes(state.read_bytes().replace(b'"due":', b'"due":0,"was":'))


def test_the_first_edition_has_what_was_downloaded(site: Site, page: Page) -> None:
    async def scenario() -> None:
        async with site.kept(mine(site.list), feed(page.url)) as kept:
            await until(lambda: kept.entries)
            assert kept.entries == [1, 100]
            assert kept.snapshot.generation == 1
            assert kept.get(DOWNLOADS, "new") == 1
            assert kept.updater.reporter.feeds["feed"].entries == 100

    run(scenario)


def test_the_first_edition_waits_for_one_attempt_only(
    site: Site, page: Page, caplog: pytest.LogCaptureFixture
) -> None:
    page.status = 503

    async def scenario() -> None:
        async with site.kept(mine(site.list), feed(page.url)) as kept:
            await until(lambda: kept.entries)
            assert kept.entries == [1, 0]
            assert kept.get(DOWNLOADS, "failed") == 1
        # It failed a moment ago, so that the next service does not even wait for an attempt.
        asked = len(page.asked)
        for file in site.folder.iterdir():
            file.unlink()
        async with site.kept(mine(site.list), feed(page.url)) as kept:
            await until(lambda: kept.entries)
            assert len(page.asked) == asked

    run(scenario)
    assert f"source feed: {page.url}: the server answered 503" in caplog.text


def test_a_feed_that_hangs_holds_up_the_first_edition_for_a_bounded_time(
    site_with_processes: Site, page: Page, hanging: str
) -> None:
    site = site_with_processes

    async def scenario() -> None:
        slow = feed(hanging, "slow", timeout=600)
        start = time.monotonic()
        async with site.kept(slow, feed(page.url), patience=2.0) as kept:
            await until(lambda: kept.entries)
            assert time.monotonic() - start >= 2
            # What came meanwhile is used, now or with the next snapshot.
            await until(lambda: kept.entries == [0, 100])
            put(site.list, "9.9.9.9\n")
            kept.updater.reconfigure(site.settings(slow, mine(site.list)))
            await until(lambda: kept.entries == [0, 1])

    run(scenario)


def test_the_last_good_copy_is_used_where_the_server_is_down(site: Site, page: Page) -> None:
    source = feed(page.url)

    async def scenario() -> None:
        async with site.kept(source) as kept:
            await until(lambda: kept.entries == [100])
        for file in site.folder.iterdir():
            file.unlink()
        make_due(site, source)
        page.status = 503
        async with site.kept(source, patience=1e6) as kept:
            await until(lambda: kept.entries == [100])
            await until(lambda: "503" in kept.updater.reporter.feeds["feed"].error)

    run(scenario)


@pytest.mark.parametrize("body", [b"<html>", b"8.8.8.8\n", b""])
def test_a_download_that_is_refused_leaves_what_there_was(
    site: Site, page: Page, body: bytes
) -> None:
    source = feed(page.url)

    async def scenario() -> None:
        async with site.kept(source) as kept:
            await until(lambda: kept.entries == [100])
            page.body = body
            make_due(site, source)
            await until(lambda: kept.get(DOWNLOADS, "failed"))
            assert kept.entries == [100]
            assert kept.errors == [""]
            page.body = b"9.9.9.9\n" * 70
        make_due(site, source)
        async with site.kept(source) as kept:
            await until(lambda: kept.entries == [70])

    run(scenario)


def test_two_keepers_download_once(site: Site, page: Page) -> None:
    page.pause = 0.3

    async def scenario() -> None:
        (site.root / "other").mkdir()
        settings = site.settings(feed(page.url))
        other = Updater(site.root / "other", settings, SharedMetrics(1).worker(0))
        running = asyncio.create_task(other.run())
        async with site.kept(feed(page.url)) as kept:
            await until(lambda: kept.entries == [100])
            await until(lambda: other.snapshot is not None and other.snapshot.entries == 100)
        assert len(page.asked) == 1
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    run(scenario)


def test_one_url_may_be_several_sources_and_is_downloaded_once(site: Site, page: Page) -> None:
    page.pause = 0.3

    async def scenario() -> None:
        async with site.kept(feed(page.url), feed(page.url, "again", score=50)) as kept:
            await until(lambda: kept.entries == [100, 100])
            assert len(page.asked) == 1

    run(scenario)


def test_a_reload_ends_the_download_of_what_is_no_source_any_more(
    site_with_processes: Site, page: Page, hanging: str
) -> None:
    site = site_with_processes

    async def scenario() -> None:
        async with site.kept(feed(hanging, timeout=600), patience=0.0) as kept:
            await until(lambda: kept.entries == [0])
            kept.updater.reconfigure(site.settings(feed(page.url)))  # of the same name
            await until(lambda: kept.entries == [100])

    run(scenario)


def test_a_failure_that_the_feed_cannot_note_is_not_repeated_at_once(
    site: Site, page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []

    async def fetch(job: jobs.Fetch) -> jobs.Fetched:
        tried.append(job)
        return jobs.Fetched(error="No space left on device")

    monkeypatch.setattr(jobs, "fetch", fetch)
    monkeypatch.setattr(downloader, "_RETRY_INTERVAL", 0.01)

    async def scenario() -> None:
        async with site.kept(feed(page.url)) as kept:
            await until(lambda: kept.entries == [0])
            await asyncio.sleep(0.3)
            assert len(tried) == 1

    run(scenario)


# --- on request --------------------------------------------------------------------------


def test_a_source_is_updated_on_request(site: Site, page: Page) -> None:
    async def scenario() -> None:
        async with site.kept(mine(site.list), feed(page.url)) as kept:
            await until(lambda: kept.entries == [1, 100])
            page.body = b"9.9.9.9\n" * 90
            assert await kept.updater.update("feed") == "new"
            assert kept.entries == [1, 90]
            assert await kept.updater.update("feed") in ("new", "unchanged")
            put(site.list, "8.8.8.8\n7.7.7.7\n")
            assert await kept.updater.update("mine") == ""
            assert kept.entries == [2, 90]

    run(scenario)


def test_a_list_that_shrank_is_taken_where_that_is_accepted(site: Site, page: Page) -> None:
    async def scenario() -> None:
        async with site.kept(feed(page.url)) as kept:
            await until(lambda: kept.entries == [100])
            page.body = b"9.9.9.9\n"
            with pytest.raises(UpdateError, match="source feed: it shrank from 100 entries to 1"):
                await kept.updater.update("feed")
            assert kept.entries == [100]
            assert await kept.updater.update("feed", accepts_shrink=True) == "new"
            assert kept.entries == [1]

    run(scenario)


@pytest.mark.parametrize(("left", "content"), [(1, "8.8.8.8\n"), (0, "# none\n")])
def test_a_file_that_shrank_is_taken_where_that_is_accepted(
    site: Site, left: int, content: str
) -> None:
    many = "".join(f"8.8.{number}.8\n" for number in range(100))

    async def scenario() -> None:
        other = site.root / "other.txt"
        put(site.list, many)
        put(other, many)
        sources = mine(site.list), mine(other, name="other")
        async with site.kept(*sources) as kept:
            await until(lambda: kept.entries == [100, 100])
            put(site.list, content)
            put(other, content)
            assert await kept.updater.update("mine") == ""
            assert kept.entries == [100, 100]
            assert "update takes it" in kept.errors[0] or "so does the command" in kept.errors[0]
            assert await kept.updater.update("mine", accepts_shrink=True) == ""
            assert kept.entries == [left, 100]
            assert kept.errors[0] == ""
            assert "it shrank from 100 entries" in kept.errors[1]
            # That was for once.
            put(site.list, many)
            await until(lambda: kept.entries == [100, 100])
            put(site.list, content)
            await until(lambda: "it shrank from 100 entries" in kept.errors[0])

    run(scenario)


def test_an_update_that_cannot_be_is_refused_with_the_reason(
    site: Site, page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        sources = mine(site.list), feed(page.url), dnsbl("127.0.0.1:9")
        async with site.kept(*sources) as kept:
            await until(lambda: kept.entries == [1, 100, 0])
            page.status = 503
            for name, reason in (
                ("none", "there is no source 'none'"),
                ("bl", "source bl: a DNSBL is asked, and has nothing to download"),
                ("feed", "source feed: the server answered 503"),
            ):
                with pytest.raises(UpdateError, match=reason):
                    await kept.updater.update(name)

            async def fail(job: jobs.Build) -> Snapshot:
                raise JobError("the disk is full")

            monkeypatch.setattr(jobs, "build", fail)
            with pytest.raises(UpdateError, match="source mine: no new table: the disk is full"):
                await kept.updater.update("mine")
            assert kept.updater.failure is not None
            assert kept.updater.failure.reason == "the disk is full"
            monkeypatch.setattr(jobs, "build", _build)
            await kept.updater.update("mine")
            assert kept.updater.failure is None

    run(scenario)


def test_an_update_that_waits_ends_with_the_updater(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = asyncio.Event()

    async def hang(job: jobs.Build) -> Snapshot:
        started.set()
        await asyncio.Event().wait()
        raise AssertionError

    async def scenario() -> None:
        async with site.kept(mine(site.list)) as kept:
            await until(lambda: kept.entries == [1])
            monkeypatch.setattr(jobs, "build", hang)
            updating = asyncio.create_task(kept.updater.update("mine"))
            await started.wait()
        with pytest.raises(UpdateError, match="the updater has ended"):
            await updating

    run(scenario)
