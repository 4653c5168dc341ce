"""Marks and settings for tests of the supervisor."""

import sys

import pytest

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

HANG = {"worker_timeout": 1.0}
