"""Exceptions of spoakit.

::

    SpoakitError
     +-- ConfigurationError            a wrong option, key or value
     +-- RegistrationError             a wrong handler, variable or resource (also a TypeError)
     +-- StartupError                  a socket, file or resource failed before serving
     +-- CallError                     a message was not handled as intended
     |    +-- MismatchError                its arguments do not match the handler
     |    +-- DeadlineError                the handler was late (also a TimeoutError)
     |    +-- RefusedError                 no thread was free for the handler
     +-- AgentDisconnected             the agent ended a connection; for test clients
     +-- ProtocolError                 a violation of SPOP; carries its status code
          +-- InputOutputError             1
          +-- TimedOutError                2
          +-- FrameTooBigError             3
          +-- InvalidFrameError            4
          |    +-- TooManyMessagesError        4
          +-- VersionNotFoundError         5
          +-- MaxFrameSizeNotFoundError    6
          +-- CapabilitiesNotFoundError    7
          +-- UnsupportedVersionError      8
          +-- BadFrameSizeError            9
          +-- FragmentationError           10
          +-- InterlacedFramesError        11
          +-- FrameIdNotFoundError         12
          +-- ResourceError                13

The status codes are from SPOE.txt, section 3.5 ("Errors & timeouts"). A connection that ends with a
ProtocolError sends its code and text in a DISCONNECT frame.
"""

from enum import IntEnum

__all__ = [
    "AgentDisconnected",
    "BadFrameSizeError",
    "CallError",
    "CapabilitiesNotFoundError",
    "ConfigurationError",
    "DeadlineError",
    "FragmentationError",
    "FrameIdNotFoundError",
    "FrameTooBigError",
    "InputOutputError",
    "InterlacedFramesError",
    "InvalidFrameError",
    "MaxFrameSizeNotFoundError",
    "MismatchError",
    "ProtocolError",
    "RefusedError",
    "RegistrationError",
    "ResourceError",
    "SpoakitError",
    "StartupError",
    "StatusCode",
    "TimedOutError",
    "TooManyMessagesError",
    "UnsupportedVersionError",
    "VersionNotFoundError",
]


class StatusCode(IntEnum):
    """Reason why a connection is ended (3.5)."""

    NORMAL = 0
    IO = 1
    TIMEOUT = 2
    TOO_BIG = 3
    INVALID = 4
    NO_VERSION = 5
    NO_FRAME_SIZE = 6
    NO_CAPABILITIES = 7
    BAD_VERSION = 8
    BAD_FRAME_SIZE = 9
    NO_FRAGMENTATION = 10
    INTERLACED = 11
    NO_FRAME_ID = 12
    RESOURCE = 13
    UNKNOWN = 99


class SpoakitError(Exception):
    """Base of spoakit's exceptions."""


class ConfigurationError(SpoakitError, ValueError):
    """An option or key has an invalid value; the text names it, the value and the range."""


class RegistrationError(SpoakitError, TypeError):
    """A handler, variable or resource is declared in a way that cannot work."""


class StartupError(SpoakitError):
    """A socket, file or resource that is needed before the agent serves has failed."""


class CallError(SpoakitError):
    """A message was not handled as intended; `spoakit.testing.Engine` raises it.

    A server does not raise it: it counts and logs the error, and sends the handler's fallback.
    """


class MismatchError(CallError):
    """The arguments of a message do not match the parameters of its handler."""


class DeadlineError(CallError, TimeoutError):
    """A handler did not finish before its deadline."""


class RefusedError(CallError):
    """No thread was free for a threaded handler."""


class AgentDisconnected(SpoakitError):
    """The agent ended the connection; `spoakit.testing.EngineClient` raises it.

    Attributes:
        status_code: the status of its DISCONNECT, mostly a `StatusCode`.
        message: the text of its DISCONNECT.
    """

    def __init__(self, status_code: int, message: str) -> None:
        super().__init__(f"the agent disconnected with status {status_code}: {message}")
        self.status_code = status_code
        self.message = message


class ProtocolError(SpoakitError):
    """The peer violated SPOP.

    Attributes:
        status_code: the status code for the DISCONNECT frame (SPOE.txt 3.5).
    """

    status_code: StatusCode = StatusCode.UNKNOWN


class InputOutputError(ProtocolError):
    """The connection failed, or ended within a frame."""

    status_code = StatusCode.IO


class TimedOutError(ProtocolError):
    """The peer did not send a frame in time."""

    status_code = StatusCode.TIMEOUT


class FrameTooBigError(ProtocolError):
    """A frame is longer than the agreed size, or a reassembled payload than its limit."""

    status_code = StatusCode.TOO_BIG


class InvalidFrameError(ProtocolError):
    """A frame is malformed, or is not allowed in this state."""

    status_code = StatusCode.INVALID


class TooManyMessagesError(InvalidFrameError):
    """A NOTIFY exceeds the limit on messages."""


class VersionNotFoundError(ProtocolError):
    """A HELLO lacks its versions."""

    status_code = StatusCode.NO_VERSION


class MaxFrameSizeNotFoundError(ProtocolError):
    """A HELLO lacks its max-frame-size."""

    status_code = StatusCode.NO_FRAME_SIZE


class CapabilitiesNotFoundError(ProtocolError):
    """A HELLO lacks its capabilities."""

    status_code = StatusCode.NO_CAPABILITIES


class UnsupportedVersionError(ProtocolError):
    """The peers share no version of SPOP."""

    status_code = StatusCode.BAD_VERSION


class BadFrameSizeError(ProtocolError):
    """The max-frame-size of a HELLO is below 256, or above the offered size."""

    status_code = StatusCode.BAD_FRAME_SIZE


class FragmentationError(ProtocolError):
    """A payload was fragmented without agreement."""

    status_code = StatusCode.NO_FRAGMENTATION


class InterlacedFramesError(ProtocolError):
    """Fragments of two payloads are mixed."""

    status_code = StatusCode.INTERLACED


class FrameIdNotFoundError(ProtocolError):
    """A fragment or an ACK has the ids of an unknown NOTIFY."""

    status_code = StatusCode.NO_FRAME_ID


class ResourceError(ProtocolError):
    """The agent is out of resources."""

    status_code = StatusCode.RESOURCE
