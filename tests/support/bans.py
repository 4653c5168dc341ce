"""Bans for tests, and loops to keep them in."""

import asyncio
import sqlite3
from collections.abc import Callable, Coroutine
from contextlib import closing
from ipaddress import IPv4Address, ip_network
from pathlib import Path
from typing import Any, TypeVar

from spoakit.apps.iprep.bans import Ban, BanStore
from tests.support.waiting import until

T = TypeVar("T")

ADDRESS = IPv4Address("192.0.2.7")


def ban(network: str = "192.0.2.7", until: float = 1e12, score: int = 0, reason: str = "") -> Ban:
    return Ban(ip_network(network), score, until, reason)


def done(waited: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(waited)


def names(path: Path) -> set[str]:
    """Return whom the file has bans of, those that have ended among them."""
    with closing(sqlite3.connect(path)) as db:
        rows = db.execute("SELECT network FROM bans").fetchall()
    return {network.removesuffix("/32") for (network,) in rows}


async def follow_until(store: BanStore, condition: Callable[[], object]) -> None:
    following = asyncio.create_task(store.follow())
    try:
        await until(condition)
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
