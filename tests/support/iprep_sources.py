"""What the tests of the service make: sources and databases."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmdb_writer import MMDBWriter
from netaddr import IPSet

from spoakit.apps.iprep.config.sources import (
    DatabaseSettings,
    DnsblSettings,
    FeedSettings,
    Provides,
    SourceSettings,
)


def mine(path: Path, name: str = "mine", **more: Any) -> SourceSettings:
    """Return a list in a file."""
    return SourceSettings(name, "list", str(path), **more)


def feed(url: str, name: str = "feed", timeout: float = 20.0, **more: Any) -> SourceSettings:
    """Return a list that is downloaded."""
    return SourceSettings(name, "list", url=url, feed=FeedSettings(timeout=timeout), **more)


def database(
    path: Path, provides: Provides | None, name: str = "db", field: str = "value", **more: Any
) -> SourceSettings:
    """Return a MaxMind DB in a file, as `write_database` writes it."""
    return SourceSettings(
        name, "mmdb", str(path), database=DatabaseSettings(field, provides), **more
    )


def dnsbl(
    server: str,
    deadline: float = 10.0,
    name: str = "bl",
    test: str | None = None,
    **more: Any,
) -> SourceSettings:
    """Return the DNSBL bl.example at a name server, by default without a self-test."""
    settings = DnsblSettings("bl.example", deadline, (server,), test=test)
    return SourceSettings(name, "dnsbl", dnsbl=settings, **more)


def put(path: Path, content: str | bytes) -> None:
    """Put a file in the place of another one at once."""
    new = path.with_name(f".{path.name}.put")
    new.write_bytes(content.encode() if isinstance(content, str) else content)
    os.replace(new, path)


def write_database(path: Path, values: Mapping[str, object]) -> None:
    """Write a MaxMind DB that has a "value" for networks."""
    writer = MMDBWriter(6, "Test", ipv4_compatible=True)
    for network, value in values.items():
        writer.insert_network(IPSet([network]), {"value": value})
    new = path.with_name(f".{path.name}.put")
    writer.to_db_file(str(new))
    os.replace(new, path)
