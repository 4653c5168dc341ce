"""Stream Processing Offload Protocol of HAProxy, SPOP 2.0, without input and output."""

from spoakit.spop._decode_cy import (
    COMPILED,
    ArgumentReader,
    Cursor,
    Notify,
    Reading,
    Value,
    decode_value,
    decode_varint,
)
from spoakit.spop._encode_cy import (
    Action,
    VariableEncoder,
    append_ack,
    check_actions,
    encode_value,
    encode_varint,
    extend_actions,
)
from spoakit.spop.actions import decode_actions
from spoakit.spop.agent_connection import AgentConnection, AgentSettings
from spoakit.spop.connection import State
from spoakit.spop.constants import MIN_FRAME_SIZE, ActionType, DataType, FrameFlag, FrameType, Scope
from spoakit.spop.engine_connection import EngineConnection
from spoakit.spop.events import (
    Aborted,
    Acknowledged,
    Disconnected,
    Event,
    Failed,
    HealthChecked,
    Opened,
    Skipped,
)
from spoakit.spop.frames import Frame, decode_frame, encode_frame, encode_ids
from spoakit.spop.handshake import AgentHello, Disconnect, EngineHello
from spoakit.spop.messages import MAX_ARGUMENTS, Argument, Message, decode_messages, encode_messages

__all__ = [
    "COMPILED",
    "MAX_ARGUMENTS",
    "MIN_FRAME_SIZE",
    "Aborted",
    "Acknowledged",
    "Action",
    "ActionType",
    "AgentConnection",
    "AgentHello",
    "AgentSettings",
    "Argument",
    "ArgumentReader",
    "Cursor",
    "DataType",
    "Disconnect",
    "Disconnected",
    "EngineConnection",
    "EngineHello",
    "Event",
    "Failed",
    "Frame",
    "FrameFlag",
    "FrameType",
    "HealthChecked",
    "Message",
    "Notify",
    "Opened",
    "Reading",
    "Scope",
    "Skipped",
    "State",
    "Value",
    "VariableEncoder",
    "append_ack",
    "check_actions",
    "decode_actions",
    "decode_frame",
    "decode_messages",
    "decode_value",
    "decode_varint",
    "encode_frame",
    "encode_ids",
    "encode_messages",
    "encode_value",
    "encode_varint",
    "extend_actions",
]
