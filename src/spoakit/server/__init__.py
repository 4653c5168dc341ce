"""Server for agents: sockets, workers, limits, signals; see `run` and `serve`."""

from spoakit.server.event_loops import loop_factory
from spoakit.server.logfile import begin_logfile, end_logfile
from spoakit.server.reloadable_settings import ReloadableSettings
from spoakit.server.service import run, serve
from spoakit.server.settings import (
    CAPABILITIES,
    LOOPS,
    MAX_CONNECTION_AGE,
    MAX_CONNECTIONS,
    MAX_FRAME_SIZE_CAP,
    MAX_FRAMES,
    MAX_IN_FLIGHT,
    MAX_MESSAGES,
    MAX_REASSEMBLED_SIZE,
    Drain,
    Limits,
    Listen,
    ListenAddress,
    ListenTls,
    Logfile,
    ServerSettings,
    TcpAddress,
    UnixAddress,
    parse_address,
    parse_network,
)
from spoakit.server.signals import Hooks
from spoakit.server.sockets import change_owner, group_id, user_id
from spoakit.server.tls import server_context
from spoakit.server.watch import FileIdentity, WatchedFile, identity_of

__all__ = [
    "CAPABILITIES",
    "LOOPS",
    "MAX_CONNECTIONS",
    "MAX_CONNECTION_AGE",
    "MAX_FRAMES",
    "MAX_FRAME_SIZE_CAP",
    "MAX_IN_FLIGHT",
    "MAX_MESSAGES",
    "MAX_REASSEMBLED_SIZE",
    "Drain",
    "FileIdentity",
    "Hooks",
    "Limits",
    "Listen",
    "ListenAddress",
    "ListenTls",
    "Logfile",
    "ReloadableSettings",
    "ServerSettings",
    "TcpAddress",
    "UnixAddress",
    "WatchedFile",
    "begin_logfile",
    "change_owner",
    "end_logfile",
    "group_id",
    "identity_of",
    "loop_factory",
    "parse_address",
    "parse_network",
    "run",
    "serve",
    "server_context",
    "user_id",
]
