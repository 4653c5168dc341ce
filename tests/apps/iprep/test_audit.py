import asyncio
import json
import os
import resource
import time
from collections.abc import Awaitable, Callable
from datetime import datetime
from ipaddress import IPv4Address, ip_network
from pathlib import Path
from typing import Any

import pytest

from spoakit.apps.iprep.audit import AuditLog
from spoakit.apps.iprep.bans import Ban
from spoakit.apps.iprep.config.schema import AuditSettings
from spoakit.apps.iprep.metrics import AUDIT_LOST
from spoakit.apps.iprep.scoring.policy import Rule, Verdict
from spoakit.exceptions import ConfigurationError
from spoakit.metrics.memory import SharedMetrics, WorkerMetrics
from tests.support.waiting import TIMEOUT, until

Scenario = Callable[[AuditLog, WorkerMetrics], Awaitable[None]]
ADDRESS = IPv4Address("192.0.2.7")
UNTIL = 1764080000.0
BAN = Ban(ip_network("192.0.2.0/24"), 5, UNTIL, "too many logins")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "audit.log"


def run(path: Path, scenario: Scenario, **settings: Any) -> list[dict[str, Any]]:
    """Run a scenario; return the lines behind it, with their times and workers checked."""
    start = time.time()

    async def audited() -> None:
        row = SharedMetrics(2).worker(1)
        audit = AuditLog(AuditSettings(str(path), **settings), row)
        try:
            await asyncio.wait_for(scenario(audit, row), TIMEOUT)
        finally:
            audit.close()

    asyncio.run(audited())
    lines = [json.loads(line) for line in path.read_text().splitlines() if line]
    for line in lines:
        assert start - 1 < datetime.fromisoformat(line.pop("time")).timestamp() < time.time() + 1
        assert line.pop("worker") == 2
    return lines


def test_bans_and_their_ends_have_a_line(path: Path) -> None:
    async def scenario(audit: AuditLog, row: WorkerMetrics) -> None:
        audit.ban(BAN, "command", 1000)
        audit.unban(BAN, 0)
        audit.expire(BAN)  # as each end is seen, that of a command, too
        audit.ban(BAN, "message")
        audit.expire(BAN)

    ban = {"address": "192.0.2.0/24", "score": 5}
    more = {"until": "2025-11-25T14:13:20.000Z", "reason": "too many logins"}
    assert run(path, scenario) == [
        {"event": "ban", "by": "command", "user": 1000, **ban, **more},
        {"event": "unban", "by": "command", "user": 0, **ban},
        {"event": "ban", "by": "message", **ban, **more},
        {"event": "unban", "by": "expiry", **ban},
    ]


def test_verdicts_below_the_threshold_have_a_line(path: Path) -> None:
    async def scenario(audit: AuditLog, row: WorkerMetrics) -> None:
        for score in (0, 19, 20, 100):
            verdict = Verdict(score, Rule.LOWEST, "mine", "spam")
            assert audit.has(verdict) == (score < 20)
            if audit.has(verdict):
                audit.verdict(ADDRESS, verdict, 64500, "")

    common = {"rule": "lowest", "source": "mine", "category": "spam", "asn": 64500}
    assert run(path, scenario, threshold=20) == [
        {"event": "verdict", "address": "192.0.2.7", "score": score, **common} for score in (0, 19)
    ]


@pytest.mark.parametrize(("sample", "low", "high"), [(0, 0, 0), (10, 700, 1300), (100, 9000, 9000)])
def test_a_sample_of_the_verdicts_has_lines(path: Path, sample: int, low: int, high: int) -> None:
    verdict = Verdict(0, Rule.BAN)

    async def scenario(audit: AuditLog, row: WorkerMetrics) -> None:
        assert audit.has(verdict) == (sample > 0)
        for _ in range(9000 if audit.has(verdict) else 0):
            audit.verdict(ADDRESS, verdict, None, "")

    assert low <= len(run(path, scenario, threshold=1, sample=sample)) <= high


def test_lines_are_written_without_further_ones(path: Path) -> None:
    async def scenario(audit: AuditLog, row: WorkerMetrics) -> None:
        audit.ban(BAN, "command", 0)
        await until(path.read_text)
        assert path.read_text().count("\n") == 1

    assert len(run(path, scenario)) == 1


def test_the_file_is_reopened_by_its_name(path: Path) -> None:
    rotated = path.with_suffix(".1")

    async def scenario(audit: AuditLog, row: WorkerMetrics) -> None:
        audit.ban(BAN, "command", 1)
        path.rename(rotated)
        audit.ban(BAN, "command", 2)
        audit.reopen()
        audit.ban(BAN, "command", 3)
        path.unlink()
        path.mkdir()
        with pytest.raises(ConfigurationError, match=r"audit log '.*' cannot be opened: Is a dir"):
            audit.reopen()
        path.rmdir()
        audit.reopen()
        audit.ban(BAN, "command", 4)

    assert [line["user"] for line in run(path, scenario)] == [4]
    assert [json.loads(line)["user"] for line in rotated.read_text().splitlines()] == [1, 2]


def test_lines_that_cannot_be_written_are_counted_and_hold_up_nobody(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    async def scenario(audit: AuditLog, row: WorkerMetrics) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10, before[1]))  # as on a full disk
        try:
            for _ in range(3):
                audit.ban(BAN, "command", 0)
            await until(lambda: row.totals(AUDIT_LOST) == {(): 3})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        os.truncate(path, 0)

    assert run(path, scenario) == []
    assert "audit log: 3 lines could not be written so far" in caplog.text
