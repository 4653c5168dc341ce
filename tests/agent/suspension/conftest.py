import threading
from collections.abc import Iterator

import pytest

from spoakit import Agent
from spoakit.logs import forget_throttled
from tests.support.suspending import pool
from tests.support.waiting import wait_until


@pytest.fixture(autouse=True)
def _nothing_left_of_other_tests() -> None:
    forget_throttled()
    wait_until(lambda: pool() == [])


@pytest.fixture
def agent() -> Agent:
    return Agent("agent")


@pytest.fixture
def blocked() -> Iterator[threading.Event]:
    """What threaded handlers wait for; released at the end at the latest."""
    event = threading.Event()
    yield event
    event.set()
