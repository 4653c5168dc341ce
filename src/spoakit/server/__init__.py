"""Serving of agents: sockets, workers, limits, signals; see `run` and `serve`."""

from spoakit.server.service import run, serve
from spoakit.server.settings import (
    Drain,
    Limits,
    Listen,
    ListenTls,
    Logfile,
    ServerSettings,
    TcpAddress,
    UnixAddress,
)
from spoakit.server.signals import Hooks

__all__ = [
    "Drain",
    "Hooks",
    "Limits",
    "Listen",
    "ListenTls",
    "Logfile",
    "ServerSettings",
    "TcpAddress",
    "UnixAddress",
    "run",
    "serve",
]
