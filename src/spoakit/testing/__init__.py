"""Test kit for agents, from a function call to a real HAProxy.

`Engine` calls handlers in memory. `EngineClient` plays HAProxy over a socket, and `AgentServer`
serves an agent for it. `HAProxy` boots a real HAProxy. ``spoakit.testing.pytest_plugin`` has
fixtures for all of them.
"""

from spoakit.testing.agent_server import AgentServer
from spoakit.testing.calls import Reply, Sendable
from spoakit.testing.engine import Engine
from spoakit.testing.engine_client import EngineClient
from spoakit.testing.haproxy import HAProxy, find_haproxy, haproxy_version

__all__ = [
    "AgentServer",
    "Engine",
    "EngineClient",
    "HAProxy",
    "Reply",
    "Sendable",
    "find_haproxy",
    "haproxy_version",
]
