"""The tables of the configuration file, and the settings that they are.

What they do not name is an error; what the values may be, the settings say.
docs/reference/mirror-configuration.md describes the file.
"""

import os
from pathlib import Path
from typing import Any, Final

import msgspec

from spoakit.apps.checks import choice
from spoakit.apps.mirror.config.settings import (
    BODIES,
    HTTP_VERSIONS,
    LOG_FORMATS,
    OVERFLOWS,
    TRUNCATED,
    TRUNCATED_SUSPECT,
    LogSettings,
    MirrorSettings,
    PoolSettings,
    QueueSettings,
    Rewrite,
    Selection,
    TargetSettings,
    Timeouts,
    TlsSettings,
)
from spoakit.apps.mirror.config.units import parse_field, parse_ports
from spoakit.apps.mirror.url import TargetURL
from spoakit.apps.toml import Table, readable_file
from spoakit.apps.values import Seconds, Size
from spoakit.exceptions import ConfigurationError

_SELECTION: Final = Selection()
_REWRITE: Final = Rewrite()
_QUEUE: Final = QueueSettings()
_POOL: Final = PoolSettings()
_TIMEOUTS: Final = Timeouts()
_LOG: Final = LogSettings()
_MIRROR: Final = MirrorSettings()


class _Match(Table, frozen=True):
    methods: tuple[str, ...] = ()
    path: str | None = None
    host: tuple[str, ...] = ()
    header: dict[str, str] = msgspec.field(default_factory=dict)


class _Headers(Table, frozen=True):
    set: dict[str, str] = msgspec.field(default_factory=dict)
    add: dict[str, str] = msgspec.field(default_factory=dict)
    remove: tuple[str, ...] = ()
    secrets: str = "keep"


class _Path(Table, frozen=True):
    strip_prefix: str = ""
    pattern: str | None = None
    replace: str = ""
    add_prefix: str = ""


class _Timeouts(Table, frozen=True):
    connect: Seconds = Seconds(_TIMEOUTS.connect)
    first_byte: Seconds = Seconds(_TIMEOUTS.first_byte)
    total: Seconds = Seconds(_TIMEOUTS.total)
    min_backoff: Seconds = Seconds(_TIMEOUTS.min_backoff)
    max_backoff: Seconds = Seconds(_TIMEOUTS.max_backoff)


class _Queue(Table, frozen=True):
    length: int = _QUEUE.length
    bytes: Size = Size(_QUEUE.bytes)
    overflow: str = _QUEUE.overflow
    max_age: Seconds = Seconds(_QUEUE.max_age)


class _Tls(Table, frozen=True):
    verify: bool = True
    ca_file: str | None = None
    certificate: str | None = None
    key: str | None = None
    server_name: str | None = None


class Log(Table, frozen=True):
    """The access log."""

    format: str = _LOG.format
    sample: float = _LOG.sample
    quiet: bool = _LOG.quiet
    buffered: bool = _LOG.buffered
    path: str | None = None

    def settings(self, folder: Path) -> LogSettings:
        """Return the settings of the access log; the file's name is relative to the folder."""
        log_format = choice("log.format", self.format, LOG_FORMATS)
        path = self.path and os.path.abspath(folder / self.path)
        return LogSettings(log_format, self.sample, self.quiet, self.buffered, path)


