"""The process that reads all of a database, see `mmdb.check_database`.

It gets a `Check` as a line of JSON on standard input, and writes a `Checked` to standard output.
"""

import os
import resource
import sys
from contextlib import closing, suppress
from pathlib import Path
from typing import Final

import msgspec

from spoakit.apps.iprep.child_process import end_with_input
from spoakit.apps.iprep.config.sources import DatabaseSettings, SourceSettings
from spoakit.apps.iprep.exceptions import SourceError
from spoakit.apps.iprep.sources.mmdb import CPU_LIMIT, Check, Checked, Database

_CHECK: Final = msgspec.json.Decoder(Check)
# For Python and the values of one address: damaged ones can have each other in them.
_MEMORY: Final = 1024**3


def read_all(path: Path, settings: DatabaseSettings) -> str:
    """Look up an address of each record; return what is odd about the values, "" for nothing.

    Raises:
        SourceError: the database is damaged.
    """
    source = SourceSettings("check", "mmdb", str(path), database=settings)
    present, unused = False, 0
    with closing(Database(source, path)) as database:
        for address in database.samples(path):
            found = database.find(address)
            present = present or found is not None
            unused += isinstance(found, str) and bool(found) and not database.text(found)
    if not present:
        return f"none of its networks has the field {settings.field!r}"
    return f"{unused} of its values have control characters, and are not used" if unused else ""


def _limit(size: int) -> None:
    """Bound what damage can cost. The hard limit on time is for what survives the soft one."""
    memory = _MEMORY + 3 * size  # it is mapped twice, and the walk has a byte for each of it
    for kind, soft, hard in (
        (resource.RLIMIT_CORE, 0, 0),
        (resource.RLIMIT_CPU, CPU_LIMIT, CPU_LIMIT + 5),
        (resource.RLIMIT_AS, memory, memory),
    ):
        with suppress(ValueError, OSError):  # it is lower already
            resource.setrlimit(kind, (soft, hard))


def main() -> int:
    """Do the check on standard input; return the exit code."""
    check = _CHECK.decode(sys.stdin.buffer.readline())
    end_with_input()
    _limit(os.path.getsize(check.path))
    try:
        checked = Checked(warning=read_all(Path(check.path), check.database))
    except SourceError as error:
        checked = Checked(error=str(error))
    except Exception as error:  # of damage comes anything
        checked = Checked(error=f"it is damaged: {type(error).__name__}: {str(error)[:200]}")
    sys.stdout.buffer.write(msgspec.json.encode(checked))
    sys.stdout.buffer.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
