"""Settings and fixtures of all tests: forms of the hot modules, hypothesis' profiles."""

import importlib
import os
import tempfile
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
from hypothesis import settings

from spoakit.agent.call_errors import CallErrors
from spoakit.logs import forget_throttled
from tests.support.forms import FORMS, LEG, SAME_IN_BOTH_FORMS, Form, pure

# In CI a failure must be the change's, so examples are the same each time.
settings.register_profile("local", deadline=None, max_examples=300)
settings.register_profile("ci", deadline=None, max_examples=300, derandomize=True, database=None)
# For `make check`: --hypothesis-profile=quick.
settings.register_profile("quick", deadline=None, max_examples=30)
settings.load_profile("ci" if os.environ.get("CI") else "local")

# All is on this machine, whatever proxies the environment names.
os.environ["no_proxy"] = os.environ["NO_PROXY"] = "*"

# A spoa-iprep without control.path does not listen where one of this machine does.
os.environ["SPOA_IPREP_CONTROL"] = f"{tempfile.gettempdir()}/tests-{os.getpid()}.sock"

if LEG == "pure":
    os.environ["SPOAKIT_EXT"] = "disable"  # so that no program warns of it


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Leave out of the uncompiled leg what has been tested in the compiled one."""
    if LEG != "pure" or not collection_path.is_relative_to(Path(__file__).parent):
        return None
    name = collection_path.relative_to(Path(__file__).parent).as_posix()
    return any(fnmatchcase(name, pattern) for pattern in SAME_IN_BOTH_FORMS) or None


@pytest.fixture(autouse=True)
def _slowness_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any handler is slow on a busy machine: no test shall find that among what it has logged.

    Tests of just that undo it.
    """
    monkeypatch.setattr(CallErrors, "record_slow", lambda errors, seconds, calls: None)


@pytest.fixture(autouse=True)
def _nothing_is_held_back() -> None:
    """Forget the log lines that earlier tests left in throttles: whatever ends flushes them."""
    forget_throttled()


@pytest.fixture(scope="session", params=FORMS)
def form(request: pytest.FixtureRequest) -> Form:
    """Run the test on each form that is tested."""
    return pure if request.param == "pure" else importlib.import_module
