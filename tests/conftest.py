"""What tests of all rooms use: both forms of the hot modules, and hypothesis' profiles."""

import importlib
import os
import sys
from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import TypeAlias

import pytest
from hypothesis import settings

from spoakit.spop import COMPILED

# In CI a failure must be the change's, so examples are the same each time.
settings.register_profile("local", deadline=None, max_examples=300)
settings.register_profile("ci", deadline=None, max_examples=300, derandomize=True, database=None)
settings.load_profile("ci" if os.environ.get("CI") else "local")

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


@pytest.fixture(scope="session", params=["pure", "compiled"] if COMPILED else ["pure"])
def form(request: pytest.FixtureRequest) -> Form:
    """Run the test on each form there is; the suite's other runs have the other one alone."""
    return pure if request.param == "pure" else importlib.import_module
