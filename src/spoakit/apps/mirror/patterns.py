"""Regular expressions that cannot hang.

Whoever sends a request chooses what is searched in, and an engine that backtracks, as Python's own
does, takes exponential time for the right text even with a harmless looking expression. So these
are RE2's (https://github.com/google/re2/wiki/Syntax): the time grows with the length of the text
and no faster. What such an engine cannot do, back references and look-around, is refused.
"""

import re
from typing import Final

import re2

from spoakit.exceptions import ConfigurationError

MAX_SUBJECT: Final = 8192
"""How many bytes are searched; what comes behind is as if it were not there."""

# For one expression's program and what RE2 keeps of its work.
_MAX_MEMORY: Final = 64 * 1024
# What a request's path can have, and groups: a backslash begins nothing else.
_REPLACEMENT: Final = re.compile(r"(?:[!-\[\]-~]|\\[1-9](?![0-9])|\\g<\w+>)*", re.ASCII)


class Pattern:
    r"""A regular expression in RE2's syntax, searched for in bytes.

    It works on bytes: "." is any of them but a line feed, and a character that is not ASCII stands
    for the bytes of its UTF-8. At most `MAX_SUBJECT` bytes are searched.

    Args:
        option: what to name in errors.
        expression: the expression.
        replacement: what to put in a match's place in `replaced`: printable ASCII without spaces,
            with groups as ``\1`` to ``\9`` or ``\g<name>``; one that took no part is empty.

    Raises:
        ConfigurationError: the expression or the replacement is wrong; the text says why.
    """

    def __init__(self, option: str, expression: str, replacement: str = "") -> None:
        options = re2.Options()
        options.encoding = re2.Options.Encoding.LATIN1
        options.log_errors = False
        options.max_mem = _MAX_MEMORY
        options.never_capture = not replacement
        try:
            self._regexp = re2.compile(expression.encode("utf-8"), options)
        except UnicodeEncodeError:
            raise ConfigurationError(f"{option}: {expression[:80]!r} is not UTF-8") from None
        except re2.error as error:
            raise ConfigurationError(
                f"{option}: {expression[:80]!r} is not a regular expression of RE2: {_text(error)}"
            ) from None
        self._replacement = replacement.encode()
        self._check_replacement(replacement)

    def is_in(self, subject: bytes) -> bool:
        """Return whether it is found anywhere in the subject."""
        return self._regexp.search(subject[:MAX_SUBJECT]) is not None

    def replaced(self, subject: bytes) -> bytes:
        """Return the subject with the replacement in the place of the first match, if any."""
        match = self._regexp.search(subject[:MAX_SUBJECT])
        if match is None:
            return subject
        new: bytes = match.expand(self._replacement)
        return subject[: match.start()] + new + subject[match.end() :]

    def _check_replacement(self, replacement: str) -> None:
        option = "path.replace"
        if _REPLACEMENT.fullmatch(replacement) is None:
            raise ConfigurationError(
                f"{option}: {replacement[:80]!r} is not printable ASCII without spaces, "
                r"with groups as \1 to \9 or \g<name>"
            )
        known = {str(number) for number in range(self._regexp.groups + 1)}
        known.update(name.decode() for name in self._regexp.groupindex)
        for group in re.findall(r"\\(?:g<(\w+)>|([1-9]))", replacement):
            if "".join(group) not in known:
                raise ConfigurationError(
                    f"{option}: {replacement[:80]!r} has a group that the pattern has not: "
                    f"{''.join(group)}"
                )


def _text(error: Exception) -> str:
    """Return what RE2 says, which comes as bytes."""
    reason = error.args[0] if error.args else ""
    return reason.decode("utf-8", "replace") if isinstance(reason, bytes) else str(reason)
