"""Commands called in this process must not leave it their logging."""

import logging
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def logging_stays_as_it_was() -> Iterator[None]:
    """Take away what `configure_logging` set: its stream is that of one test."""
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    yield
    root.handlers[:] = before
    root.setLevel(level)
