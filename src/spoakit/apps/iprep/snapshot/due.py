"""Decision whether a new snapshot is due: a function of a scan, what was before it, and the time.

Nothing here reads files or a clock.
"""

from typing import Final

import msgspec

from spoakit.apps.iprep.snapshot.scan import Identities, Scan, SnapshotFiles

RETRY_INTERVAL: Final = 10.0
"""Seconds from a snapshot that could not be made to the next attempt."""

# A file that changes is left alone until it has not changed for one turn, as it may be half
# written; but one that changes all the time is read after this many seconds.
_MAX_UNREST: Final = 10.0


class BuildState(msgspec.Struct, frozen=True, kw_only=True):
    """What is known from before a scan. Times are of ``time.monotonic()``.

    Attributes:
        has_snapshot: whether there is a snapshot.
        is_forced: whether one is to be made whatever the files are: at the start, with other
            settings, and after one that failed.
        patient_until: when the very first snapshot does not wait for feeds any more.
        tried: the names of the sources that have been downloaded, or have failed to be.
        built: the sources' files of which the last snapshot was made.
        made: that snapshot's own files, as they were then.
        retry_at: when the next attempt may be, after one that failed.
        before: the sources' files at the scan before; None for none.
        quiet_at: when the sources' files last were those of the snapshot.
    """

    has_snapshot: bool = False
    is_forced: bool = True
    patient_until: float = 0.0
    tried: frozenset[str] = frozenset()
    built: Identities = msgspec.field(default_factory=dict)
    made: SnapshotFiles = ()
    retry_at: float = 0.0
    before: Identities | None = None
    quiet_at: float = 0.0


def is_due(found: Scan, state: BuildState, now: float, time_of_day: float) -> bool:
    """Return whether a snapshot is to be made of what a scan found.

    Args:
        found: the scan.
        state: what is known from before it.
        now: ``time.monotonic()``.
        time_of_day: ``time.time()``, by which feeds are due.
    """
    if now < state.retry_at:
        return False
    if state.is_forced:
        return (
            state.has_snapshot
            or now >= state.patient_until
            or _has_tried_all(found, state, time_of_day)
        )
    if found.files == state.built:
        # Somebody may have removed or damaged the snapshot.
        return found.snapshot != state.made or None in found.snapshot
    return found.files == state.before or now - state.quiet_at >= _MAX_UNREST


def after_scan(found: Scan, state: BuildState, now: float) -> BuildState:
    """Return the state behind a scan."""
    quiet_at = now if found.files == state.built else state.quiet_at
    return msgspec.structs.replace(state, before=found.files, quiet_at=quiet_at)


def after_build(found: Scan, made: SnapshotFiles, state: BuildState, now: float) -> BuildState:
    """Return the state behind a snapshot that was made of what a scan found."""
    return msgspec.structs.replace(
        state, has_snapshot=True, built=found.files, made=made, quiet_at=now
    )


def after_failure(state: BuildState, now: float) -> BuildState:
    """Return the state behind a snapshot that could not be made."""
    return msgspec.structs.replace(state, is_forced=True, retry_at=now + RETRY_INTERVAL)


def forced(state: BuildState) -> BuildState:
    """Return a state in which a snapshot is made as soon as it may be the first one."""
    return msgspec.structs.replace(state, is_forced=True, retry_at=0.0)


def _has_tried_all(found: Scan, state: BuildState, time_of_day: float) -> bool:
    """Return whether each feed has a copy, or has been asked for once, by any process."""
    return all(
        found.files[name] is not None or name in state.tried or feed.due > time_of_day
        for name, feed in found.feeds.items()
    )
