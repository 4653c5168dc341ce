"""Options of spoa-iprep: one table for parsing and for the help."""

from typing import Final

from spoakit.cli import common_options as common
from spoakit.cli.option_table import Group, Option, OptionParser
from spoakit.server import LOOPS

_SYNOPSIS: Final = """\
Usage: spoa-iprep { -h --help }
       spoa-iprep { -V --version }
       spoa-iprep [OPTION]...
       spoa-iprep { ban | unban | bans | lookup | sources | update } [-h]
"""
_NOTES: Final = f"""\
Commands speak to a running spoa-iprep; -h behind one explains it.

Supported event backends: {", ".join(LOOPS)}.
auto is uvloop where it is installed.

{common.CAPABILITY_NOTE}
{common.LOGFILE_NOTE}

{common.TIME_NOTE}
Without a file (--config), scores are random.  A worker is a
process.  {common.SIGNAL_NOTE}"""

_COMMON: Final = (*common.LETTERS, common.PROCESSING_DELAY, common.VERSION)
_SCORES: Final = (
    Option("--config", "FILE", "The configuration, a TOML file."),
    common.WATCH,
    Option("--control", "PATH", "Socket for the commands, instead of the file's control.path."),
    Option("--check", "", "Check the file and all sources, and exit."),
    Option("--random", "", "Use random scores, as without a file."),
)


_GROUPS: Final[tuple[Group, ...]] = (
    ("Options are:", _COMMON),
    ("Where scores come from:", _SCORES),
    common.LOGGING,
    common.LISTENING,
    common.LIMITS,
    ("Workers and stopping:", (common.WORKER_TIMEOUT, common.DRAIN, common.DRAIN_CHECKS)),
)


def iprep_parser() -> OptionParser:
    """Return the parser of spoa-iprep's options."""
    return OptionParser("spoa-iprep", _SYNOPSIS, _GROUPS, _NOTES)
