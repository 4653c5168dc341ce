import os
from pathlib import Path

import pytest

from spoakit.apps.checks import check_writable
from spoakit.exceptions import ConfigurationError


def test_a_file_that_can_be_written_is_left_as_it_is(tmp_path: Path) -> None:
    check_writable("--logfile", str(tmp_path / "new.log"))
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "old.log").write_text("old")
    check_writable("--logfile", str(tmp_path / "old.log"))
    assert (tmp_path / "old.log").read_text() == "old"
    check_writable("--logfile", "/dev/null")


def test_a_file_that_cannot_be_written_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def error_of(path: str) -> str:
        with pytest.raises(ConfigurationError) as caught:
            check_writable("log.path", path)
        return str(caught.value)

    missing = str(tmp_path / "none" / "a.log")
    assert error_of(missing) == (
        f"log.path: {missing!r} cannot be written: there is no folder {str(tmp_path / 'none')!r}"
    )
    assert error_of(str(tmp_path)).endswith("cannot be written: it is a folder")
    # The tests may run as root, who may do anything.
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert error_of(str(tmp_path / "a.log")).endswith(f"no permission in {str(tmp_path)!r}")
    (tmp_path / "a.log").touch()
    assert error_of(str(tmp_path / "a.log")).endswith("cannot be written: no permission")
