"""Events of a connection, which stand for received frames."""

from dataclasses import dataclass
from typing import TypeAlias

from spoakit.exceptions import ProtocolError
from spoakit.spop._decode_cy import Notify
from spoakit.spop._encode_cy import Action
from spoakit.spop.handshake import AgentHello, EngineHello


@dataclass(frozen=True, slots=True)
class Opened:
    """Event: the handshake is done."""

    engine: EngineHello
    agent: AgentHello


@dataclass(frozen=True, slots=True)
class HealthChecked:
    """Event: HAProxy sent a health check. Write the response, which is ready, and close."""

    refused: bool


@dataclass(frozen=True, slots=True)
class Aborted:
    """Event: the engine aborted a NOTIFY after some of its fragments."""

    ids: bytes


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """Event: the agent acknowledged a NOTIFY."""

    stream_id: int
    frame_id: int
    actions: tuple[Action, ...]


@dataclass(frozen=True, slots=True)
class Disconnected:
    """Event: the peer sent a DISCONNECT, with its reason."""

    status_code: int
    message: str


@dataclass(frozen=True, slots=True)
class Failed:
    """Event: the peer violated the protocol. Send what is due, then a DISCONNECT, and close."""

    error: ProtocolError


@dataclass(frozen=True, slots=True)
class Skipped:
    """Event: a frame of an unknown type was skipped (3.2.2)."""

    type: int


Event: TypeAlias = (
    Opened | HealthChecked | Notify | Aborted | Acknowledged | Disconnected | Failed | Skipped
)
"""An event of either end of a connection."""
