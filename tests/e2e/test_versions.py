"""The HAProxys that the end-to-end tests run with are the ones they ask for."""

from pathlib import Path

import pytest

from spoakit.testing.haproxy import haproxy_version


def test_the_program_has_the_version_asked_for(
    haproxy_binary: Path, request: pytest.FixtureRequest
) -> None:
    asked = request.node.callspec.params["haproxy_binary"]
    assert haproxy_version(haproxy_binary).startswith(f"{asked}.")
