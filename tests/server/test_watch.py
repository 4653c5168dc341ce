import asyncio
import os
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import uvloop

from spoakit.server.watch import watch_file

Run = Callable[[Coroutine[Any, Any, None]], None]


@pytest.fixture(params=["uvloop", "asyncio"])
def run(request: pytest.FixtureRequest) -> Run:
    factory = uvloop.new_event_loop if request.param == "uvloop" else asyncio.new_event_loop

    def run(coroutine: Coroutine[Any, Any, None]) -> None:
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(asyncio.wait_for(coroutine, 30))

    return run


class Watched:
    """A file that is watched, and how often it was found changed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.changes = 0
        self._changed = asyncio.Event()
        self.task = asyncio.create_task(watch_file(str(path), self._on_change))

    def _on_change(self) -> None:
        self.changes += 1
        self._changed.set()

    async def touch_until_noticed(self) -> None:
        """Change the file until that is noticed: when the watch begins is not to be seen."""
        count = 0
        while not self._changed.is_set():
            count += 1
            self.path.write_text("x" * count)
            await asyncio.sleep(0.1)
        self._changed.clear()

    async def settled(self) -> int:
        """Wait until nothing more is noticed, and return how often it was found changed."""
        before = -1
        while self.changes != before:
            before = self.changes
            await asyncio.sleep(0.3)
        return before

    async def noticed(self, before: int) -> None:
        while self.changes == before:
            self._changed.clear()
            await self._changed.wait()


def test_a_file_is_watched_in_whatever_way_it_changes(run: Run, tmp_path: Path) -> None:
    async def scenario() -> None:
        file = tmp_path / "mirror.toml"
        file.write_text("old")
        watched = Watched(file)
        await watched.touch_until_noticed()
        before = await watched.settled()
        new = tmp_path / "new"
        new.write_text("as an editor or a deployment does it")
        os.replace(new, file)
        await watched.noticed(before)
        file.unlink()
        before = await watched.settled()
        file.write_text("again there")
        await watched.noticed(before)
        watched.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await watched.task

    run(scenario())


def test_a_link_is_followed(run: Run, tmp_path: Path) -> None:
    async def scenario() -> None:
        (tmp_path / "one").mkdir()
        (tmp_path / "one" / "mirror.toml").write_text("one")
        (tmp_path / "two").mkdir()
        (tmp_path / "two" / "mirror.toml").write_text("two")
        (tmp_path / "data").symlink_to("one")
        (tmp_path / "mirror.toml").symlink_to("data/mirror.toml")
        watched = Watched(tmp_path / "mirror.toml")
        turn = 0
        while not watched.changes:  # as Kubernetes changes its volumes
            turn += 1
            (tmp_path / "next").symlink_to(("one", "two")[turn % 2])
            os.replace(tmp_path / "next", tmp_path / "data")
            await asyncio.sleep(0.1)
        watched.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await watched.task

    run(scenario())


def test_other_files_of_the_folder_are_none_of_its_business(run: Run, tmp_path: Path) -> None:
    async def scenario() -> None:
        watched = Watched(tmp_path / "mirror.toml")
        await watched.touch_until_noticed()
        before = await watched.settled()
        (tmp_path / "other").write_text("x")
        await asyncio.sleep(0.3)
        assert watched.changes == before
        watched.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await watched.task

    run(scenario())


def test_a_folder_that_is_not_there_is_told_of(
    run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run(watch_file(str(tmp_path / "absent" / "mirror.toml"), lambda: None))
    assert "mirror.toml is not watched any more" in caplog.text
