"""Both forms of the hot modules: compiled, and as they stand in the source."""

import importlib
import os
import sys
from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import TypeAlias

import pytest

from spoakit.spop import COMPILED

# The Makefile's two legs say with it (compiled or pure) which form is theirs.
LEG = os.environ.get("SPOAKIT_EXPECT")

# Each leg tests its own form, and a run that is neither both, if both are there.
FORMS = [LEG] if LEG else ["pure", "compiled"] if COMPILED else ["pure"]

# What the uncompiled leg leaves out. The rule: a file is here if what it tests neither is a hot
# module nor uses one, so that it would only test the very same code a second time.
SAME_IN_BOTH_FORMS = (
    "agent/test_typing.py",  # and mypy is not in that leg's environment
    "apps/iprep/test_addresses.py",
    "apps/iprep/bans/test_*.py",
    "apps/iprep/config/test_loader.py",
    "apps/iprep/control/test_socket.py",
    "apps/iprep/sources/test_dnsbl.py",
    "apps/iprep/scoring/test_embedded.py",
    "apps/iprep/sources/test_chunks.py",
    "apps/iprep/sources/test_json_list.py",
    "apps/iprep/sources/test_limits.py",
    "apps/iprep/scoring/test_policy.py",
    "apps/iprep/config/test_sources.py",
    "apps/mirror/config/test_loader.py",
    "apps/mirror/http/test_http2_protocol.py",
    "apps/mirror/test_check.py",
    "apps/mirror/test_patterns.py",
    "apps/mirror/config/test_schema.py",
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
    "server/supervisor/test_*.py",
    "server/test_watch.py",
    "soak/test_*.py",  # of what wears agents out, and that it tells what goes wrong
    "logs/test_*.py",
    "testing/test_haproxy.py",
)

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
