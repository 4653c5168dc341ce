"""Jobs, which run in processes of their own: downloads, and the building of snapshots.

A job is a process that gets what to do as a line of JSON on standard input, and says what became
of it as JSON on standard output. It computes as much as it likes without holding up a frame, and
what memory it took goes back with it. When its standard input ends, so does the job: who wanted it
is not there any more.
"""

import asyncio
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from spoakit.apps.iprep.child_process import end_with_input
from spoakit.apps.iprep.config.schema import ReputationSettings
from spoakit.apps.iprep.config.sources import SourceSettings
from spoakit.apps.iprep.exceptions import SourceError
from spoakit.apps.iprep.snapshot.builder import build_snapshot
from spoakit.apps.iprep.snapshot.manifest import (
    SNAPSHOT_DECODER,
    Snapshot,
    encode,
    lock,
    read_snapshot,
)
from spoakit.apps.iprep.sources.feeds import Outcome
from spoakit.apps.iprep.sources.files import feed_of
from spoakit.exceptions import SpoakitError

# Others come first: those who answer frames are on the same cores.
_NICENESS: Final = 10
_MAX_SHOWN: Final = 500
# Seconds, beside those for its download, in which a list must have been read, or a snapshot made.
_PATIENCE: Final = 600.0


class JobError(SpoakitError):
    """A job failed; the text says why."""


class Fetch(msgspec.Struct, frozen=True, tag=True):
    """Download a source, if it is due.

    Attributes:
        source: which.
        cache: the folder for downloads.
        is_forced: whether to download it even if it is not due.
        accepts_shrink: whether a list that lost more entries than `max-shrink` is taken.
    """

    source: SourceSettings
    cache: str
    is_forced: bool = False
    accepts_shrink: bool = False


class Build(msgspec.Struct, frozen=True, tag=True):
    """Make a snapshot of what the sources' files have.

    Attributes:
        folder: where snapshots are.
        settings: what it is made with.
        may_shrink: names of sources whose files may have lost more entries than `max-shrink`.
    """

    folder: str
    settings: ReputationSettings
    may_shrink: frozenset[str] = frozenset()


class Fetched(msgspec.Struct, frozen=True):
    """What became of a download.

    Attributes:
        outcome: how it went; None if it failed.
        error: why it failed.
    """

    outcome: Outcome | None = None
    error: str = ""


T = TypeVar("T", Fetched, Snapshot)

# Made here, under the import lock: msgspec describes a class to itself at its first use, and a
# second thread that decodes at that moment crashes.
_JOB: Final = msgspec.json.Decoder[Fetch | Build](Fetch | Build)
_FETCHED: Final = msgspec.json.Decoder(Fetched)


async def fetch(job: Fetch) -> Fetched:
    """Have a source downloaded.

    Raises:
        JobError: the process failed.
    """
    return await _run(job, _FETCHED, job.source.feed.timeout + _PATIENCE)


async def build(job: Build) -> Snapshot:
    """Have a snapshot made.

    Raises:
        JobError: it could not be made.
    """
    return await _run(job, SNAPSHOT_DECODER, _PATIENCE)


async def _run(job: Fetch | Build, result: "msgspec.json.Decoder[T]", patience: float) -> T:
    try:
        async with asyncio.timeout(patience):
            code, output, errors = await _talk(encode(job) + b"\n")
        if code == 0:
            return result.decode(output)
    except TimeoutError:
        raise JobError(f"its process took longer than {patience:g} s") from None
    except (OSError, ValueError) as error:  # no process is to be had; it is no JSON
        raise JobError(f"its process failed: {error}") from None
    last = errors.decode(errors="replace").strip().rpartition("\n")[2]
    raise JobError(last[:_MAX_SHOWN] or f"its process ended with {code}")


async def _talk(request: bytes) -> tuple[int, bytes, bytes]:
    """Have a process do a job; return its exit code, and what it wrote to its two outputs."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",  # nothing is imported from the working directory
        "-m",
        __name__,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,  # the terminal's signals are for the supervisor
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        process.stdin.write(request)
        # Its standard input stays open, which is how it knows that it is waited for.
        output, errors = await asyncio.gather(process.stdout.read(), process.stderr.read())
        return await process.wait(), output, errors
    finally:
        process.stdin.close()
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()


def _fetch(job: Fetch) -> Fetched:
    feed = feed_of(job.source, job.cache)
    assert feed is not None
    try:
        return Fetched(feed.fetch(is_forced=job.is_forced, accepts_shrink=job.accepts_shrink))
    except SourceError as error:
        return Fetched(error=str(error))


def _build(job: Build) -> Snapshot:
    folder = Path(job.folder)
    with open(folder / "build.lock", "wb") as file:
        # One whose updater was killed may be at it still.
        lock(file, wait=True)
        try:
            before = read_snapshot(folder)
        except SourceError:
            before = None  # it is damaged, and replaced
        return build_snapshot(folder, job.settings, before, job.may_shrink)


def main() -> int:
    """Do the job on standard input; return the exit code, 1 with the reason on standard error."""
    os.nice(_NICENESS)
    job = _JOB.decode(sys.stdin.buffer.readline())
    end_with_input()
    try:
        result = _fetch(job) if isinstance(job, Fetch) else _build(job)
    except (SpoakitError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    sys.stdout.buffer.write(encode(result))
    sys.stdout.buffer.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
