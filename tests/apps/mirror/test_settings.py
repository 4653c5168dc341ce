import pytest

from spoakit.apps.mirror.settings import MirrorSettings, TargetSettings
from spoakit.apps.mirror.url import TargetURL
from spoakit.exceptions import ConfigurationError

URL = TargetURL.parse("http://h")


def test_the_defaults_bound_everything() -> None:
    settings = TargetSettings(URL)
    assert settings.queue_length == 65_536
    assert settings.queue_bytes == 32 * 1024 * 1024
    assert (settings.connect_timeout, settings.answer_timeout) == (5, 10)


@pytest.mark.parametrize("name", ["connections", "queue_length", "queue_bytes"])
def test_a_limit_of_nothing_is_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match=name.replace("_", " ") + ": 0 is not above 0"):
        TargetSettings(URL, **{name: 0})


def test_a_time_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="answer timeout: nan is not above 0"):
        TargetSettings(URL, answer_timeout=float("nan"))
    with pytest.raises(ConfigurationError, match="drain: -1 is less than 0"):
        MirrorSettings((), drain=-1)
