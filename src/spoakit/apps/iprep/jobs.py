"""What takes long, done in processes of their own: downloads, and the making of editions.

A job is a process that gets what to do as JSON on standard input, and says what became of it as
JSON on standard output. It computes as much as it likes without holding up a frame, and what
memory it took goes back with it.
"""

import asyncio
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from spoakit.apps.iprep.building import build_edition
from spoakit.apps.iprep.edition import Edition, encode, read_edition
from spoakit.apps.iprep.exceptions import SourceError
from spoakit.apps.iprep.feeds import Outcome
from spoakit.apps.iprep.settings import ReputationSettings, SourceSettings
from spoakit.apps.iprep.sources import feed_of
from spoakit.exceptions import SpoakitError

# Others come first: those who answer frames are on the same cores.
_NICENESS: Final = 10
_MAX_SHOWN: Final = 500


class JobError(SpoakitError):
    """A job failed; the text says why."""


class Fetch(msgspec.Struct, frozen=True, tag=True):
    """Download a source, if it is due.

    Attributes:
        source: which.
        cache: the folder for downloads.
    """

    source: SourceSettings
    cache: str


class Build(msgspec.Struct, frozen=True, tag=True):
    """Make an edition of what the sources' files have.

    Attributes:
        folder: where editions are.
        settings: what it is made with.
    """

    folder: str
    settings: ReputationSettings


class Fetched(msgspec.Struct, frozen=True):
    """What became of a download.

    Attributes:
        outcome: how it went; None if it failed.
        error: why it failed.
    """

    outcome: Outcome | None = None
    error: str = ""


T = TypeVar("T", Fetched, Edition)


async def fetch(job: Fetch) -> Fetched:
    """Have a source downloaded.

    Raises:
        JobError: the process failed.
    """
    return await _run(job, Fetched)


async def build(job: Build) -> Edition:
    """Have an edition made.

    Raises:
        JobError: it could not be made.
    """
    return await _run(job, Edition)


async def _run(job: Fetch | Build, kind: type[T]) -> T:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        __name__,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,  # the terminal's signals are for the supervisor
    )
    try:
        output, errors = await process.communicate(encode(job))
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    if process.returncode != 0:
        last = errors.decode(errors="replace").strip().rpartition("\n")[2]
        raise JobError(last[:_MAX_SHOWN] or f"its process ended with {process.returncode}")
    return msgspec.json.decode(output, type=kind)


def _fetch(job: Fetch) -> Fetched:
    feed = feed_of(job.source, job.cache)
    assert feed is not None
    try:
        return Fetched(feed.fetch())
    except SourceError as error:
        return Fetched(error=str(error))


def _build(job: Build) -> Edition:
    folder = Path(job.folder)
    return build_edition(folder, job.settings, read_edition(folder))


def main() -> int:
    """Do the job on standard input; return the exit code, 1 with the reason on standard error."""
    os.nice(_NICENESS)
    job = msgspec.json.decode(sys.stdin.buffer.read(), type=Fetch | Build)
    try:
        result = _fetch(job) if isinstance(job, Fetch) else _build(job)
    except (SpoakitError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    sys.stdout.buffer.write(encode(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
