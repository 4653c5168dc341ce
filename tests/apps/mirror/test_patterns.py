import re
import time

import pytest

from spoakit.apps.mirror.patterns import MAX_SUBJECT, Pattern
from spoakit.exceptions import ConfigurationError


def test_a_pattern_is_searched_for_anywhere() -> None:
    pattern = Pattern("match.path", "^/api/.*[?&]debug=")
    assert pattern.is_in(b"/api/x?a=1&debug=2")
    assert not pattern.is_in(b"/x/api/?debug=")


def test_it_works_on_bytes_whatever_they_are() -> None:
    assert Pattern("o", "^/.$").is_in(b"/\xff")
    assert Pattern("o", "caf\u00e9").is_in("/caf\u00e9".encode())
    assert not Pattern("o", "caf\u00e9").is_in(b"/caf\xe9")


@pytest.mark.parametrize(
    "expression", [r"(a+)+$", r"(a|a)*$", r"(.*a){25}$", r"^(([a-z])+.)+[A-Z]$"]
)
def test_what_makes_others_hang_takes_no_time(expression: str) -> None:
    pattern = Pattern("o", expression)
    before = time.perf_counter()
    pattern.is_in(b"a" * MAX_SUBJECT + b"!")
    # Milliseconds; the universe is too young for an engine that backtracks.
    assert time.perf_counter() - before < 2


def test_what_is_behind_the_first_8_kib_is_not_searched() -> None:
    assert Pattern("o", "x").is_in(b" " * (MAX_SUBJECT - 1) + b"x")
    assert not Pattern("o", "x").is_in(b" " * MAX_SUBJECT + b"x")


def test_an_expression_that_would_need_much_memory_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="too large"):
        Pattern("o", "(?:(?:abcdefgh){30}){30}")


@pytest.mark.parametrize(
    ("expression", "reason"),
    [("(", r"missing \)"), (r"(a)\1", "invalid escape"), ("(?!a)", "invalid perl operator")],
)
def test_what_it_cannot_do_is_refused_with_the_reason(expression: str, reason: str) -> None:
    with pytest.raises(ConfigurationError, match=reason) as caught:
        Pattern("match.path", expression)
    assert str(caught.value).startswith(f"match.path: {expression!r} is not a regular expression")


@pytest.mark.parametrize(
    ("expression", "replacement", "old", "new"),
    [
        ("^/v1/", "/v2/", b"/v1/v1/", b"/v2/v1/"),
        ("^/v1/", "/v2/", b"/a/v1/", b"/a/v1/"),
        (r"^/(\w+)/(\w+)", r"/\2/\1", b"/a/b/c", b"/b/a/c"),
        (r"(?P<user>u\d+)", r"\g<user>x", b"/u1?u2", b"/u1x?u2"),
        ("(a)|(b)", r"[\1\2]", b"/b", b"/[b]"),
        ("b", r"\g<0>\g<0>", b"/abc\xff", b"/abbc\xff"),
        ("/a", "", b"/a/b", b"/b"),
    ],
)
def test_the_first_match_is_replaced(
    expression: str, replacement: str, old: bytes, new: bytes
) -> None:
    assert Pattern("path.pattern", expression, replacement).replaced(old) == new


def test_a_replacement_leaves_what_was_not_searched() -> None:
    subject = b"/a" + b"b" * MAX_SUBJECT
    assert Pattern("o", "^/a", "/c").replaced(subject) == b"/c" + b"b" * MAX_SUBJECT


@pytest.mark.parametrize(
    "replacement",
    [r"\2", r"\g<2>", r"\g<b>", r"\0", r"\n", r"\10", "a b", "a\r\nb", "\\", "\u00e9"],
)
def test_a_replacement_that_cannot_be_is_refused(replacement: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^path.replace: " + re.escape(repr(replacement))):
        Pattern("path.pattern", "(?P<a>a)", replacement)
