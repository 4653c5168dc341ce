"""Every test here that asks for HAProxy runs with each of the supported versions."""

import os
from pathlib import Path

import pytest

from spoakit.testing.haproxy import find_haproxy

CACHE = Path(os.environ.get("SPOAKIT_CACHE", Path(__file__).parents[2] / ".cache"))
REQUIRED = "2.6"
VERSIONS = (REQUIRED, "3.0", "3.2")


@pytest.fixture(scope="session", params=VERSIONS)
def haproxy_binary(request: pytest.FixtureRequest) -> Path:
    """The haproxy of one version; without it the test is skipped, for 2.6 it fails."""
    version: str = request.param
    if binary := find_haproxy(version, cache=CACHE):
        return binary
    missing = CACHE / "haproxy" / f"{version}.missing"
    reason = missing.read_text() if missing.exists() else "run scripts/fetch_haproxy.py"
    if version == REQUIRED:
        pytest.fail(f"HAProxy {version} is required: {reason}", pytrace=False)
    pytest.skip(f"HAProxy {version} is not available: {reason}")
