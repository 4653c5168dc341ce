import gc
import logging
from collections.abc import Iterator

import pytest

from spoakit.logs import Throttle
from tests.support.logging_programs import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def throttle(clock: Clock, caplog: pytest.LogCaptureFixture) -> Iterator[Throttle]:
    caplog.set_level(logging.INFO, logger="spoakit.test")
    yield Throttle(logging.getLogger("spoakit.test"), max_kinds=3, clock=clock)
    gc.collect()
