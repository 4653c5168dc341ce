import logging
import signal
from dataclasses import replace
from functools import partial

import pytest

from spoakit.exceptions import ConfigurationError
from spoakit.server.signals import Hooks, SignalRules, Wish


class Clock:
    def __init__(self) -> None:
        self.now = 50.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def rules(clock: Clock) -> SignalRules:
    return SignalRules(clock)


@pytest.mark.parametrize(
    ("signum", "wish"),
    [
        (signal.SIGTERM, Wish.STOP),
        (signal.SIGINT, Wish.STOP),
        (signal.SIGHUP, Wish.RELOAD),
        (signal.SIGUSR1, Wish.REOPEN_LOGS),
        (signal.SIGUSR2, Wish.REPORT),
    ],
)
def test_each_signal_has_its_meaning(rules: SignalRules, signum: int, wish: Wish) -> None:
    assert rules.read(signum) is wish


def test_signals_to_stop_within_half_a_second_are_one(rules: SignalRules, clock: Clock) -> None:
    assert rules.read(signal.SIGINT) is Wish.STOP
    clock.now += 0.25
    assert rules.read(signal.SIGTERM) is None
    clock.now += 0.24
    assert rules.read(signal.SIGINT) is None


def test_a_later_signal_to_stop_asks_to_end(rules: SignalRules, clock: Clock) -> None:
    rules.read(signal.SIGTERM)
    clock.now += 0.5
    assert rules.read(signal.SIGINT) is Wish.END


@pytest.mark.parametrize("signum", [signal.SIGHUP, signal.SIGUSR1])
def test_each_reload_and_reopening_counts_since_the_file_may_have_changed(
    rules: SignalRules, signum: int
) -> None:
    assert rules.read(signum) is not None
    assert rules.read(signum) is not None


def test_repeated_reports_are_one_and_later_ones_are_more(rules: SignalRules, clock: Clock) -> None:
    assert rules.read(signal.SIGUSR2) is Wish.REPORT
    assert rules.read(signal.SIGUSR2) is None
    assert rules.read(signal.SIGUSR1) is Wish.REOPEN_LOGS
    clock.now += 1
    assert rules.read(signal.SIGUSR2) is Wish.REPORT


def test_a_reload_does_not_make_a_stop_the_second_signal(rules: SignalRules, clock: Clock) -> None:
    rules.read(signal.SIGHUP)
    clock.now += 1
    assert rules.read(signal.SIGTERM) is Wish.STOP


def test_the_hooks_of_a_program_without_any_say_so(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="spoakit.server")
    Hooks().call(Wish.RELOAD)
    Hooks().call(Wish.REOPEN_LOGS)
    assert caplog.messages == [
        "reload: there is nothing to reload",
        "reopen logs: logs go to standard error",
    ]


def test_a_worker_may_reload_in_another_way_than_its_supervisor() -> None:
    called: list[str] = []
    alike = Hooks(partial(called.append, "reload"))
    other = replace(alike, reload_worker=partial(called.append, "in a worker"))
    for hooks in (alike, alike.of_worker(), other, other.of_worker()):
        assert hooks.call(Wish.RELOAD)
    assert called == ["reload", "reload", "reload", "in a worker"]


def test_an_exception_in_a_hook_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> None:
        raise RuntimeError("broken")

    assert not Hooks(reload=fail).call(Wish.RELOAD)
    assert caplog.messages == ["reload failed; going on as before"]
    assert "RuntimeError: broken" in caplog.text


def test_a_refusal_is_logged_with_its_reason_alone(caplog: pytest.LogCaptureFixture) -> None:
    def refuse() -> None:
        raise ConfigurationError("mirror.toml, line 3: no URL")

    assert not Hooks(reload=refuse).call(Wish.RELOAD)
    assert caplog.messages == ["reload refused, going on as before: mirror.toml, line 3: no URL"]
    assert "Traceback" not in caplog.text
