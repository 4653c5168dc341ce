"""A `Reputation` with its files and name server."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from spoakit.apps.iprep.bans import BanStore
from spoakit.apps.iprep.config.schema import PolicySettings, ReputationSettings
from spoakit.apps.iprep.config.sources import SourceSettings
from spoakit.apps.iprep.scoring.reputation import LookupResult, Reputation
from spoakit.apps.iprep.snapshot.builder import build_snapshot
from spoakit.apps.iprep.snapshot.manifest import Snapshot
from spoakit.metrics.memory import SharedMetrics
from tests.support.iprep_sources import put
from tests.support.waiting import TIMEOUT, until


class Site:
    """Where snapshots are made, and who uses them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folder = root / "snapshots"
        self.folder.mkdir()
        self.snapshot: Snapshot | None = None

    def file(self, name: str, content: str) -> Path:
        put(self.root / name, content)
        return self.root / name

    def build(self, *sources: SourceSettings, **policy: Any) -> Snapshot:
        settings = ReputationSettings(sources, PolicySettings(**policy))
        self.snapshot = build_snapshot(self.folder, settings, self.snapshot)
        return self.snapshot

    @asynccontextmanager
    async def used(self, bans: BanStore | None = None) -> AsyncIterator[Reputation]:
        reputation = Reputation(self.folder, bans, SharedMetrics(1).worker(0))
        following = asyncio.create_task(reputation.follow())
        try:
            await asyncio.wait_for(reputation.wait(), TIMEOUT)
            yield reputation
        finally:
            assert not following.done()
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
            await reputation.aclose()

    def find(self, address: str) -> LookupResult:
        """Return what the last snapshot has of an address."""

        async def scenario() -> LookupResult:
            async with self.used() as reputation:
                return reputation.find(ip_address(address))

        return asyncio.run(scenario())

    def score(self, address: str) -> int:
        return self.find(address).verdict.score


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(TIMEOUT):
            await scenario()

    asyncio.run(bounded())


async def in_use(reputation: Reputation, snapshot: Snapshot) -> None:
    await until(lambda: reputation.snapshot.description == snapshot)
