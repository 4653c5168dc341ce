import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import uvloop

from spoakit.apps.iprep.config.schema import ReputationSettings
from spoakit.apps.iprep.snapshot import jobs
from spoakit.apps.iprep.snapshot.jobs import Build, Fetch, Fetched, JobError
from spoakit.apps.iprep.snapshot.manifest import encode, manifest_of, read_snapshot
from spoakit.apps.iprep.sources.feeds import Outcome
from spoakit.apps.iprep.sources.files import file_of
from tests.support.iprep_sources import feed, mine
from tests.support.processes import children_of
from tests.support.waiting import TIMEOUT, until
from tests.support.web_server import web_server

pytestmark = pytest.mark.slow

Run = Callable[[Coroutine[Any, Any, None]], None]


LOOPS = {"uvloop": uvloop.new_event_loop, "asyncio": asyncio.new_event_loop}
BOTH = pytest.mark.parametrize("run", LOOPS, indirect=True)


@pytest.fixture
def run(request: pytest.FixtureRequest) -> Run:
    """Run a coroutine in an event loop, of each kind for tests that say so."""
    factory = LOOPS[getattr(request, "param", "uvloop")]

    def run(coroutine: Coroutine[Any, Any, None]) -> None:
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(asyncio.wait_for(coroutine, TIMEOUT))

    return run


def children() -> set[int]:
    """Return the processes that this one has started and that are still there."""
    return set(children_of(os.getpid()))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "list.txt"
    path.write_text("8.8.8.8\n")
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "snapshots"
    folder.mkdir()
    return folder


@BOTH
def test_an_edition_is_made_in_a_process_of_its_own(run: Run, folder: Path, path: Path) -> None:
    async def scenario() -> None:
        settings = ReputationSettings((mine(path),))
        for generation in (1, 2):
            snapshot = await jobs.build(Build(str(folder), settings))
            assert snapshot == read_snapshot(folder)
            assert snapshot.generation == generation
            assert snapshot.settings == settings

    run(scenario())


def test_a_download_says_what_became_of_it(run: Run, tmp_path: Path) -> None:
    async def scenario() -> None:
        with web_server() as page:
            source = feed(page.url)
            cache = str(tmp_path / "cache")
            assert await jobs.fetch(Fetch(source, cache)) == Fetched(Outcome.NEW)
            copy = file_of(source, cache)
            assert copy is not None
            assert copy.read_bytes() == page.body
            assert await jobs.fetch(Fetch(source, cache)) == Fetched(Outcome.NOT_DUE)
            page.status = 503
            failed = await jobs.fetch(Fetch(feed(f"{page.url}2"), cache))
            assert failed == Fetched(error="the server answered 503 Service Unavailable")

    run(scenario())


def test_why_a_job_failed_is_its_error(run: Run, folder: Path, path: Path) -> None:
    async def scenario() -> None:
        with pytest.raises(JobError, match="No such file or directory"):
            await jobs.build(Build(str(folder / "none"), ReputationSettings((mine(path),))))

    run(scenario())


def test_a_description_that_is_damaged_is_replaced(run: Run, folder: Path, path: Path) -> None:
    async def scenario() -> None:
        manifest_of(folder).write_bytes(b"{")
        snapshot = await jobs.build(Build(str(folder), ReputationSettings((mine(path),))))
        assert snapshot == read_snapshot(folder)

    run(scenario())


def test_a_name_that_is_no_text_is_an_error_and_not_more(run: Run, folder: Path) -> None:
    async def scenario() -> None:
        source = mine(Path(os.fsdecode(b"/tmp/\xff")))
        with pytest.raises(JobError, match="its process failed"):
            await jobs.build(Build(str(folder), ReputationSettings((source,))))

    run(scenario())


