"""Reasons not to copy a request to a target."""

from spoakit.exceptions import SpoakitError


class RefusedRequestError(SpoakitError):
    """Request that cannot be copied safely or faithfully; the text says why."""


class TruncatedBodyError(RefusedRequestError):
    """The body was cut: HAProxy's buffer did not hold all of it."""


class LoopedRequestError(RefusedRequestError):
    """The request has the target's marker, so it is a copy that came back."""


class SuspectBodyError(RefusedRequestError):
    """The body was probably cut.

    Args:
        reason: see `OutgoingRequest.suspect`.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class BodyTooLargeError(RefusedRequestError):
    """The body is larger than the target's max-body."""
