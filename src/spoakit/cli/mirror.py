"""spoa-mirror: the options of the C program, and more."""

import asyncio
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from msgspec import structs

from spoakit.apps.mirror.agent import create_agent, reloadable_settings
from spoakit.apps.mirror.check import check_targets
from spoakit.apps.mirror.config.loader import read_config
from spoakit.apps.mirror.config.schema import (
    MirrorSettings,
    TargetSettings,
    TlsSettings,
)
from spoakit.apps.mirror.url import TargetURL
from spoakit.cli.command_line import hide_users
from spoakit.cli.common_options import (
    begin_logging,
    check_server_files,
    server_settings,
    watching,
)
from spoakit.cli.mirror_options import TARGET_OPTIONS, mirror_parser
from spoakit.cli.options import EX_FAILED, open_standard_streams, report_error, show
from spoakit.exceptions import ConfigurationError, SpoakitError
from spoakit.server import Hooks, ServerSettings, loop_factory, run

logger = logging.getLogger("spoakit.mirror")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run spoa-mirror; return its exit code, 64 for a wrong command line."""
    open_standard_streams()
    given = mirror_parser().parse_options(arguments)
    if given is None:
        return 0
    if any(url.authorization for url in given["mirror_url"]):
        hide_users()
    try:
        live = reloadable_settings(_settings_reader(given))
        settings = _server_settings(given, live.current)
        hooks = Hooks(reopen_logs=live.reopen_logs)
        if given["config"]:
            hooks = replace(hooks, reload=live.reload, reload_worker=live.reload_worker)
        if given["check"]:
            return _check(live.current, settings)
        begin_logging(given)
        if not live.current.targets:
            logger.warning("without a URL (-u) requests are acknowledged and not mirrored")
        return run([create_agent(live)], settings, hooks)
    except SpoakitError as error:
        return report_error(error)


def _check(mirror: MirrorSettings, server: ServerSettings) -> int:
    """Check files and targets, and print a line for each target; return the exit code.

    Raises:
        ConfigurationError: a file cannot be used.
    """
    check_server_files(server)
    with asyncio.Runner(loop_factory=loop_factory(server.loop)) as runner:
        results = runner.run(check_targets(mirror))
    show("\n".join(map(str, results)) or "no target: requests are acknowledged and not mirrored")
    return EX_FAILED if any(result.error for result in results) else 0


def _settings_reader(given: Mapping[str, Any]) -> "partial[MirrorSettings]":
    """Return a function that loads the mirror's settings from the options or from the file."""
    path = given["config"]
    if path is None:
        return partial(_with_options, MirrorSettings(_targets(given)), given)
    for option in TARGET_OPTIONS:
        if given[option.name] not in (None, False, []):
            raise ConfigurationError(f"{option.flag}: with --config, set this in {path!r}")
    return partial(_load_file, path, given)


def _load_file(path: str, given: Mapping[str, Any]) -> MirrorSettings:
    return _with_options(read_config(path), given)


def _with_options(settings: MirrorSettings, given: Mapping[str, Any]) -> MirrorSettings:
    """Return the settings, overridden by the given options."""
    log: dict[str, Any] = {
        name: value
        for name, value in (
            ("format", given["log_format"]),
            ("sample", given["log_sample"]),
            ("path", given["access_log"]),
            ("quiet", given["quiet"] or None),
            ("buffered", False if given["logfile"] and given["logfile"].line_buffered else None),
        )
        if value is not None
    }
    changes = {
        name: value
        for name, value in (
            ("drain", given["drain"]),
            ("processing_delay", given["processing_delay"]),
        )
        if value is not None
    }
    return structs.replace(settings, log=structs.replace(settings.log, **log), **changes)


def _targets(given: Mapping[str, Any]) -> tuple[TargetSettings, ...]:
    urls: list[TargetURL] = given["mirror_url"]
    shown = [str(url) for url in urls]
    for index, url in enumerate(shown):
        if url in shown[:index]:
            raise ConfigurationError(
                f"--mirror-url: {url} is given twice; in a file (--config), two targets with "
                "different names may have one URL"
            )
    names = ("http", "sample", "host", "marker", "truncated", "truncated_suspect")
    described = {name: given[name] for name in names}
    described["interface"] = given["mirror_interface"]
    described["local_ports"] = given["mirror_local_port"]
    described["tls"] = TlsSettings(verify=not given["insecure"])
    described = {name: value for name, value in described.items() if value is not None}
    return tuple(TargetSettings(url=url, **described) for url in urls)


def _server_settings(given: Mapping[str, Any], mirror: MirrorSettings) -> ServerSettings:
    settings = watching(server_settings(given), given)
    queues = mirror.drain if mirror.targets else 0.0
    return replace(settings, drain=replace(settings.drain, resources=queues))


if __name__ == "__main__":
    sys.exit(main())
