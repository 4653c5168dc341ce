"""The fuzzer works, and finds nothing in a moment; `make fuzz` gives it longer."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from fuzz.mutations import HELLO, Mutator, recorded_streams
from fuzz.run import fuzz
from fuzz.target import Target
from spoakit.exceptions import StatusCode

pytestmark = pytest.mark.slow


def execute(reads: Sequence[bytes]) -> tuple[Any, ...]:
    async def run() -> tuple[Any, ...]:
        target = await Target.start()
        try:
            return await target.execute(reads)
        finally:
            await target.aclose()

    return asyncio.run(run())


def test_a_moment_of_fuzzing_finds_nothing() -> None:
    executions, outcomes = asyncio.run(fuzz(seed=2, most=1500))
    assert executions == 1500
    # It reaches the handlers, and everything that can be wrong before them.
    assert {"ACKs", "no failure", "unreadable payloads", "status 3", "status 4"} <= set(outcomes)


def test_a_seed_makes_the_same_streams_again() -> None:
    one, other = Mutator(7), Mutator(7)
    assert [one.reads() for _ in range(20)] == [other.reads() for _ in range(20)]


def test_what_real_haproxys_sent_has_no_finding() -> None:
    for stream in recorded_streams():
        _, broken, _ = execute(stream)
        assert broken == 0


def test_a_broken_stream_is_told_from_a_sound_one() -> None:
    assert execute([HELLO]) == ([], 0, None)
    assert execute([HELLO, b"\0\0\0\0"]) == ([], 0, StatusCode.INVALID)


def test_what_must_not_escape_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spoakit.spop.connection.decode_frame", lambda data: data[1000])
    with pytest.raises(IndexError):
        execute([HELLO])
