from types import ModuleType

import pytest

from tests.support.forms import Form


@pytest.fixture(scope="session")
def decoding(form: Form) -> ModuleType:
    """`spoakit.spop._decode_cy`, in each form."""
    return form("spoakit.spop._decode_cy")


@pytest.fixture(scope="session")
def encoding(form: Form) -> ModuleType:
    """`spoakit.spop._encode_cy`, in each form."""
    return form("spoakit.spop._encode_cy")
