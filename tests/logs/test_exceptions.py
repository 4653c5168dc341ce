"""Exceptions in lines: throttled, cut, and safe to show."""

import gc
import re
import weakref
from collections.abc import Callable

import pytest

from spoakit.logs import Throttle
from tests.support.logging_programs import Clock, run_configured

pytestmark = pytest.mark.slow


def raised(error: BaseException) -> BaseException:
    """Return an exception with a traceback."""
    try:
        raise error
    except BaseException as caught:
        return caught


def test_a_line_shows_its_exception_and_a_summary_the_one_logged_before(
    throttle: Throttle, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(3):
        throttle.error("a", "call %d failed", number, error=raised(ValueError(f"no {number}")))
    clock.now += 1.0
    throttle.flush()
    assert caplog.messages == [
        "call 0 failed: ValueError: no 0",
        "call 2 failed: ValueError: no 0 (and 1 more like it in the last second)",
    ]
    for record in caplog.records:
        assert record.exc_text is not None
        lines = record.exc_text.splitlines()
        assert (lines[0], lines[-1]) == ("Traceback (most recent call last):", "ValueError: no 0")
        assert "in raised" in lines[1]


def test_a_line_after_the_interval_shows_its_own_exception(
    throttle: Throttle, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(3):
        clock.now += 1.0
        throttle.error("a", "failed", error=raised(ValueError(f"no {number}")))
    assert [message.split(" (")[0] for message in caplog.messages] == [
        f"failed: ValueError: no {number}" for number in range(3)
    ]


def test_an_exception_held_back_among_too_many_kinds_is_only_named(
    throttle: Throttle, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(10):
        error = KeyError(number) if number == 9 else ValueError(number)
        throttle.error(number, "%d failed", number, error=raised(error))
    clock.now += 1.0
    throttle.flush()
    assert caplog.messages[-1] == "9 failed: KeyError (and 5 more like it in the last second)"


def test_an_exception_that_is_held_back_is_neither_formatted_nor_kept(
    throttle: Throttle, caplog: pytest.LogCaptureFixture
) -> None:
    class CountedError(Exception):
        shown = 0

        def __str__(self) -> str:
            CountedError.shown += 1
            return "counted"

    references = []
    for _ in range(100):
        error = raised(CountedError())
        throttle.error("a", "failed", error=error)
        references.append(weakref.ref(error))
        del error
    assert CountedError.shown <= 3
    gc.collect()
    assert [reference() for reference in references] == [None] * 100


def test_what_led_to_an_exception_follows_it(
    throttle: Throttle, caplog: pytest.LogCaptureFixture
) -> None:
    group = ExceptionGroup("both", [ValueError(1), OSError(2)])

    def fail() -> None:
        try:
            raise KeyError("first")
        except KeyError as error:
            raise group from error

    with pytest.raises(ExceptionGroup) as caught:
        fail()
    throttle.error("a", "failed", error=caught.value)
    assert caplog.records[0].exc_text is not None
    lines = [line for line in caplog.records[0].exc_text.splitlines() if line[0] != " "]
    assert lines == [
        "Traceback (most recent call last):",
        "ExceptionGroup: both (2 sub-exceptions)",
        "Exception 1 of this group (most recent call last):",
        "ValueError: 1",
        "Exception 2 of this group (most recent call last):",
        "OSError: 2",
        "Caused by (most recent call last):",
        "KeyError: 'first'",
    ]


def endless() -> BaseException:
    """Return an exception that is the cause of its own cause."""
    first, second = raised(ValueError(1)), raised(ValueError(2))
    first.__cause__, second.__cause__ = second, first
    return first


def wide() -> BaseException:
    group: ExceptionGroup[Exception]
    group = ExceptionGroup("wide", [ValueError(n) for n in range(100)])
    for _ in range(3):
        group = ExceptionGroup("wide", [group] * 100)
    return raised(group)


class ShamError(Exception):
    """An exception whose attributes fail."""

    __suppress_context__ = property(lambda self: 1 / 0)

    def __str__(self) -> str:
        raise ShamError


def sham() -> BaseException:
    error = raised(ShamError())
    error.__context__ = ValueError()
    return error


@pytest.mark.parametrize("make", [endless, wide, sham, lambda: raised(ValueError("x" * 10**7))])
def test_of_an_exception_only_so_much_is_logged(
    make: Callable[[], BaseException], throttle: Throttle, caplog: pytest.LogCaptureFixture
) -> None:
    throttle.error("a", "failed", error=make())
    [record] = caplog.records
    assert len(record.getMessage()) < 1100
    assert record.exc_text is not None
    assert len(record.exc_text) < 8300


def test_an_exceptions_text_cannot_forge_log_lines() -> None:
    forged = r"'a\n2026-01-01 00:00:00.000 [1] INFO FORGED\r\x85\u2028b'"
    for code in (
        f"throttle.error('kind', 'failed', error=failed(ValueError({forged})))",
        f"log.error('failed', exc_info=failed(ValueError({forged})))",
        f"log.error('failed', exc_info=ValueError({forged}))",
        f"log.error('failed', exc_info=failed(noted({forged})))",
        f"log.error('failed', exc_info=failed(ExceptionGroup('g', [ValueError({forged})])))",
        f"log.error({forged}, stack_info=True)",
        f"log.handle(logging.makeLogRecord(dict(known, exc_text={forged})))",
    ):
        script = (
            "from spoakit.logs import Throttle\n"
            "throttle = Throttle(log)\n"
            "known = dict(name='root', levelno=20, levelname='INFO', msg='failed')\n"
            "def noted(text):\n    error = ValueError(); error.add_note(text); return error\n"
            "def failed(error):\n"
            "    try: raise error\n"
            "    except Exception as caught: return caught\n"
            f"{code}\n"
        )
        for debug in (False, True):
            first, *rest = run_configured(debug, f"exec({script!r})")
            assert re.match(r"\d{4}-\d\d-\d\d [\d:.]+ \[\d+\] \w+ (spoakit\.test|root): ", first)
            assert all(line.startswith("  ") for line in rest), rest
            assert "\x85" not in "".join((first, *rest))


def test_a_line_whose_arguments_cannot_be_shown_is_still_a_line() -> None:
    lines = run_configured(False, "log.info('%d', 'text'); log.info(5); log.info('%s', 1, 2)")
    assert [line.partition("test: ")[2] for line in lines] == [
        "%d (its arguments cannot be shown: TypeError)",
        "5",
        "%s (its arguments cannot be shown: TypeError)",
    ]
