"""Every exception spoakit raises on purpose.

::

    SpoakitError
     +-- ConfigurationError            a wrong option, key or value
     +-- RegistrationError             a wrong handler, variable or resource (also a TypeError)
     +-- StartupError                  what must be up before serving did not come up
     +-- CallError                     a message was not handled as it was meant to be
     |    +-- MismatchError                its arguments are not what the handler takes
     |    +-- DeadlineError                the handler was late (also a TimeoutError)
     |    +-- RefusedError                 no thread was free for the handler
     +-- AgentDisconnected             the agent ended a connection; to who plays the engine
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

The status codes are those of SPOE.txt, section 3.5 ("Errors & timeouts"); the
connection that meets a ProtocolError sends its code and text in a DISCONNECT frame.
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
    """Why a connection is ended (3.5)."""

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
    """The base of all of spoakit's exceptions."""


class ConfigurationError(SpoakitError, ValueError):
    """An option or a key has a value that cannot be used; the text names both and the range."""


class RegistrationError(SpoakitError, TypeError):
    """A handler, variable or resource is declared in a way that cannot work."""


class StartupError(SpoakitError):
    """Something that must be up before the agent serves did not come up."""


class CallError(SpoakitError):
    """A message was not handled as it was meant to be; `spoakit.testing.Engine` raises it.

    A server does not: it counts and logs, and answers with the handler's fallback.
    """


class MismatchError(CallError):
    """The arguments of a message are not what its handler takes."""


class DeadlineError(CallError, TimeoutError):
    """A handler had not answered at its deadline."""


class RefusedError(CallError):
    """No thread was free for a threaded handler."""


class AgentDisconnected(SpoakitError):
    """The agent ended the connection; `spoakit.testing.EngineClient` raises it.

    Attributes:
        status_code: why, mostly a `StatusCode`.
        message: why, in the agent's words.
    """

    def __init__(self, status_code: int, message: str) -> None:
        super().__init__(f"the agent disconnected with status {status_code}: {message}")
        self.status_code = status_code
        self.message = message


class ProtocolError(SpoakitError):
    """The peer, or a caller playing it, broke SPOP.

    Attributes:
        status_code: what the DISCONNECT frame reports (SPOE.txt 3.5).
    """

    status_code: StatusCode = StatusCode.UNKNOWN


class InputOutputError(ProtocolError):
    """The connection failed or ended within a frame."""

    status_code = StatusCode.IO


class TimedOutError(ProtocolError):
    """The peer did not send what it had to in time."""

    status_code = StatusCode.TIMEOUT


class FrameTooBigError(ProtocolError):
    """A frame is longer than the agreed size, or a reassembled payload than its limit."""

    status_code = StatusCode.TOO_BIG


class InvalidFrameError(ProtocolError):
    """A frame cannot be decoded, or must not come at this point."""

    status_code = StatusCode.INVALID


class TooManyMessagesError(InvalidFrameError):
    """A NOTIFY has more messages than one may have."""


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
    """The max-frame-size of a HELLO is below 256 or above what was offered."""

    status_code = StatusCode.BAD_FRAME_SIZE


class FragmentationError(ProtocolError):
    """A payload came in fragments though that was not agreed."""

    status_code = StatusCode.NO_FRAGMENTATION


class InterlacedFramesError(ProtocolError):
    """Fragments of two payloads are mixed."""

    status_code = StatusCode.INTERLACED


class FrameIdNotFoundError(ProtocolError):
    """A fragment or an ACK belongs to no NOTIFY that is known."""

    status_code = StatusCode.NO_FRAME_ID


class ResourceError(ProtocolError):
    """The agent has not the means to go on."""

    status_code = StatusCode.RESOURCE
