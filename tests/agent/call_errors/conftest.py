from collections.abc import Iterator

import pytest

from spoakit.logs import forget_throttled


@pytest.fixture(autouse=True)
def _unthrottled() -> Iterator[None]:
    forget_throttled()
    yield
    forget_throttled()
