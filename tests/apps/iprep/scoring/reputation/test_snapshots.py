"""Databases of a `Reputation`, and snapshots that replace each other."""

import asyncio
import itertools
import logging
import time
from ipaddress import ip_address
from pathlib import Path

import msgspec
import pytest

from spoakit.apps.iprep.config.sources import SourceSettings
from spoakit.apps.iprep.scoring import reputation as reputation_module
from spoakit.apps.iprep.snapshot.manifest import Snapshot, encode, manifest_of
from tests.support.iprep_sources import database, mine, put, write_database
from tests.support.reputation_site import Site, in_use, run
from tests.support.waiting import until

pytestmark = pytest.mark.slow


def test_databases_say_whose_addresses_they_are(site: Site) -> None:
    asn, country = site.root / "asn.mmdb", site.root / "country.mmdb"
    write_database(asn, {"8.8.8.0/24": 64500, "9.9.9.0/24": 2**32, "7.7.7.0/24": "AS1"})
    write_database(country, {"8.8.0.0/16": "US", "9.9.0.0/16": "XX"})
    site.build(
        database(asn, "asn", "asn"),
        database(country, "country", "country", scores=(("XX", 30),)),
    )
    finding = site.find("::ffff:8.8.8.8")
    assert (finding.asn, finding.country, finding.verdict.score) == (64500, "US", 100)
    finding = site.find("9.9.9.9")  # a number that no network can have is none
    assert (finding.asn, finding.country, finding.verdict.score) == (None, "XX", 30)
    assert finding.verdict.category == "XX"
    finding = site.find("7.7.7.7")
    assert (finding.asn, finding.country) == (1, "")


def test_networks_numbers_are_listed_by_a_database_that_knows_them(site: Site) -> None:
    asn = site.root / "asn.mmdb"
    write_database(asn, {"8.8.8.0/24": 64500, "9.9.9.0/24": 64501})
    path = site.file(
        "drop.json", '{"asn": 64500, "rir": "x"}\n{"cidr": "7.7.7.0/24"}\n{"type": "metadata"}\n'
    )
    drop = SourceSettings("drop", "drop", str(path))
    site.build(drop)
    assert site.score("8.8.8.8") == 100
    assert site.score("7.7.7.7") == 0
    site.build(drop, database(asn, "asn"))
    assert site.find("8.8.8.8").verdict.source == "drop"
    assert site.score("8.8.8.8") == 0
    assert site.score("9.9.9.9") == 100
    assert site.score("7.7.7.7") == 0


def test_a_database_is_replaced_while_it_is_used(site: Site) -> None:
    path = site.root / "country.mmdb"
    source = database(path, "country")

    async def scenario() -> None:
        write_database(path, {"8.8.8.0/24": "US"})
        site.build(source)
        async with site.used() as reputation:
            for country in ("DE", "FR", "NL"):
                write_database(path, {"8.8.8.0/24": country})
                await in_use(reputation, site.build(source))
                assert reputation.find(ip_address("8.8.8.8")).country == country
            put(path, b"damaged")
            await in_use(reputation, site.build(source))
            assert reputation.find(ip_address("8.8.8.8")).country == "NL"

    run(scenario)


def test_a_new_edition_is_used_at_once(site: Site) -> None:
    async def scenario() -> None:
        site.build(mine(site.file("a", "8.8.8.8\n")))
        async with site.used() as reputation:
            snapshot = site.build(mine(site.file("a", "9.9.9.9\n")))
            start = time.monotonic()
            await in_use(reputation, snapshot)
            assert time.monotonic() - start < 2  # 0.1 s on a machine that has time
            assert reputation.find(ip_address("9.9.9.9")).verdict.score == 0
            assert reputation.find(ip_address("8.8.8.8")).verdict.score == 100

    run(scenario)


