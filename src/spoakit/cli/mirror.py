"""spoa-mirror: the options of the C program, and more."""

import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Final

from spoakit.apps.mirror.agent import create_agent, live_settings
from spoakit.apps.mirror.config import read_config
from spoakit.apps.mirror.settings import (
    MirrorSettings,
    PoolSettings,
    Rewrite,
    Selection,
    TargetSettings,
    TlsSettings,
)
from spoakit.apps.mirror.url import TargetURL
from spoakit.cli.mirror_options import OF_TARGETS, MirrorParser, help_text
from spoakit.cli.options import open_standard_streams, read_tls, version
from spoakit.exceptions import ConfigurationError
from spoakit.logs import configure_logging
from spoakit.server import Drain, Hooks, Limits, Listen, ServerSettings, run

logger = logging.getLogger("spoakit.mirror")

_DEFAULTS: Final = ServerSettings()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run spoa-mirror; return its exit code, 64 for a wrong command line."""
    open_standard_streams()
    parser = MirrorParser()
    options = parser.parse_args(arguments)
    if options.help:
        print(help_text())
        return 0
    if options.version:
        print(f"\nspoa-mirror v{version()}\n")
        return 0
    given = parser.read(options)
    try:
        live = live_settings(_settings_reader(given))
        settings = _server_settings(given, live.current)
        hooks = Hooks(reload=live.reload) if given["config"] else Hooks()
        configure_logging(debug=given["debug"] != 0)
        if not live.current.targets:
            logger.warning("without a URL (-u) requests are acknowledged and not mirrored")
        return run([create_agent(live)], settings, hooks)
    except ConfigurationError as error:
        parser.error(str(error))


def _settings_reader(given: Mapping[str, Any]) -> "partial[MirrorSettings]":
    """Return what reads the mirror's settings, from the options or again and again from a file."""
    path = given["config"]
    if path is None:
        if given["watch"]:
            raise ConfigurationError("--watch: there is nothing to watch without --config")
        return partial(_with_options, MirrorSettings(_targets(given)), given)
    for option in OF_TARGETS:
        if given[option.name] not in (None, False, []):
            raise ConfigurationError(
                f"{option.flag}: with --config, {path!r} is where targets are described"
            )
    return partial(_read_file, path, given)


def _read_file(path: str, given: Mapping[str, Any]) -> MirrorSettings:
    return _with_options(read_config(path), given)


def _with_options(settings: MirrorSettings, given: Mapping[str, Any]) -> MirrorSettings:
    """Let the options that were given prevail."""
    log: dict[str, Any] = {
        name: value
        for name, value in (
            ("format", given["log_format"]),
            ("sample", given["log_sample"]),
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
    return replace(settings, log=replace(settings.log, **log), **changes)


def _targets(given: Mapping[str, Any]) -> tuple[TargetSettings, ...]:
    urls: list[TargetURL] = given["mirror_url"]
    for index, url in enumerate(urls):
        if url in urls[:index]:
            raise ConfigurationError(
                f"--mirror-url: {url} is given twice; in a file (--config), two targets with names "
                "of their own may have one URL"
            )
    described = {
        "http": given["http"],
        "selection": _made(Selection, sample=given["sample"]),
        "rewrite": _made(
            Rewrite, host=given["host"], marker=given["marker"], truncated=given["truncated"]
        ),
        "pool": _made(
            PoolSettings,
            interface=given["mirror_interface"],
            local_ports=given["mirror_local_port"],
        ),
        "tls": TlsSettings(verify=not given["insecure"]),
    }
    return tuple(_made(TargetSettings, url=url, **described) for url in urls)


def _made(kind: Any, **fields: Any) -> Any:
    """Make settings from what is given of them."""
    return kind(**{name: value for name, value in fields.items() if value is not None})


def _server_settings(given: Mapping[str, Any], mirror: MirrorSettings) -> ServerSettings:
    frame_size = given["max_frame_size"] or 0
    drain = _DEFAULTS.drain.timeout if given["drain"] is None else given["drain"]
    return ServerSettings(
        listen=Listen(
            given["address"],
            given["port"],
            unix=given["unix"],
            backlog=given["connection_backlog"],
            allow=tuple(given["allow"]),
            tls=read_tls(given["tls_cert"], given["tls_key"], given["tls_ca"]),
        ),
        limits=Limits(
            frame_size=frame_size,
            frame_size_cap=max(frame_size, _DEFAULTS.limits.frame_size_cap),
        ),
        drain=Drain(
            drain, given["drain_checks"], resources=mirror.drain if mirror.targets else 0.0
        ),
        workers=given["num_workers"],
        capabilities=_capabilities(given["capability"]),
        runtime=given["runtime"] or None,
        pidfile=given["pidfile"],
        daemonize=given["daemonize"],
        logfile=given["logfile"],
        monitor=given["monitor_interval"],
        watch=given["config"] if given["watch"] else None,
        loop=given["libev_backend"],
    )


def _capabilities(switches: Sequence[tuple[str, bool]]) -> tuple[str, ...]:
    """Return what is to be announced; of several switches for one, the last counts."""
    wanted = dict.fromkeys(_DEFAULTS.capabilities, True) | dict(switches)
    return tuple(name for name, is_on in wanted.items() if is_on)


if __name__ == "__main__":
    sys.exit(main())
