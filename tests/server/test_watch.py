"""spoakit.server.watch: a file that is looked at from time to time."""

import os
from pathlib import Path

import pytest

from spoakit.server.watch import WatchedFile


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mirror.toml"
    path.write_text("old")
    return path


def test_a_file_that_stays_has_not_changed(file: Path) -> None:
    watched = WatchedFile(str(file))
    assert [watched.has_changed() for _ in range(20)] == [False] * 20


def test_a_change_is_noticed_when_two_looks_find_the_same(file: Path) -> None:
    watched = WatchedFile(str(file))
    file.write_text("half of")
    assert not watched.has_changed()
    file.write_text("half of the new text, and all of it")
    assert not watched.has_changed()
    assert watched.has_changed()


def test_a_change_is_noticed_again_until_the_file_is_loaded(file: Path) -> None:
    watched = WatchedFile(str(file))
    file.write_text("another")
    assert [watched.has_changed() for _ in range(3)] == [False, True, True]
    watched.mark_loaded()
    assert not watched.has_changed()


def test_a_file_that_never_rests_is_noticed_all_the_same(file: Path) -> None:
    watched = WatchedFile(str(file))
    changes = []
    for look in range(40):
        file.write_text("x" * look)
        changes.append(watched.has_changed())
        if changes[-1]:
            watched.mark_loaded()
    assert 3 <= sum(changes) <= 6


def test_a_file_that_is_replaced_or_comes_back_has_changed(file: Path) -> None:
    watched = WatchedFile(str(file))
    new = file.with_name("new")
    new.write_text("as an editor or a deployment does it")
    os.replace(new, file)
    assert [watched.has_changed() for _ in range(2)] == [False, True]
    watched.mark_loaded()
    file.unlink()
    assert [watched.has_changed() for _ in range(3)] == [False] * 3
    file.write_text("there again")
    assert [watched.has_changed() for _ in range(2)] == [False, True]


def test_a_folder_that_a_link_leads_to_may_be_exchanged(tmp_path: Path) -> None:
    """Kubernetes does so: ..data is a link to a folder, and the file a link through ..data."""
    for version in ("1", "2"):
        (tmp_path / version).mkdir()
        (tmp_path / version / "mirror.toml").write_text(f"version {version}")
    (tmp_path / "..data").symlink_to("1")
    (tmp_path / "mirror.toml").symlink_to("..data/mirror.toml")
    watched = WatchedFile(str(tmp_path / "mirror.toml"))
    (tmp_path / "..new").symlink_to("2")
    os.replace(tmp_path / "..new", tmp_path / "..data")
    assert [watched.has_changed() for _ in range(2)] == [False, True]
