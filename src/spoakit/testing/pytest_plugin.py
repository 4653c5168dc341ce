"""The pytest plugin: fixtures that boot HAProxy for agents under test.

Installed with spoakit, so nothing has to be imported. ``haproxy`` runs the program that
``haproxy_binary`` names; override that fixture, with parameters if you like, to test with others.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

import pytest

from spoakit.testing.haproxy import DEFAULT_LISTENERS, NOTHING, HAProxy


class StartHAProxy(Protocol):
    """The type of the ``haproxy`` fixture."""

    def __call__(
        self,
        config: str,
        *,
        files: Mapping[str, str] = NOTHING,
        variables: Mapping[str, str] = NOTHING,
        listeners: Mapping[str, str] = DEFAULT_LISTENERS,
    ) -> HAProxy:
        """Return a started `HAProxy` made from these arguments; it is stopped after the test."""


@pytest.fixture
def haproxy_binary() -> Path | None:
    """Name the haproxy program that tests use; None is the system's."""
    return None


@pytest.fixture
def haproxy(haproxy_binary: Path | None) -> Iterator[StartHAProxy]:
    """Start any number of HAProxys, which are stopped after the test."""
    with ExitStack() as running:

        def start(
            config: str,
            *,
            files: Mapping[str, str] = NOTHING,
            variables: Mapping[str, str] = NOTHING,
            listeners: Mapping[str, str] = DEFAULT_LISTENERS,
        ) -> HAProxy:
            return running.enter_context(
                HAProxy(
                    config,
                    files=files,
                    variables=variables,
                    listeners=listeners,
                    binary=haproxy_binary,
                )
            )

        yield start
