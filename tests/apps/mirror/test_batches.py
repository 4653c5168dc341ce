import asyncio
import logging
from collections.abc import Callable
from itertools import pairwise

import pytest
from tests.apps.mirror.conftest import until

from spoakit.agent.headers import Headers
from spoakit.apps.mirror import batches
from spoakit.apps.mirror._request_cy import Original
from spoakit.apps.mirror.batches import INTERVAL, MAX_WAITING, Batches


def original(number: int) -> Original:
    path = b"/%d" % number
    return Original(b"GET", path, b"1.1", Headers(b"\0\0"), None, -1, b"", b"", b"")


ORIGINALS = [original(number) for number in range(MAX_WAITING + 2)]


@pytest.fixture
def never(monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits, waits longer than the test takes."""
    monkeypatch.setattr(batches, "INTERVAL", 60.0)


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits, waits for longer than anything else takes."""
    monkeypatch.setattr(batches, "INTERVAL", 0.2)


def run(scenario: Callable[[Batches, list[Original]], object]) -> list[Original]:
    """Run a scenario in a loop, with batches and the requests that they have copied."""
    copied: list[Original] = []

    async def main() -> None:
        done = scenario(Batches(copied.append), copied)
        if asyncio.iscoroutine(done):
            await done

    asyncio.run(main())
    return copied


def test_one_that_comes_alone_is_copied_at_once() -> None:
    assert run(lambda batches, _: batches.add(ORIGINALS[0])) == ORIGINALS[:1]


async def _quiet(batches: Batches, copied: list[Original]) -> None:
    batches.add(ORIGINALS[0])
    await asyncio.sleep(2 * INTERVAL)
    batches.add(ORIGINALS[1])
    assert copied == ORIGINALS[:2]


def test_one_that_comes_after_a_quiet_time_is_copied_at_once() -> None:
    run(_quiet)


async def _together(batches: Batches, copied: list[Original]) -> None:
    for number in range(10):
        batches.add(ORIGINALS[number])
    assert copied == ORIGINALS[:1]
    await until(lambda: len(copied) == 10)


@pytest.mark.usefixtures("soon")
def test_those_that_follow_wait_and_are_copied_in_order() -> None:
    assert run(_together) == ORIGINALS[:10]


async def _in_between(batches: Batches, copied: list[Original]) -> None:
    for number in range(10):
        batches.add(ORIGINALS[number])
    rounds = [1]
    while len(copied) < 10:
        await asyncio.sleep(0)
        if len(copied) == 5 and rounds[-1] == 1:
            batches.add(ORIGINALS[10])
        rounds.append(len(copied))
    assert {after - before for before, after in pairwise(rounds)} <= {0, 2, 4}
    assert rounds[-1] == 11


@pytest.mark.usefixtures("soon")
def test_others_have_their_turn_while_many_are_copied() -> None:
    assert run(_in_between) == ORIGINALS[:11]


def _many(batches: Batches, copied: list[Original]) -> None:
    for number in range(MAX_WAITING):
        batches.add(ORIGINALS[number])
    assert copied == ORIGINALS[:1]
    batches.add(ORIGINALS[MAX_WAITING])


@pytest.mark.usefixtures("never")
def test_no_more_wait_than_may() -> None:
    assert run(_many) == ORIGINALS[: MAX_WAITING + 1]


def _flush(batches: Batches, copied: list[Original]) -> None:
    for number in range(3):
        batches.add(ORIGINALS[number])
    batches.flush()
    assert copied == ORIGINALS[:3]
    batches.flush()


@pytest.mark.usefixtures("never")
def test_what_waits_is_copied_when_asked_for() -> None:
    assert run(_flush) == ORIGINALS[:3]


def test_one_that_cannot_be_copied_is_said_and_costs_no_other(
    caplog: pytest.LogCaptureFixture,
) -> None:
    copied: list[Original] = []

    def copy(request: Original) -> None:
        if request is ORIGINALS[1]:
            raise RuntimeError("a mistake")
        copied.append(request)

    async def main() -> None:
        batches = Batches(copy)
        for number in range(3):
            batches.add(ORIGINALS[number])
        batches.flush()

    with caplog.at_level(logging.ERROR):
        asyncio.run(main())
    assert copied == [ORIGINALS[0], ORIGINALS[2]]
    assert "a request could not be copied: RuntimeError('a mistake')" in caplog.text
