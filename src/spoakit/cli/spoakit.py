"""Command spoakit: `spoakit run module:agent` serves any agent."""

import importlib
import sys
import traceback
from collections.abc import Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, Final

from spoakit import Agent
from spoakit.cli import common_options as common
from spoakit.cli import values
from spoakit.cli.common_options import begin_logging, server_settings
from spoakit.cli.option_table import Group, Option, OptionParser
from spoakit.cli.options import EX_FAILED, open_standard_streams, report_error
from spoakit.cli.reloader import is_restarted, serve_and_restart
from spoakit.exceptions import ConfigurationError, SpoakitError
from spoakit.logs import describe_error
from spoakit.server import LOOPS, end_logfile, run

_SYNOPSIS: Final = """\
Usage: spoakit { -h --help }
       spoakit { -V --version }
       spoakit run { -h --help }
       spoakit run MODULE:AGENT... [OPTION]...
"""
_NOTES: Final = """\
"spoakit run" serves agents that are imported from the current directory
or from what is installed.
"""
_RUN_SYNOPSIS: Final = """\
Usage: spoakit run { -h --help }
       spoakit run MODULE:AGENT... [OPTION]...
"""
_RUN_NOTES: Final = f"""\
MODULE is what Python imports, from the current directory first, and AGENT the
name of an agent in it: "spoakit run iprep:agent" for iprep.py.

Supported event backends: {", ".join(LOOPS)}.
auto is uvloop where it is installed.

{common.CAPABILITY_NOTE}
{common.LOGFILE_NOTE}

A TIME is a number with its unit: us, ms, s, m, h or d.  A SIZE is a number of
bytes, or one with B, KiB, MiB or GiB.

Signals: TERM and INT stop, HUP calls the agents' on_reload functions, USR1
reopens the logfile, USR2 logs all counters.
"""


def _for_run(option: Option) -> Option:
    """Return a common option for `spoakit run`, where times need a unit."""
    if option is common.NUM_WORKERS:
        return replace(option, help="Specify the number of workers (default: 1).", default="1")
    if isinstance(option.parse, values.TimeParser):
        return replace(option, parse=replace(option.parse, unit=None, off=True))
    return option


_RUN_GROUPS: Final[tuple[Group, ...]] = (
    ("Options are:", tuple(map(_for_run, common.LETTERS))),
    (
        "Development:",
        (Option("--reload", "", "Restart when a Python file here changes."),),
    ),
    (
        "Watching:",
        (Option("--watch", "FILE", "Reload when this file changes, as on SIGHUP."),),
    ),
    common.LOGGING,
    common.LISTENING,
    common.LIMITS,
    ("Workers and stopping:", (common.WORKER_TIMEOUT, common.DRAIN, common.DRAIN_CHECKS)),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code, 64 for a wrong command line."""
    open_standard_streams()
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments and arguments[0] == "run":
        return _run(arguments[1:])
    groups = (("Options are:", (common.HELP, common.VERSION)),)
    parser = OptionParser("spoakit", _SYNOPSIS, groups, _NOTES, "COMMAND")
    given = parser.parse_options(arguments)
    if given is not None:
        names = given["operands"]
        parser.error(f"unknown command {names[0]!r} (allowed: run)" if names else "no command")
    return 0


def _run(arguments: Sequence[str]) -> int:
    parser = OptionParser("spoakit run", _RUN_SYNOPSIS, _RUN_GROUPS, _RUN_NOTES, "MODULE:AGENT")
    given = parser.parse_options(arguments)
    if given is None:
        return 0
    names = given["operands"]
    if not names:
        parser.error("no agent: give one as MODULE:AGENT, such as iprep:agent")
    sys.path.insert(0, "")  # agents are imported from the current directory first
    try:
        settings = replace(server_settings(given), watch=given["watch"])
        if given["reload"]:
            if settings.daemonize:
                raise ConfigurationError("--reload runs in the foreground; leave out -D")
            if not is_restarted():
                return serve_and_restart(arguments)
            # A worker that a debugger stops must not be killed.
            settings = replace(settings, worker_timeout=0.0)
        begin_logging(given)
        agents = [_load(name) for name in names]
        return run(agents, settings)
    except SpoakitError as error:
        return report_error(error)
    except _ImportFailed as failure:
        end_logfile(str(failure))
        failure.show()
        return EX_FAILED


class _ImportFailed(Exception):
    """Import of a user's module that raised an exception."""

    def __init__(self, error: Exception) -> None:
        super().__init__(f"the module cannot be imported: {describe_error(error)}")
        self._error = error

    def show(self) -> None:
        """Print the traceback, beginning with the user's module."""
        shown = self._error.__traceback__
        while shown is not None and _is_ours(shown):
            shown = shown.tb_next
        traceback.print_exception(self._error.with_traceback(shown))


def _is_ours(entry: TracebackType) -> bool:
    """Return whether an entry of a traceback belongs to this module or to the import system."""
    name = str(entry.tb_frame.f_globals.get("__name__"))
    return name.startswith((__name__, "importlib", "_frozen_importlib"))


def _load(name: str) -> Agent:
    """Return the agent that "module:attribute" names."""
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute or module_name.startswith("."):
        raise ConfigurationError(f"agent {name!r}: give it as module:agent, such as iprep:agent")
    module = _import(name, module_name)
    agent = getattr(module, attribute, None)
    if isinstance(agent, Agent):
        return agent
    names = sorted(key for key, value in vars(module).items() if isinstance(value, Agent))
    there = f"its agents are: {', '.join(names)}" if names else "it has no agents"
    what = "it is not an Agent" if hasattr(module, attribute) else "the name is missing"
    raise ConfigurationError(f"agent {name!r}: {what} in {module_name}; {there}")


def _import(name: str, module_name: str) -> Any:
    """Import the module of an agent.

    Raises:
        ConfigurationError: the module does not exist.
        _ImportFailed: the module raised an exception.
    """
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        # The module may exist, and import another one that does not.
        if error.name is not None and f"{module_name}.".startswith(f"{error.name}."):
            raise ConfigurationError(f"agent {name!r}: {error}") from error
        raise _ImportFailed(error) from error
    except Exception as error:
        raise _ImportFailed(error) from error


if __name__ == "__main__":
    sys.exit(main())
