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
from spoakit.cli.options import EX_FAILED, fail, open_standard_streams, show
from spoakit.exceptions import ConfigurationError, SpoakitError
from spoakit.server import Hooks, ReloadableSettings, ServerSettings, TcpAddress, loop_factory, run

logger = logging.getLogger("spoakit.iprep")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run spoa-iprep or one of its commands; return the exit code, 64 for a wrong command line."""
    open_standard_streams()
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments and arguments[0] in COMMANDS:
        return run_command(arguments)
    given = iprep_parser().read(arguments)
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
                    "without --config scores are random; --random says that this is meant"
                )
            return run([agent], settings, hooks)
        except SpoakitError as error:
            return fail(error)


def _check(given: Mapping[str, Any], server: ServerSettings) -> int:
    """Check files and sources, and print a line for each source; return the exit code.

    Raises:
        ConfigurationError: a file cannot be used.
    """
    path = given["config"]
    if path is None:
        raise ConfigurationError("--check: there is nothing to check without --config")
    check_server_files(server)
    settings = _read(path, given["control"], server)
    check_files(settings)
    with asyncio.Runner(loop_factory=loop_factory(server.loop)) as runner:
        results = runner.run(check_sources(settings))
    show("\n".join(map(str, results)) or "no source: all addresses have the score of unknown ones")
    return EX_FAILED if any(result.error for result in results) else 0


def _reloadable_settings(
    given: Mapping[str, Any], settings: ServerSettings
) -> ReloadableSettings[ReputationSettings] | None:
    """Return what is configured; None without a configuration file."""
    path = given["config"]
    if path is None:
        if given["control"] is not None:
            raise ConfigurationError("--control: there is nothing to control without --config")
        return None
    if given["random"]:
        raise ConfigurationError(f"--random: with --config, {path!r} is where scores come from")
    return reloadable_settings(partial(_read, path, given["control"], settings))


def _agent(
    given: Mapping[str, Any], live: ReloadableSettings[ReputationSettings] | None, stack: ExitStack
) -> tuple[Agent, Hooks]:
    """Return the agent that is asked for, and what it does on signals."""
    delay = given["processing_delay"] or 0.0
    if live is None:
        return random_agent(delay), Hooks()
    folder = stack.enter_context(snapshots_folder(live.current))
    hooks = Hooks(live.reload, live.reopen_logs, reload_worker=live.reload_worker)
    return create_agent(live, folder, delay), hooks


def _read(path: str, control: str | None, server: ServerSettings) -> ReputationSettings:
    """Read the configuration file, which has to go together with the options."""
    settings = read_config(path)
    listen = server.listen
    public = [
        each.host
        for each in listen.addresses
        if isinstance(each, TcpAddress) and not _is_loopback(each.host)
    ]
    if settings.bans.message and public:
        raise ConfigurationError(
            f"{path}: bans.message: everybody who reaches {public[0]} could ban; listen on a Unix "
            "socket (--unix) or on a loopback address (-a 127.0.0.1)"
        )
    return structs.replace(settings, control=with_default(settings.control, control))


def _is_loopback(address: str) -> bool:
    try:
        return ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"


if __name__ == "__main__":
    sys.exit(main())
