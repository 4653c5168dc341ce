"""Audit log: a JSON line for each ban, for each end of one, and for verdicts below a threshold.

Lines are gathered for a moment and written by a thread, see `LogWriter`: no disk holds up the event
loop, and what cannot be written is counted.
"""

import asyncio
import logging
import random
import time
from datetime import UTC, datetime
from typing import Any, Final, Literal

import msgspec

from spoakit import IPAddress
from spoakit.apps.iprep.bans import Ban
from spoakit.apps.iprep.config.schema import AuditSettings
from spoakit.apps.iprep.metrics import AUDIT_LOST
from spoakit.apps.iprep.scoring.policy import Verdict
from spoakit.apps.line_output import BATCH_SIZE, open_lines
from spoakit.apps.line_writer import LogWriter
from spoakit.metrics import CarriedCounts, WorkerMetrics

AUDIT_LOG: Final = "audit log"
"""Its name in errors and reports."""

Origin = Literal["command", "message", "expiry"]
"""Origin of a ban, or of its end."""

_FLUSH_INTERVAL: Final = 0.1
_STANDARD_ERROR: Final = 2
# The end of a ban that a command ended is seen within a minute, see `BanStore`.
_REMEMBER: Final = 120.0

logger = logging.getLogger("spoakit.iprep")


class AuditLog:
    """Audit log of a worker, to be used in a running event loop.

    Args:
        settings: the file, and which verdicts have a line.
        row: the worker's counters.

    Raises:
        ConfigurationError: the file cannot be opened.
    """

    def __init__(self, settings: AuditSettings, row: WorkerMetrics) -> None:
        assert settings.path is not None
        self._settings = settings
        self._row = row
        self._carried = CarriedCounts(row)
        self._lines = bytearray()
        self._timer: asyncio.TimerHandle | None = None
        # Networks whose bans were ended by a command, and when that was.
        self._ended: dict[str, float] = {}
        descriptor = open_lines(AUDIT_LOG, settings.path)
        # Standard error stays open, as the writer's first file must; nothing is written to it.
        self._writer = LogWriter(_STANDARD_ERROR, AUDIT_LOG, logger)
        self._writer.redirect(descriptor)
        row.on_publish(self._collect)

    def ban(self, ban: Ban, origin: Origin, user: int | None = None) -> None:
        """Note a new ban.

        Args:
            ban: the ban.
            origin: where it comes from.
            user: the number of the user who gave the command; None for none.
        """
        self._write("ban", origin, user, ban, until=_shown_time(ban.until), reason=ban.reason)

    def unban(self, ban: Ban, user: int | None = None) -> None:
        """Note the end of a ban by a command."""
        now = time.monotonic()
        self._ended = {name: at for name, at in self._ended.items() if now - at < _REMEMBER}
        self._ended[ban.name] = now
        self._write("unban", "command", user, ban)

    def expire(self, ban: Ban) -> None:
        """Note the end of a ban by its time, unless a command ended it."""
        if self._ended.pop(ban.name, None) is None:
            self._write("unban", "expiry", None, ban)

    def has(self, verdict: Verdict) -> bool:
        """Return whether verdicts like this one have lines, some or all."""
        return verdict.score < self._settings.threshold and self._settings.sample > 0

    def verdict(self, address: IPAddress, verdict: Verdict, asn: int | None, country: str) -> None:
        """Note a verdict, if it is one of the sample."""
        sample = self._settings.sample
        if sample < 100 and random.random() * 100 >= sample:
            return
        facts: dict[str, Any] = {
            "address": str(address),
            "score": verdict.score,
            "rule": verdict.rule.value,
            "source": verdict.source,
            "category": verdict.category,
            "asn": asn,
            "country": country,
        }
        known = {key: value for key, value in facts.items() if value not in ("", None)}
        self._add({"event": "verdict", **known})

    def reopen(self) -> None:
        """Open the file by its name, for further lines.

        Raises:
            ConfigurationError: it cannot be opened; lines go where they went.
        """
        assert self._settings.path is not None
        descriptor = open_lines(AUDIT_LOG, self._settings.path)
        self._flush()
        self._writer.redirect(descriptor)

    def close(self) -> None:
        """Write what is left, for at most a second."""
        self._flush()
        self._row.forget(self._collect)
        self._writer.close()
        self._collect()

    def _write(
        self, event: str, origin: Origin, user: int | None, ban: Ban, **more: object
    ) -> None:
        by = {} if user is None else {"user": user}
        self._add(
            {"event": event, "by": origin, **by, "address": ban.name, "score": ban.score, **more}
        )

    def _add(self, facts: dict[str, Any]) -> None:
        line = {"time": _shown_time(time.time()), **facts, "worker": self._row.index + 1}
        self._lines += msgspec.json.encode(line)
        self._lines += b"\n"
        if len(self._lines) >= BATCH_SIZE:
            self._flush()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_FLUSH_INTERVAL, self._flush)

    def _flush(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._lines:
            self._writer.put(bytes(self._lines))
            self._lines.clear()

    def _collect(self) -> None:
        self._carried.raise_to(AUDIT_LOST, self._writer.dropped)
        self._writer.report()


def _shown_time(seconds: float) -> str:
    """Return a time as RFC 3339 has it, in UTC."""
    shown = datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
    return shown.replace("+00:00", "Z")
