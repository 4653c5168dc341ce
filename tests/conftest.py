"""What tests of all rooms use: both forms of the hot modules, and hypothesis' profiles.

The Makefile's two legs say with SPOAKIT_EXPECT (compiled or pure) which form is theirs.
"""

import importlib
import os
import sys
import tempfile
from collections.abc import Callable
from fnmatch import fnmatchcase
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import TypeAlias

import pytest
from hypothesis import settings

from spoakit.agent.call_errors import CallErrors
from spoakit.logs import forget_throttled
from spoakit.spop import COMPILED

# In CI a failure must be the change's, so examples are the same each time.
settings.register_profile("local", deadline=None, max_examples=300)
settings.register_profile("ci", deadline=None, max_examples=300, derandomize=True, database=None)
settings.load_profile("ci" if os.environ.get("CI") else "local")

# All is on this machine, whatever proxies the environment names.
os.environ["no_proxy"] = os.environ["NO_PROXY"] = "*"

# A spoa-iprep without control.path does not listen where one of this machine does.
os.environ["SPOA_IPREP_CONTROL"] = f"{tempfile.gettempdir()}/tests-{os.getpid()}.sock"

LEG = os.environ.get("SPOAKIT_EXPECT")
if LEG == "pure":
    os.environ["SPOAKIT_EXT"] = "disable"  # so that no program warns of it

# What the uncompiled leg leaves out. The rule: a file is here if what it tests neither is a hot
# module nor uses one, so that it would only test the very same code a second time.
SAME_IN_BOTH_FORMS = (
    "agent/test_typing.py",  # and mypy is not in that leg's environment
    "apps/iprep/test_addresses.py",
    "apps/iprep/test_bans.py",
    "apps/iprep/config/test_loader.py",
    "apps/iprep/control/test_socket.py",
    "apps/iprep/sources/test_dnsbl.py",
    "apps/iprep/scoring/test_embedded.py",
    "apps/iprep/sources/test_chunks.py",
    "apps/iprep/sources/test_json_list.py",
    "apps/iprep/sources/test_limits.py",
    "apps/iprep/scoring/test_policy.py",
    "apps/iprep/config/test_settings.py",
    "apps/mirror/config/test_loader.py",
    "apps/mirror/http/test_http2_protocol.py",
    "apps/mirror/test_check.py",
    "apps/mirror/test_patterns.py",
    "apps/mirror/config/test_settings.py",
    "apps/mirror/config/test_units.py",
    "apps/test_*.py",
    "benchmarks/test_*.py",  # of what measures agents: C programs, and how results are shown
    "cli/test_iprep_commands.py",
    "cli/test_values.py",
    # What stands around a server, tested with one that speaks lines instead of SPOP.
    "server/test_aio_selector.py",
    "server/test_worker_process.py",
    "server/test_logfile.py",
    "server/test_event_loops.py",
    "server/test_pidfile.py",
    "server/test_stats_log.py",
    "server/test_service.py",
    "server/test_settings.py",
    "server/test_signals.py",
    "server/test_sockets.py",
    "server/test_supervisor.py",
    "server/test_watch.py",
    "soak/test_*.py",  # of what wears agents out, and that it tells what goes wrong
    "test_logs.py",
    "testing/test_haproxy.py",
)


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
    monkeypatch.setattr(CallErrors, "slow", lambda errors, seconds, calls: None)


@pytest.fixture(autouse=True)
def _nothing_is_held_back() -> None:
    """Forget the log lines that earlier tests left in throttles: whatever ends flushes them."""
    forget_throttled()


# Gives a hot module, by its full name, in one of its forms.
Form: TypeAlias = Callable[[str], ModuleType]


def pure(name: str) -> ModuleType:
    """Load a hot module from its source, as where neither it is compiled nor Cython installed.

    It stands beside the installed form, which everything else goes on to use.
    """
    installed = importlib.import_module(name)
    source = Path(str(installed.__file__)).with_name(name.rpartition(".")[2] + ".py")
    spec = spec_from_file_location(name, source)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "cython", None)
        spec.loader.exec_module(module)
    return module


# Each leg tests its own form, and a run that is neither both, if both are there.
FORMS = [LEG] if LEG else ["pure", "compiled"] if COMPILED else ["pure"]


@pytest.fixture(scope="session", params=FORMS)
def form(request: pytest.FixtureRequest) -> Form:
    """Run the test on each form that is tested."""
    return pure if request.param == "pure" else importlib.import_module
