"""Outcome of a copy or a connection that failed."""

from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import Literal

FailureReason = Literal["timeout", "closed", "reset", "malformed", "grpc", "stopping"]
"""Reasons in the metric of failed copies, see `metrics.FAILURES`."""


class Retry(IntEnum):
    """Rule for a retry: a request may be sent again if the target has not acted on it."""

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
    """It sends bytes that are not HTTP."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """End of a copy without a complete response, or of a connection without our doing.

    Attributes:
        text: a sentence for the log.
        reason: the reason in the metric.
        trouble: the state of the target that it shows, unless a later response shows another one.
        retry: whether the request may be sent again.
        is_response: whether there is a complete response, which reports a failure.
    """

    text: str
    reason: FailureReason
    trouble: Trouble | None = None
    retry: Retry = Retry.NEVER
    is_response: bool = False

    @property
    def log_text(self) -> bytes:
        """The text for the access log: one line, in Latin-1."""
        return " ".join(self.text.split()).encode("latin-1", "replace")


STOPPING = Outcome("the mirror is stopping", "stopping")
"""Outcome of the requests in flight when the mirror stopped."""


def timed_out(text: str) -> Outcome:
    """Return the outcome of a request without a response in time."""
    return Outcome(text, "timeout", Trouble.SILENT)
