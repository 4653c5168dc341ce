"""Check of sources, for `spoa-iprep --check`: files are opened, servers are asked once."""

import asyncio
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from time import perf_counter
from typing import Final

from spoakit.apps.checks import check_writable
from spoakit.apps.iprep.config.schema import ReputationSettings
from spoakit.apps.iprep.config.sources import SourceSettings
from spoakit.apps.iprep.exceptions import SourceError
from spoakit.apps.iprep.scoring.policy import Listing
from spoakit.apps.iprep.sources.dnsbl import Dnsbl
from spoakit.apps.iprep.sources.files import feed_of, refuse_no_file
from spoakit.apps.urls import shown_url
from spoakit.exceptions import ConfigurationError
from spoakit.metrics import SharedMetrics

# Each DNSBL has this one (RFC 5782, 5).
_TEST_ADDRESS: Final = IPv4Address("127.0.0.2")


@dataclass(frozen=True, slots=True)
class CheckResult:
    """Result of the check of one source.

    Attributes:
        source: its settings.
        details: what was found; "" if something is wrong.
        error: what is wrong; "" if nothing is.
    """

    source: SourceSettings
    details: str = ""
    error: str = ""

    def __str__(self) -> str:
        source = self.source
        zone = "" if source.dnsbl is None else source.dnsbl.zone
        place = source.path or shown_url(source.url or "") or zone
        result = f"failed: {self.error}" if self.error else f"ok: {self.details}"
        return f"source {source.name}: {place} {result}"


def check_files(settings: ReputationSettings) -> None:
    """Refuse files and folders that cannot be written, without writing any.

    Raises:
        ConfigurationError: one cannot; the text names the option and the path.
    """
    for option, path in (("bans.path", settings.bans.path), ("audit.path", settings.audit.path)):
        if path is not None:
            check_writable(option, path)
    if settings.cache is not None:
        _check_folder("cache", settings.cache)
    control = settings.control
    if control.path is not None and not control.is_default:
        folder = os.path.dirname(os.path.abspath(control.path))
        if not os.access(folder, os.W_OK | os.X_OK):
            raise ConfigurationError(f"control.path: no permission in {folder!r}, or it is absent")


async def check_sources(settings: ReputationSettings) -> list[CheckResult]:
    """Check all sources at the same time."""
    return await asyncio.gather(
        *(check_source(source, settings.cache) for source in settings.sources)
    )


async def check_source(source: SourceSettings, cache: str | None) -> CheckResult:
    """Check that there is something of a source: a file, a response of its server, or a listing."""
    try:
        if source.dnsbl is not None:
            return await _check_dnsbl(source)
        if source.url is not None:
            return CheckResult(source, await _check_feed(source, cache))
        return CheckResult(source, _check_file(Path(source.path or "")))
    except SourceError as error:
        return CheckResult(source, error=str(error))


def _check_file(path: Path) -> str:
    try:
        refuse_no_file(path)
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
    except OSError as error:
        raise SourceError(f"it cannot be read: {error.strerror or error}") from None
    return f"{size:,} bytes"


async def _check_feed(source: SourceSettings, cache: str | None) -> str:
    feed = feed_of(source, cache)
    assert feed is not None
    start = perf_counter()
    try:
        async with asyncio.timeout(source.feed.timeout):
            status = await _in_thread(feed.probe)
    except TimeoutError:
        raise SourceError(f"no response within {source.feed.timeout:g} s (timeout)") from None
    return f"{status}, {(perf_counter() - start) * 1000:.0f} ms"


async def _in_thread(function: Callable[[], str]) -> str:
    """Run a function in a thread that is not waited for at the end of the process."""
    loop = asyncio.get_running_loop()
    result: asyncio.Future[str] = loop.create_future()

    def run() -> None:
        try:
            value, error = function(), None
        except SourceError as raised:
            value, error = "", raised
        with suppress(RuntimeError):  # the loop has ended: nobody waits
            loop.call_soon_threadsafe(settle, value, error)

    def settle(value: str, error: SourceError | None) -> None:
        if result.cancelled():
            return
        if error is None:
            result.set_result(value)
        else:
            result.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return await result


async def _check_dnsbl(source: SourceSettings) -> CheckResult:
    start = perf_counter()
    dnsbl = Dnsbl(source, SharedMetrics(1).worker(0))
    try:
        result = await dnsbl.ask(_TEST_ADDRESS)
    finally:
        await dnsbl.close()
    took = (perf_counter() - start) * 1000
    if result.state is Listing.LISTED:
        return CheckResult(source, f"{_TEST_ADDRESS} is listed, {took:.0f} ms")
    assert source.dnsbl is not None
    if result.state is Listing.ABSENT:
        error = f"{_TEST_ADDRESS} is not listed, as it is in each DNSBL; check the zone"
    else:
        error = dnsbl.error or f"no answer within {source.dnsbl.deadline:g} s (deadline)"
    return CheckResult(source, error=error)


def _check_folder(option: str, path: str) -> None:
    """Refuse a folder that cannot be written, or made."""
    if os.path.isdir(path):
        if not os.access(path, os.W_OK | os.X_OK):
            raise ConfigurationError(f"{option}: {path!r} cannot be written: no permission")
        return
    parent = Path(path).absolute()
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise ConfigurationError(f"{option}: {path!r} cannot be made in {str(parent)!r}")
