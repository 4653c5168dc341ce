"""Testing of agents, from a function call to a real HAProxy.

`Engine` calls handlers in memory, `EngineClient` plays HAProxy over a socket, `AgentServer`
serves an agent for it, `HAProxy` boots the real one. ``spoakit.testing.pytest_plugin`` has
fixtures for them.
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
