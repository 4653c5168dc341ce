"""Toolkit for HAProxy's Stream Processing Offload Agents.

This package has all names for writing an agent. ``spoakit.exceptions`` has the exceptions,
``spoakit.testing`` the test kit, ``spoakit.server`` the server settings.
"""

import typing as _typing

from spoakit.agent.agent import Agent
from spoakit.agent.context import Context, MaxFrameSize, PerFrame
from spoakit.agent.handlers import Actions, Event, Middleware
from spoakit.agent.headers import Headers
from spoakit.agent.parameters import Fetch, IPAddress
from spoakit.agent.variables import Variable
from spoakit.spop._encode_cy import Action
from spoakit.spop.constants import DataType
from spoakit.spop.messages import Argument, Message

if _typing.TYPE_CHECKING:
    from spoakit.service import run, serve

__version__ = "0.1.0"

__all__ = [
    "Action",
    "Actions",
    "Agent",
    "Argument",
    "Context",
    "DataType",
    "Event",
    "Fetch",
    "Headers",
    "IPAddress",
    "MaxFrameSize",
    "Message",
    "Middleware",
    "PerFrame",
    "Variable",
    "__version__",
    "run",
    "serve",
]

# Imported on first use, so that declaring or testing an agent does not import the server.
_LATE = frozenset({"run", "serve"})


def __getattr__(name: str) -> _typing.Any:
    if name in _LATE:
        from spoakit import service

        return getattr(service, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