class Defaults(Table, frozen=True, kw_only=True):
    """What a target can be told but its URL and its name."""

    http: str = "auto"
    sample: float = _SELECTION.sample
    sample_by: str = _SELECTION.sample_by
    match: _Match = _Match()
    headers: _Headers = _Headers()
    host: str = _REWRITE.host
    path: _Path = _Path()
    marker: str | bool = False
    forwarded_for: bool = _REWRITE.forwarded_for
    request_id: bool = _REWRITE.request_id
    truncated: str = _REWRITE.truncated
    truncated_suspect: str = _REWRITE.truncated_suspect
    body: str = _REWRITE.body
    max_body: Size | None = None
    timeouts: _Timeouts = _Timeouts()
    connections: int = _POOL.connections
    keep_alive: Seconds = Seconds(_POOL.idle)
    lifetime: Seconds = Seconds(_POOL.lifetime)
    interface: str | None = None
    local_ports: str | int | None = None
    queue: _Queue = _Queue()
    rate: float | None = None
    tls: _Tls = _Tls()
    nameservers: tuple[str, ...] = ()

    def target(self, url: TargetURL, name: str, folder: Path) -> TargetSettings:
        """Return the settings of a target; names of files are relative to the folder."""
        return TargetSettings(
            url=url,
            name=name,
            http=choice("http", self.http, HTTP_VERSIONS),
            selection=self._selection(),
            rewrite=self._rewrite(),
            queue=QueueSettings(
                length=self.queue.length,
                bytes=self.queue.bytes,
                overflow=choice("queue.overflow", self.queue.overflow, OVERFLOWS),
                rate=self.rate,
                max_age=self.queue.max_age,
            ),
            pool=PoolSettings(
                connections=self.connections,
                idle=self.keep_alive,
                lifetime=self.lifetime,
                interface=self.interface,
                local_ports=None if self.local_ports is None else parse_ports(self.local_ports),
            ),
            timeouts=Timeouts(
                connect=self.timeouts.connect,
                first_byte=self.timeouts.first_byte,
                total=self.timeouts.total,
                min_backoff=self.timeouts.min_backoff,
                max_backoff=self.timeouts.max_backoff,
            ),
            tls=self._tls(folder),
            nameservers=self.nameservers,
        )

    def _selection(self) -> Selection:
        return Selection(
            sample=self.sample,
            sample_by=self.sample_by,
            methods=self.match.methods,
            path=self.match.path,
            hosts=self.match.host,
            headers=tuple(self.match.header.items()),
        )

    def _rewrite(self) -> Rewrite:
        secrets = choice("headers.secrets", self.headers.secrets, ("keep", "strip"))
        return Rewrite(
            host=self.host,
            remove=self.headers.remove,
            set=tuple(self.headers.set.items()),
            add=tuple(self.headers.add.items()),
            strip_secrets=secrets == "strip",
            strip_prefix=self.path.strip_prefix,
            path_pattern=self.path.pattern,
            path_replacement=self.path.replace,
            add_prefix=self.path.add_prefix,
            marker=self._marker(),
            forwarded_for=self.forwarded_for,
            request_id=self.request_id,
            truncated=choice("truncated", self.truncated, TRUNCATED),
            truncated_suspect=choice(
                "truncated-suspect", self.truncated_suspect, TRUNCATED_SUSPECT
            ),
            body=choice("body", self.body, BODIES),
            max_body=self.max_body,
        )

    def _marker(self) -> tuple[str, str] | None:
        if self.marker is True:
            raise ConfigurationError('marker: true is not a field such as "X-Mirrored: 1"')
        return parse_field("marker", self.marker) if self.marker else None

    def _tls(self, folder: Path) -> TlsSettings:
        return TlsSettings(
            verify=self.tls.verify,
            ca_file=readable_file("tls.ca-file", self.tls.ca_file, folder),
            certificate=readable_file("tls.certificate", self.tls.certificate, folder),
            key=readable_file("tls.key", self.tls.key, folder),
            server_name=self.tls.server_name,
        )


class Target(Defaults, frozen=True, kw_only=True):
    """A target."""

    url: str
    name: str = ""


class File(Table, frozen=True):
    """The whole file. The targets are looked at one by one, with the defaults under them."""

    drain: Seconds = Seconds(_MIRROR.drain)
    processing_delay: Seconds = Seconds(_MIRROR.processing_delay)
    log: Log = Log()
    defaults: dict[str, Any] = msgspec.field(default_factory=dict)
    target: tuple[dict[str, Any], ...] = ()
