"""spoakit.metrics.families: declarations."""

from collections.abc import Callable
from typing import Any

import pytest

from spoakit.exceptions import RegistrationError
from spoakit.metrics.families import counter, gauge, histogram

ONE = counter("declared_one_total", "One.", labels=("a",))
TOOK = histogram("declared_took_seconds", "Took.")


def test_declaring_again_in_the_same_words_is_the_same() -> None:
    assert counter("declared_one_total", "One.", labels=("a",)) is ONE


@pytest.mark.parametrize(
    ("declare", "text"),
    [
        (lambda: counter("declared_one_total", "Another."), "already declared in another way"),
        (lambda: gauge("declared_one", "One."), "line declared_one is also a line of"),
        (lambda: gauge("declared_took_seconds_sum", "Sum."), "is also a line of"),
        (lambda: counter("logins", "Logins."), "a counter must end with _total"),
        (lambda: counter("log-ins_total", "Logins."), "letters, digits, _ and :"),
        (lambda: counter("9_total", "Nine."), "letters, digits, _ and :"),
        (lambda: counter("x_total", " "), "help must not be empty"),
        (lambda: counter("x_total", "X.", labels=("__a",)), "label '__a' must consist"),
        (lambda: counter("x_total", "X.", labels=("le",)), "label 'le' must consist"),
        (lambda: counter("x_total", "X.", labels=("worker",)), "label 'worker' must consist"),
        (lambda: counter("x_total", "X.", labels=("a", "a")), "labels must differ"),
        (
            lambda: counter("x_total", "X.", labels=("a",), limit=0),
            "limit must be 1 to 4096, got 0",
        ),
        (lambda: histogram("x_seconds", "X.", lowest=0), "lowest must be above 0, got 0"),
    ],
)
def test_a_wrong_declaration_says_what_is_wrong(declare: Callable[[], Any], text: str) -> None:
    with pytest.raises(RegistrationError, match=text):
        declare()


def test_wrong_labels_say_which_there_are() -> None:
    with pytest.raises(TypeError, match="declared_one_total: labels must be a, got b"):
        ONE.add(b=1)
    with pytest.raises(TypeError, match=r"declared_one_total: labels must be a, got $"):
        ONE.add()


def test_a_counter_only_grows() -> None:
    with pytest.raises(ValueError, match="must not be negative, got -1"):
        ONE.add(-1, a="x")