def test_an_edition_that_is_damaged_leaves_the_one_in_use(
    site: Site, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reputation_module, "_RETRY_INTERVAL", 0.02)
    source = mine(site.file("a", "8.8.8.8\n"))

    async def scenario() -> None:
        snapshot = site.build(source)
        async with site.used() as reputation:
            put(manifest_of(site.folder), b"{")
            await until(lambda: "snapshot.json is damaged" in caplog.text)
            assert reputation.find(ip_address("8.8.8.8")).verdict.score == 0
            snapshot = site.build(source)
            await in_use(reputation, snapshot)
            put(site.folder / "table-99", b"damaged")
            other = msgspec.structs.replace(snapshot, table="table-99")
            put(manifest_of(site.folder), encode(other))
            await until(lambda: "is no reputation table" in caplog.text)
            await asyncio.sleep(0.2)
            snapshot = site.build(source)
            await in_use(reputation, snapshot)

    run(scenario)
    for text in ("snapshot.json is damaged", "is no reputation table"):
        assert caplog.text.count(text) <= 1  # and not with each attempt


def test_an_error_that_nobody_expected_does_not_end_the_following(
    site: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(reputation_module, "_RETRY_INTERVAL", 0.02)
    source = mine(site.file("a", "8.8.8.8\n"))

    async def scenario() -> None:
        site.build(source)
        async with site.used() as reputation:
            with monkeypatch.context() as patched:
                patched.setattr(reputation_module, "read_snapshot", _fail)
                snapshot = site.build(source)
                await until(lambda: "out of memory" in caplog.text)
            await in_use(reputation, snapshot)

    run(scenario)


def _fail(_: Path) -> Snapshot:
    raise MemoryError("out of memory")


def test_editions_are_swapped_whole(site: Site) -> None:
    """While two states alternate, each lookup sees one of them and never a mix.

    They differ in the table, the database, the order of the sources, and the policy.
    """
    path = site.root / "country.mmdb"
    a, b = site.file("a", "8.8.8.8\n"), site.file("b", "8.8.8.8\n")
    states = itertools.cycle(("one", "two"))

    def build(state: str) -> Snapshot:
        write_database(path, {"8.8.8.0/24": state})
        lists = [mine(a, f"{state}-a", score=10), mine(b, f"{state}-b", score=20)]
        if state == "two":
            lists.reverse()
        return site.build(*lists, database(path, "country", f"{state}-db"), unknown=len(state))

    async def scenario() -> None:
        build(next(states))
        seen: list[str] = []
        async with site.used() as reputation:
            building = asyncio.create_task(_alternate())
            while not building.done():
                finding = reputation.find(ip_address("8.8.8.8"))
                names = {say.source.name.partition("-")[0] for say in finding.verdict.results}
                assert names == {finding.country}
                assert finding.verdict.source == f"{finding.country}-a"
                if not seen or seen[-1] != finding.country:
                    seen.append(finding.country)
                await asyncio.sleep(0)
            await building
        assert len(seen) > 3

    async def _alternate() -> None:
        for _ in range(5):
            await asyncio.to_thread(build, next(states))
            await asyncio.sleep(0.12)

    run(scenario)


def test_what_is_kept_of_findings_is_bounded(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reputation_module, "_MAX_KEPT", 10)
    path = site.root / "db.mmdb"
    write_database(path, {f"8.8.{number}.0/24": f"value {number}" for number in range(50)})

    async def scenario() -> None:
        site.build(database(path, "country"))
        async with site.used() as reputation:
            for number in [*range(50), *range(50)]:
                found = reputation.find(ip_address(f"8.8.{number}.1"))
                assert found.country == f"value {number}"
                assert len(reputation.snapshot._findings) <= 10
            assert reputation.find(ip_address("8.8.49.7")) is found  # it is kept, though

    run(scenario)


def test_a_damaged_database_is_said_and_the_source_failed(
    site: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = site.root / "db.mmdb"
    write_database(path, {"8.8.8.0/24": "US"})
    [report] = site.build(database(path, "country", failed="closed", score=20)).reports
    content = bytearray(path.read_bytes())
    start = content.index(b"value") - 1  # the data of the only record
    content[start : start + 6] = b"\xff" * 6
    put(site.folder / report.file, bytes(content))  # after it was checked
    caplog.set_level(logging.ERROR)
    assert site.score("8.8.8.8") == 20
    assert "source db: it is damaged" in caplog.text
