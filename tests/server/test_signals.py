import logging
import signal
from dataclasses import replace
from functools import partial

import pytest

from spoakit.exceptions import ConfigurationError
from spoakit.server.signals import Hooks, SignalAction, SignalDebouncer


class Clock:
    def __init__(self) -> None:
        self.now = 50.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def debouncer(clock: Clock) -> SignalDebouncer:
    return SignalDebouncer(clock)


@pytest.mark.parametrize(
    ("signum", "action"),
    [
        (signal.SIGTERM, SignalAction.STOP),
        (signal.SIGINT, SignalAction.STOP),
        (signal.SIGHUP, SignalAction.RELOAD),
        (signal.SIGUSR1, SignalAction.REOPEN_LOGS),
        (signal.SIGUSR2, SignalAction.REPORT),
    ],
)
def test_each_signal_has_its_meaning(
    debouncer: SignalDebouncer, signum: int, action: SignalAction
) -> None:
    assert debouncer.interpret(signum) is action


def test_signals_to_stop_within_half_a_second_are_one(
    debouncer: SignalDebouncer, clock: Clock
) -> None:
    assert debouncer.interpret(signal.SIGINT) is SignalAction.STOP
    clock.now += 0.25
    assert debouncer.interpret(signal.SIGTERM) is None
    clock.now += 0.24
    assert debouncer.interpret(signal.SIGINT) is None


def test_a_later_signal_to_stop_asks_to_end(debouncer: SignalDebouncer, clock: Clock) -> None:
    debouncer.interpret(signal.SIGTERM)
    clock.now += 0.5
    assert debouncer.interpret(signal.SIGINT) is SignalAction.END


@pytest.mark.parametrize("signum", [signal.SIGHUP, signal.SIGUSR1])
def test_each_reload_and_reopening_counts_since_the_file_may_have_changed(
    debouncer: SignalDebouncer, signum: int
) -> None:
    assert debouncer.interpret(signum) is not None
    assert debouncer.interpret(signum) is not None


def test_repeated_reports_are_one_and_later_ones_are_more(
    debouncer: SignalDebouncer, clock: Clock
) -> None:
    assert debouncer.interpret(signal.SIGUSR2) is SignalAction.REPORT
    assert debouncer.interpret(signal.SIGUSR2) is None
    assert debouncer.interpret(signal.SIGUSR1) is SignalAction.REOPEN_LOGS
    clock.now += 1
    assert debouncer.interpret(signal.SIGUSR2) is SignalAction.REPORT


def test_a_reload_does_not_make_a_stop_the_second_signal(
    debouncer: SignalDebouncer, clock: Clock
) -> None:
    debouncer.interpret(signal.SIGHUP)
    clock.now += 1
    assert debouncer.interpret(signal.SIGTERM) is SignalAction.STOP


def test_the_hooks_of_a_program_without_any_say_so(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="spoakit.server")
    Hooks().call(SignalAction.RELOAD)
    Hooks().call(SignalAction.REOPEN_LOGS)
    assert caplog.messages == [
        "reload: nothing to reload",
        "reopen logs: logs go to standard error",
    ]


def test_a_worker_may_reload_in_another_way_than_its_supervisor() -> None:
    called: list[str] = []
    alike = Hooks(partial(called.append, "reload"))
    other = replace(alike, reload_worker=partial(called.append, "in a worker"))
    for hooks in (alike, alike.for_worker(), other, other.for_worker()):
        assert hooks.call(SignalAction.RELOAD)
    assert called == ["reload", "reload", "reload", "in a worker"]


def test_an_exception_in_a_hook_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> None:
        raise RuntimeError("broken")

    assert not Hooks(reload=fail).call(SignalAction.RELOAD)
    assert caplog.messages == ["reload failed; going on as before"]
    assert "RuntimeError: broken" in caplog.text


def test_a_logfile_is_reopened_whatever_a_programs_own_files_do(
    caplog: pytest.LogCaptureFixture,
) -> None:
    called: list[str] = []

    def refuse() -> None:
        called.append("refused")
        raise ConfigurationError("access log '/a/b' cannot be opened: No such file or directory")

    logfile = partial(called.append, "logfile")
    assert not Hooks(reopen_logs=refuse, reopen_logfile=logfile).call(SignalAction.REOPEN_LOGS)
    own = Hooks(reopen_logs=partial(called.append, "own"), reopen_logfile=logfile)
    assert own.call(SignalAction.REOPEN_LOGS)
    assert called == ["refused", "logfile", "own", "logfile"]
    assert len(caplog.messages) == 1
    assert "reopen logs refused, going on as before: access log '/a/b'" in caplog.text


def test_a_refusal_is_logged_with_its_reason_alone(caplog: pytest.LogCaptureFixture) -> None:
    def refuse() -> None:
        raise ConfigurationError("mirror.toml, line 3: no URL")

    assert not Hooks(reload=refuse).call(SignalAction.RELOAD)
    assert caplog.messages == ["reload refused, going on as before: mirror.toml, line 3: no URL"]
    assert "Traceback" not in caplog.text