@BOTH
def test_no_process_to_be_had_is_an_error(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        monkeypatch.setattr(sys, "executable", str(folder / "none"))
        with pytest.raises(JobError, match="No such file"):
            await jobs.build(Build(str(folder), ReputationSettings()))

    run(scenario())


def test_nothing_is_imported_from_the_working_directory(
    run: Run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        for name in ("msgspec", "hashlib", "spoakit"):
            (tmp_path / f"{name}.py").write_text(f"raise SystemExit('{name} of somebody else')")
        monkeypatch.chdir(tmp_path)
        await jobs.build(Build(str(folder), ReputationSettings()))

    run(scenario())


@BOTH
def test_a_job_that_is_given_up_leaves_no_process(run: Run, tmp_path: Path) -> None:
    async def scenario() -> None:
        before = children()
        with socket.create_server(("127.0.0.1", 0)) as hanging:
            url = f"http://127.0.0.1:{hanging.getsockname()[1]}/"
            task = asyncio.create_task(jobs.fetch(Fetch(feed(url, timeout=60), str(tmp_path))))
            hanging.setblocking(False)
            connection, _ = await asyncio.get_running_loop().sock_accept(hanging)
            assert children() - before
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            connection.close()
        await until(lambda: not children() - before)

    run(scenario())


@BOTH
def test_a_job_that_takes_too_long_is_ended(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        monkeypatch.setattr(jobs, "_PATIENCE", 0.3 - 60)  # beside the 60 s for the download
        before = children()
        with socket.create_server(("127.0.0.1", 0)) as hanging:
            url = f"http://127.0.0.1:{hanging.getsockname()[1]}/"
            with pytest.raises(JobError, match=r"took longer than 0\.3 s"):
                await jobs.fetch(Fetch(feed(url, timeout=60), str(tmp_path)))
        assert not children() - before

    run(scenario())


def begin(job: Fetch | Build) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-m", jobs.__name__], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None
    process.stdin.write(encode(job) + b"\n")
    process.stdin.flush()
    return process


def test_a_job_ends_with_whoever_wanted_it(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as hanging:
        hanging.settimeout(TIMEOUT)
        url = f"http://127.0.0.1:{hanging.getsockname()[1]}/"
        process = begin(Fetch(feed(url, timeout=600), str(tmp_path)))
        connection, _ = hanging.accept()
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(TIMEOUT) == 1
        connection.close()
    assert process.stdout is not None
    process.stdout.close()


def test_two_editions_are_not_made_at_the_same_time(folder: Path, path: Path) -> None:
    job = Build(str(folder), ReputationSettings((mine(path),)))
    processes = [begin(job) for _ in range(2)]
    for process in processes:
        assert process.stdout is not None
        process.stdout.read()
        process.stdout.close()
        assert process.wait(TIMEOUT) == 0
        assert process.stdin is not None
        process.stdin.close()
    snapshot = read_snapshot(folder)
    assert snapshot is not None
    assert snapshot.generation == 2
    assert (folder / snapshot.table).stat().st_size == snapshot.size


def test_a_job_that_is_killed_at_any_time_leaves_what_the_next_one_can_use(
    folder: Path, path: Path
) -> None:
    path.write_text("".join(f"8.{i >> 8 & 255}.{i & 255}.0/25\n" for i in range(20_000)))
    job = Build(str(folder), ReputationSettings((mine(path),)))
    start = time.monotonic()
    processes = [begin(job)]
    processes[0].wait(TIMEOUT)
    whole = time.monotonic() - start
    for part in range(1, 6):
        os.utime(path, (part, part))  # it is to be read anew
        process = begin(job)
        processes.append(process)
        # Anywhere: this is no wait for anything.
        time.sleep(whole * (0.3 + part / 8))
        process.send_signal(signal.SIGKILL)
        process.wait(TIMEOUT)
        snapshot = read_snapshot(folder)
        assert snapshot is not None
        assert (folder / snapshot.table).stat().st_size == snapshot.size
        assert snapshot.reports[0].entries == 20_000
    process = begin(job)
    processes.append(process)
    assert process.wait(TIMEOUT) == 0
    assert not [file for file in folder.iterdir() if file.suffix in (".new", ".part")]
    for process in processes:
        for stream in (process.stdin, process.stdout):
            assert stream is not None
            stream.close()
