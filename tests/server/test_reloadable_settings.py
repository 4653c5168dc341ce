import logging
from dataclasses import dataclass
from typing import NamedTuple

import pytest

from spoakit.exceptions import ConfigurationError
from spoakit.server.reloadable_settings import ReloadableSettings

logger = logging.getLogger("spoakit.tested")


@dataclass(frozen=True)
class Settings:
    level: int = 1
    log_file: str = "a"


class File:
    """What the settings are read from."""

    def __init__(self) -> None:
        self.settings = Settings()
        self.error: Exception | None = None

    def read(self) -> Settings:
        if self.error is not None:
            raise self.error
        return self.settings


@pytest.fixture
def file() -> File:
    return File()


@pytest.fixture
def live(file: File) -> ReloadableSettings[Settings]:
    return ReloadableSettings(file.read, ("log_file",), logger)


def test_a_reload_replaces_what_is_in_force(file: File, live: ReloadableSettings[Settings]) -> None:
    assert live.current == Settings()
    file.settings = Settings(level=2)
    assert live.current == Settings()
    live.reload()
    assert live.current == Settings(level=2)


def test_who_follows_gets_the_settings_of_each_reload(
    file: File, live: ReloadableSettings[Settings]
) -> None:
    applied: list[Settings] = []
    live.follow(applied.append)
    assert applied == []
    live.reload()  # nothing has changed, but files behind the settings may have
    file.settings = Settings(level=2)
    live.reload()
    assert applied == [Settings(), Settings(level=2)]


@pytest.mark.parametrize("error", [ConfigurationError("level: 9"), OSError("gone")])
def test_settings_that_are_refused_leave_those_in_force(
    file: File, live: ReloadableSettings[Settings], error: Exception
) -> None:
    applied: list[Settings] = []
    live.follow(applied.append)
    file.error = error
    with pytest.raises(type(error)):
        live.reload()
    assert live.current == Settings()
    assert applied == []


def test_what_needs_a_restart_stays_and_that_is_said(
    file: File, live: ReloadableSettings[Settings], caplog: pytest.LogCaptureFixture
) -> None:
    file.settings = Settings(level=2, log_file="b")
    live.reload()
    assert live.current == Settings(level=2, log_file="a")
    assert "reload: a changed log file needs a restart" in caplog.text


def test_what_the_supervisor_said_is_not_said_again_in_a_worker(
    file: File, live: ReloadableSettings[Settings], caplog: pytest.LogCaptureFixture
) -> None:
    applied: list[Settings] = []
    live.follow(applied.append)
    file.settings = Settings(level=2, log_file="b")
    live.reload_worker()
    assert live.current == Settings(level=2, log_file="a")
    assert applied == [live.current]
    assert caplog.text == ""


def test_there_is_no_start_without_settings(file: File) -> None:
    file.error = ConfigurationError("level: 9")
    with pytest.raises(ConfigurationError, match="level: 9"):
        ReloadableSettings(file.read, (), logger)


def test_logs_are_reopened_by_who_has_some(live: ReloadableSettings[Settings]) -> None:
    reopened: list[int] = []
    live.reopen_logs()  # in the supervisor there are none
    live.on_reopen(lambda: reopened.append(1))
    live.reopen_logs()
    assert reopened == [1]


def test_settings_need_not_be_a_dataclass() -> None:
    class Pair(NamedTuple):
        level: int
        log_file: str

    pairs = iter([Pair(1, "a"), Pair(2, "b")])
    settings = ReloadableSettings(
        lambda: next(pairs),
        ("log_file",),
        logger,
        replaced=lambda pair, **kept: pair._replace(**kept),
    )
    settings.reload()
    assert settings.current == Pair(2, "a")
