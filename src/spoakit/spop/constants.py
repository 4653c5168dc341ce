"""Numbers of SPOP 2.0, with the sections of HAProxy's SPOE.txt that define them."""

from enum import IntEnum, IntFlag

VERSION = "2.0"

MIN_FRAME_SIZE = 256
"""Lowest max-frame-size, in bytes; a lower one is refused (SPOE.txt 3.2.4, 3.2.5)."""

# Limit on the messages of a NOTIFY; HAProxy sends a few.
DEFAULT_MAX_MESSAGES = 1000

# Longest text of a DISCONNECT that HAProxy does not cut (spoe.c: 256 bytes with the final NUL).
MAX_DISCONNECT_MESSAGE = 255

# Longest name of a variable, with scope and prefix; HAProxy ignores longer ones (vars.c).
MAX_VARIABLE_NAME = 63


class FrameType(IntEnum):
    """Types of frames (3.2.2)."""

    UNSET = 0
    HAPROXY_HELLO = 1
    HAPROXY_DISCONNECT = 2
    NOTIFY = 3
    AGENT_HELLO = 101
    AGENT_DISCONNECT = 102
    ACK = 103


class FrameFlag(IntFlag):
    """Flags of a frame (3.2)."""

    FIN = 0x00000001
    ABORT = 0x00000002


class DataType(IntEnum):
    """Types of a typed value (3.1), the low four bits of its first byte."""

    NULL = 0
    BOOL = 1
    INT32 = 2
    UINT32 = 3
    INT64 = 4
    UINT64 = 5
    IPV4 = 6
    IPV6 = 7
    STRING = 8
    BINARY = 9


class ActionType(IntEnum):
    """Types of an ACK's actions (3.4)."""

    SET_VAR = 1
    UNSET_VAR = 2


class Scope(IntEnum):
    """Scope of a variable (3.4)."""

    PROC = 0
    SESS = 1
    TXN = 2
    REQ = 3
    RES = 4
