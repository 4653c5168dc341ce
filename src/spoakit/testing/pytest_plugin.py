"""Pytest plugin: fixtures that serve agents, play HAProxy to them, and boot a real HAProxy.

pytest loads it wherever spoakit is installed. The fixture ``haproxy`` runs the program that
``haproxy_binary`` returns. Override that fixture, for instance with parameters, to test others.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

import pytest

from spoakit.agent import Agent
from spoakit.server.settings import ServerSettings
from spoakit.testing.agent_server import DEFAULT_SETTINGS, AgentServer
from spoakit.testing.engine_client import EngineClient
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


class ServeAgents(Protocol):
    """The type of the ``serve_agents`` fixture."""

    def __call__(self, *agents: Agent, settings: ServerSettings = DEFAULT_SETTINGS) -> AgentServer:
        """Return a started `AgentServer` made from these arguments; it ends after the test."""


class ConnectEngine(Protocol):
    """The type of the ``connect_engine`` fixture."""

    def __call__(
        self,
        address: str = "127.0.0.1",
        port: int = 12345,
        *,
        unix: str | None = None,
        timeout: float = 5.0,
    ) -> EngineClient:
        """Return an `EngineClient` made from these arguments; it is closed after the test."""


@pytest.fixture
def serve_agents() -> Iterator[ServeAgents]:
    """Serve any number of agents, until the test is over."""
    with ExitStack() as running:

        def serve(*agents: Agent, settings: ServerSettings = DEFAULT_SETTINGS) -> AgentServer:
            return running.enter_context(AgentServer(*agents, settings=settings))

        yield serve


@pytest.fixture
def connect_engine() -> Iterator[ConnectEngine]:
    """Make any number of connections to agents, which are closed after the test."""
    with ExitStack() as connected:

        def connect(
            address: str = "127.0.0.1",
            port: int = 12345,
            *,
            unix: str | None = None,
            timeout: float = 5.0,
        ) -> EngineClient:
            return connected.enter_context(EngineClient(address, port, unix=unix, timeout=timeout))

        yield connect


@pytest.fixture
def haproxy_binary() -> Path | None:
    """Return the haproxy program that tests use; None for the system's."""
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
