"""What goes wrong with a source."""

from spoakit.exceptions import SpoakitError


class SourceError(SpoakitError):
    """A source cannot be used as it is now; the text says why, and leaves its name to the caller.

    What was had from it before stays in use.
    """
