"""spoa-iprep: the options of the C program and more, and commands for a running one."""

import asyncio
import logging
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from ipaddress import ip_address
from typing import Any

from msgspec import structs

from spoakit import Agent
from spoakit.apps.iprep.agent import create_agent
from spoakit.apps.iprep.check import check_files, check_sources
from spoakit.apps.iprep.config.loader import read_config
from spoakit.apps.iprep.config.schema import ReputationSettings
from spoakit.apps.iprep.control.paths import with_default
from spoakit.apps.iprep.random_score import random_agent
from spoakit.apps.iprep.service import reloadable_settings, snapshots_folder
from spoakit.cli.common_options import (
    begin_logging,
    check_server_files,
    server_settings,
    watching,
)
from spoakit.cli.iprep_commands import COMMANDS, run_command
from spoakit.cli.iprep_options import iprep_parser
from spoakit.cli.options import EX_FAILED, open_standard_streams, report_error, show
from spoakit.exceptions import ConfigurationError, SpoakitError
from spoakit.server import Hooks, ReloadableSettings, ServerSettings, TcpAddress, loop_factory, run

logger = logging.getLogger("spoakit.iprep")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run spoa-iprep or one of its commands; return the exit code, 64 for a wrong command line."""
    open_standard_streams()
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments and arguments[0] in COMMANDS:
        return run_command(arguments)
    given = iprep_parser().parse_options(arguments)
    if given is None:
        return 0
    with ExitStack() as stack:
        try:
            settings = watching(server_settings(given), given)
            if given["check"]:
                return _check(given, settings)
            live = _reloadable_settings(given, settings)
            begin_logging(given)
            agent, hooks = _agent(given, live, stack)
            if given["config"] is None and not given["random"]:
                logger.warning(
                    "without --config scores are random; use --random if this is intended"
                )
            return run([agent], settings, hooks)
        except SpoakitError as error:
            return report_error(error)


def _check(given: Mapping[str, Any], server: ServerSettings) -> int:
    """Check files and sources, and print a line for each source; return the exit code.

    Raises:
        ConfigurationError: a file cannot be used.
    """
    path = given["config"]
    if path is None:
        raise ConfigurationError("--check needs --config")
    check_server_files(server)
    settings = _load_settings(path, given["control"], server)
    check_files(settings)
    with asyncio.Runner(loop_factory=loop_factory(server.loop)) as runner:
        results = runner.run(check_sources(settings))
    show("\n".join(map(str, results)) or "no source: all addresses have the score of unknown ones")
    return EX_FAILED if any(result.error for result in results) else 0


def _reloadable_settings(
    given: Mapping[str, Any], settings: ServerSettings
) -> ReloadableSettings[ReputationSettings] | None:
    """Return the settings of the configuration file; None without one."""
    path = given["config"]
    if path is None:
        if given["control"] is not None:
            raise ConfigurationError("--control needs --config")
        return None
    if given["random"]:
        raise ConfigurationError(
            f"--random: scores come from --config {path!r}; use one of the two"
        )
    return reloadable_settings(partial(_load_settings, path, given["control"], settings))


def _agent(
    given: Mapping[str, Any], live: ReloadableSettings[ReputationSettings] | None, stack: ExitStack
) -> tuple[Agent, Hooks]:
    """Return the agent, and its hooks for signals."""
    delay = given["processing_delay"] or 0.0
    if live is None:
        return random_agent(delay), Hooks()
    folder = stack.enter_context(snapshots_folder(live.current))
    hooks = Hooks(live.reload, live.reopen_logs, reload_worker=live.reload_worker)
    return create_agent(live, folder, delay), hooks


def _load_settings(path: str, control: str | None, server: ServerSettings) -> ReputationSettings:
    """Load the configuration file, and check that it is compatible with the options."""
    settings = read_config(path)
    listen = server.listen
    public = [
        each.host
        for each in listen.addresses
        if isinstance(each, TcpAddress) and not _is_loopback(each.host)
    ]
    if settings.bans.message and public:
        raise ConfigurationError(
            f"{path}: bans.message: every host that reaches {public[0]} could ban; listen on a "
            "Unix socket (--unix) or on a loopback address (-a 127.0.0.1)"
        )
    return structs.replace(settings, control=with_default(settings.control, control))


def _is_loopback(address: str) -> bool:
    try:
        return ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"


if __name__ == "__main__":
    sys.exit(main())
