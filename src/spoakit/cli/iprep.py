"""spoa-iprep: the options of the C program and more, and commands for a running one."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from spoakit.agent import Agent
from spoakit.apps.iprep.config import read_config
from spoakit.apps.iprep.random_score import random_agent
from spoakit.cli.common_options import server_settings
from spoakit.cli.iprep_commands import COMMANDS, run_command
from spoakit.cli.iprep_options import iprep_parser
from spoakit.cli.options import open_standard_streams
from spoakit.exceptions import ConfigurationError
from spoakit.logs import configure_logging
from spoakit.server import Hooks, ServerSettings, run


def main(arguments: Sequence[str] | None = None) -> int:
    """Run spoa-iprep or one of its commands; return the exit code, 64 for a wrong command line."""
    open_standard_streams()
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments and arguments[0] in COMMANDS:
        return run_command(arguments)
    parser = iprep_parser()
    given = parser.read(arguments)
    if given is None:
        return 0
    try:
        settings = _server_settings(given)
        agent, hooks = _service(given)
        configure_logging(given["debug"])
        return run([agent], settings, hooks)
    except ConfigurationError as error:
        parser.error(str(error))


def _service(given: Mapping[str, Any]) -> tuple[Agent, Hooks]:
    """Return the agent that is asked for, and what it does on signals."""
    path = given["config"]
    if path is None:
        if given["control"] is not None:
            raise ConfigurationError("--control: there is nothing to control without --config")
        return random_agent(given["processing_delay"] or 0.0), Hooks()
    if given["random"]:
        raise ConfigurationError(f"--random: with --config, {path!r} is where scores come from")
    # To be replaced by the service that the file describes, with given["control"] in place of its
    # control.path, given["processing_delay"], and a hook that reads the file again.
    read_config(path)
    raise ConfigurationError("--config: not put together yet")


def _server_settings(given: Mapping[str, Any]) -> ServerSettings:
    settings = server_settings(given)
    return replace(
        settings,
        limits=replace(settings.limits, frames=given["frames"] or 0),
        loop=given["event_backend"],
    )


if __name__ == "__main__":
    sys.exit(main())
