"""Events of a connection: the frames it has received, by their meaning."""

from dataclasses import dataclass
from typing import TypeAlias

from spoakit.exceptions import ProtocolError
from spoakit.spop._decode_cy import Notify
from spoakit.spop._encode_cy import Action
from spoakit.spop.handshake import AgentHello, EngineHello


@dataclass(frozen=True, slots=True)
class Opened:
    """The handshake is done."""

    engine: EngineHello
    agent: AgentHello


@dataclass(frozen=True, slots=True)
class HealthChecked:
    """Health check by HAProxy; the response is ready: send it and close."""

    refused: bool


@dataclass(frozen=True, slots=True)
class Aborted:
    """The engine gave up a NOTIFY of which it had sent fragments."""

    ids: bytes


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """The agent's answer to a NOTIFY."""

    stream_id: int
    frame_id: int
    actions: tuple[Action, ...]


@dataclass(frozen=True, slots=True)
class Disconnected:
    """The peer ends the connection, and says why."""

    status_code: int
    message: str


@dataclass(frozen=True, slots=True)
class Failed:
    """The peer broke the protocol."""

    error: ProtocolError


@dataclass(frozen=True, slots=True)
class Skipped:
    """A frame of a type that is not known came, and was passed over (3.2.2)."""

    type: int


Event: TypeAlias = (
    Opened | HealthChecked | Notify | Aborted | Acknowledged | Disconnected | Failed | Skipped
)
"""An event of either end of a connection."""
