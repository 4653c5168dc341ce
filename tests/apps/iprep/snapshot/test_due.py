from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spoakit.apps.iprep.snapshot import due
from spoakit.apps.iprep.snapshot.due import (
    BuildState,
    after_build,
    after_failure,
    after_scan,
    forced,
    is_due,
)
from spoakit.apps.iprep.snapshot.scan import Scan
from spoakit.apps.iprep.sources.feeds import FeedState

ONE, TWO = (1,), (2,)
MADE = ((10,), (11,))
TODAY = 1e9


def found(file: Any = ONE, feed: FeedState | None = None, snapshot: Any = MADE) -> Scan:
    return Scan({"mine": file}, {} if feed is None else {"mine": feed}, snapshot)


FIRST = BuildState(patient_until=30.0)
BUILT = BuildState(has_snapshot=True, is_forced=False, built={"mine": ONE}, made=MADE, quiet_at=50)
CHANGED = msgspec.structs.replace(BUILT, before={"mine": TWO})


@pytest.mark.parametrize(
    ("scan", "state", "now", "expected"),
    [
        # The first one waits for feeds that have neither a copy nor an attempt behind them.
        (found(), FIRST, 0, True),
        (found(None), FIRST, 0, True),
        (found(None, FeedState()), FIRST, 29, False),
        (found(None, FeedState()), FIRST, 30, True),
        (found(ONE, FeedState()), FIRST, 0, True),
        (found(None, FeedState(due=TODAY + 1)), FIRST, 0, True),
        (found(None, FeedState(due=TODAY)), FIRST, 0, False),
        (
            found(None, FeedState()),
            msgspec.structs.replace(FIRST, tried=frozenset({"mine"})),
            0,
            True,
        ),
        # One that is forced behind that waits for nothing but its retry.
        (found(None, FeedState()), forced(BUILT), 0, True),
        (found(), after_failure(BUILT, 100), 100 + due.RETRY_INTERVAL - 1, False),
        (found(), after_failure(BUILT, 100), 100 + due.RETRY_INTERVAL, True),
        (found(), forced(after_failure(BUILT, 100)), 100, True),
        # Nothing has changed; or somebody has removed, replaced or damaged the snapshot.
        (found(), BUILT, 1e6, False),
        (found(snapshot=((10,), None)), BUILT, 60, True),
        (found(snapshot=((10,), (12,))), BUILT, 60, True),
        (
            found(snapshot=((10,), None)),
            msgspec.structs.replace(BUILT, made=((10,), None)),
            60,
            True,
        ),
        # A file that has changed is read when it stays the same for a turn, or has not for long.
        (found(TWO), BUILT, 51, False),
        (found(TWO), CHANGED, 52, True),
        (found((3,)), CHANGED, 52, False),
        (found((3,)), CHANGED, 60, True),
        (found(None), msgspec.structs.replace(BUILT, before={"mine": None}), 52, True),
    ],
)
def test_a_snapshot_is_due(scan: Scan, state: BuildState, now: float, expected: bool) -> None:
    assert is_due(scan, state, now, TODAY) is expected


@given(
    versions=st.lists(st.integers(1, 4), min_size=1, max_size=60),
    fails=st.lists(st.booleans(), max_size=10),
)
def test_each_change_is_built_once_and_in_time(versions: list[int], fails: list[bool]) -> None:
    """Turn as the updater does, with a file that changes by chance and builds that may fail."""
    state = BuildState(patient_until=0.0)
    failures = list(fails)
    built_at, now = 0.0, 0.0
    unbuilt_since: float | None = 0.0
    for version in (*versions, *[versions[-1]] * 120):
        now += 1.0
        scan = found((version,))
        is_built = state.built == scan.files and not state.is_forced
        if is_due(scan, state, now, TODAY):
            assert not is_built
            assert now >= state.retry_at
            state = msgspec.structs.replace(state, is_forced=False)
            if failures and failures.pop():
                state = after_failure(state, now)
                unbuilt_since = now
            else:
                state = after_build(scan, MADE, state, now)
                built_at, unbuilt_since = now, None
        elif not is_built:
            unbuilt_since = now if unbuilt_since is None else unbuilt_since
            assert now - unbuilt_since <= max(due._MAX_UNREST, due.RETRY_INTERVAL)
        else:
            unbuilt_since = None
        state = after_scan(scan, state, now)
    assert state.built == {"mine": (versions[-1],)}
    assert not failures or built_at > 0


@given(now=st.floats(0, 1e6), file=st.integers(1, 2), quiet_at=st.floats(0, 1e6))
def test_the_decision_changes_nothing_it_is_given(now: float, file: int, quiet_at: float) -> None:
    scan, state = found((file,)), msgspec.structs.replace(BUILT, quiet_at=quiet_at)
    before = msgspec.json.encode([scan, state])
    assert is_due(scan, state, now, TODAY) == is_due(scan, state, now, TODAY)
    assert msgspec.json.encode([scan, state]) == before
