from pathlib import Path

import pytest

from spoakit.apps.iprep.config.schema import ControlSettings
from spoakit.apps.iprep.control.paths import CONTROL_VARIABLE, default_control, with_default


@pytest.mark.parametrize(
    ("environment", "user", "path"),
    [
        ({}, 0, "{run}/spoa-iprep/control.sock"),
        ({"XDG_RUNTIME_DIR": "/x"}, 0, "{run}/spoa-iprep/control.sock"),
        ({"RUNTIME_DIRECTORY": "/run/spoa-iprep"}, 61234, "/run/spoa-iprep/control.sock"),
        ({"RUNTIME_DIRECTORY": "/run/a:/run/b"}, 61234, "/run/a/control.sock"),
        ({"XDG_RUNTIME_DIR": "/x", "HOME": "/h"}, 1000, "/x/spoa-iprep/control.sock"),
        ({"HOME": "/h"}, 1000, "{run}/user/1000/spoa-iprep/control.sock"),
        ({"HOME": "/h"}, 1001, "/h/.local/state/spoa-iprep/control.sock"),
        ({CONTROL_VARIABLE: "/c", "RUNTIME_DIRECTORY": "/r"}, 0, "/c"),
        ({CONTROL_VARIABLE: "", "XDG_RUNTIME_DIR": ""}, 0, "{run}/spoa-iprep/control.sock"),
    ],
)
def test_each_user_has_a_default_path(
    tmp_path: Path, environment: dict[str, str], user: int, path: str
) -> None:
    (tmp_path / "user" / "1000").mkdir(parents=True)
    assert default_control(environment, user, tmp_path) == path.format(run=tmp_path)


def test_the_default_stands_in_where_no_path_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CONTROL_VARIABLE, "/c")
    unnamed = ControlSettings(is_default=True, mode=0o660)
    assert with_default(unnamed) == ControlSettings("/c", 0o660, is_default=True)
    assert with_default(unnamed, "/given") == ControlSettings("/given", 0o660)
    assert with_default(ControlSettings("/named")) == ControlSettings("/named")
    assert with_default(ControlSettings()) == ControlSettings()
