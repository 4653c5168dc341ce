"""Outcome of a copy, or of a connection, that did not go well."""

from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import Literal

FailureReason = Literal["timeout", "closed", "reset", "malformed", "grpc", "stopping"]
"""Reasons by which failed copies are counted, see `metrics.FAILURES`."""


class Retry(IntEnum):
    """Whether a request may be sent again: only one that the target has not acted on may."""

    NEVER = 0
    ONCE = 1
    ALWAYS = 2


class Trouble(StrEnum):
    """State of a target that gets no new connections for a while."""

    UNREACHABLE = "unreachable"
    """No connection can be opened: no address, no route, refused, TLS fails."""
    SILENT = "silent"
    """It accepts requests and sends no response in time."""
    REFUSING = "refusing"
    """It accepts connections and ends them without a response."""
    UNINTELLIGIBLE = "unintelligible"
    """What it sends is not HTTP."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a copy ended without a complete response, or a connection without an error of ours.

    Attributes:
        text: a sentence for the log.
        reason: as it is counted.
        trouble: what it says about the target, if nothing better is known of it since.
        retry: whether the request may be sent again.
        is_response: whether there is a complete response, which says that the request failed.
    """

    text: str
    reason: FailureReason
    trouble: Trouble | None = None
    retry: Retry = Retry.NEVER
    is_response: bool = False

    @property
    def log_text(self) -> bytes:
        """The text as the access log has it: one line, in Latin-1."""
        return " ".join(self.text.split()).encode("latin-1", "replace")


STOPPING = Outcome("the mirror is stopping", "stopping")
"""Outcome of what was in flight when the mirror stopped."""


def timed_out(text: str) -> Outcome:
    """Return the outcome of a request whose response did not come in time."""
    return Outcome(text, "timeout", Trouble.SILENT)
