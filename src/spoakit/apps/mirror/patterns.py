"""Regular expressions whose running time is linear in the length of the text.

A client chooses the text that is searched, and a backtracking engine like Python's takes
exponential time for some texts even with a harmless-looking expression. So the engine is RE2
(https://github.com/google/re2/wiki/Syntax). RE2 has no back references and no look-around;
expressions that need them are refused.
"""

import re
from typing import Final

import re2

from spoakit.exceptions import ConfigurationError

MAX_SUBJECT: Final = 8192
"""The number of bytes that are searched; the rest of a text is ignored."""

# Memory for one expression's program and RE2's cache.
_MAX_MEMORY: Final = 64 * 1024
# Characters that a path may have, and references to groups.
_REPLACEMENT: Final = re.compile(r"(?:[!-\[\]-~]|\\[1-9](?![0-9])|\\g<\w+>)*", re.ASCII)


class Pattern:
    r"""Regular expression in RE2's syntax, searched for in bytes.

    "." matches any byte but a line feed, and a character that is not ASCII matches the bytes of its
    UTF-8 form. At most `MAX_SUBJECT` bytes are searched.

    Args:
        option: the name of the option, for errors.
        expression: the expression.
        replacement: the text that `replaced` puts in place of a match: printable ASCII without
            spaces, with groups as ``\1`` to ``\9`` or ``\g<name>``; an unmatched group is empty.

    Raises:
        ConfigurationError: the expression or the replacement is invalid; the text says why.
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
        """Return whether the expression matches anywhere in the subject."""
        return self._regexp.search(subject[:MAX_SUBJECT]) is not None

    def replaced(self, subject: bytes) -> bytes:
        """Return the subject with its first match, if any, replaced."""
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
                    f"{option}: {replacement[:80]!r} refers to a group missing in the pattern: "
                    f"{''.join(group)}"
                )


def _text(error: Exception) -> str:
    """Return RE2's error text, which is bytes."""
    reason = error.args[0] if error.args else ""
    return reason.decode("utf-8", "replace") if isinstance(reason, bytes) else str(reason)
