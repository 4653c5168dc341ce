import asyncio
import itertools
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import msgspec
import pytest

from spoakit.apps.iprep.bans import Ban, BanStore
from spoakit.apps.iprep.config.settings import PolicySettings, ReputationSettings, SourceSettings
from spoakit.apps.iprep.scoring import reputation as reputation_module
from spoakit.apps.iprep.scoring.policy import Listing, Rule
from spoakit.apps.iprep.scoring.reputation import LookupResult, Reputation
from spoakit.apps.iprep.snapshot.builder import build_snapshot
from spoakit.apps.iprep.snapshot.manifest import Snapshot, encode, manifest_of
from spoakit.apps.iprep.sources.lists import Columns
from spoakit.metrics.memory import SharedMetrics
from tests.support.dns_server import name_server
from tests.support.iprep_sources import database, dnsbl, mine, put, write_database
from tests.support.waiting import TIMEOUT, until

NAME = "8.8.8.8.bl.example"


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


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


# --- verdicts ----------------------------------------------------------------------------


def test_the_worst_list_with_an_address_decides(site: Site) -> None:
    site.build(
        mine(site.file("a", "8.8.8.0/24\n"), "a", score=40),
        mine(site.file("b", "8.8.8.8\n2001:4860::/32\n"), "b", score=10, category="spam"),
        unknown=90,
    )
    for address, score, source in (
        ("8.8.8.8", 10, "b"),
        ("::ffff:8.8.8.8", 10, "b"),
        ("8.8.8.9", 40, "a"),
        ("2001:4860::1", 10, "b"),
        ("9.9.9.9", 90, ""),
        ("2001:4861::1", 90, ""),
    ):
        verdict = site.find(address).verdict
        assert (verdict.score, verdict.source) == (score, source)
    assert site.find("8.8.8.8").verdict.category == "spam"


def test_weights_are_summed_up(site: Site) -> None:
    site.build(
        mine(site.file("a", "8.8.8.0/24\n"), "a", score=40, weight=0.5),
        mine(site.file("b", "8.8.8.8\n"), "b", score=60, weight=0.25),
        combine="weighted",
    )
    assert site.score("8.8.8.8") == 100 - 30 - 10
    assert site.score("8.8.8.9") == 100 - 30
    assert site.score("9.9.9.9") == 100


def test_entries_have_scores_and_categories_of_their_own(site: Site) -> None:
    path = site.file("abuse.csv", "ip,confidence,kind\n8.8.8.8,90,spam\n9.9.9.9,20,scan\n")
    columns = Columns("ip", None, "confidence", "kind", best=0, worst=100)
    site.build(SourceSettings("abuse", "csv", str(path), columns=columns))
    for address, score, category in (("8.8.8.8", 10, "spam"), ("9.9.9.9", 80, "scan")):
        verdict = site.find(address).verdict
        assert (verdict.score, verdict.category) == (score, category)


def test_who_is_allowed_is_never_blocked(site: Site) -> None:
    site.build(
        mine(site.file("bad", "8.8.8.0/24\n2001:4860::/32\n"), "bad"),
        mine(site.file("good", "8.8.8.8\n"), "good", allow=True),
        allow=("8.8.8.9", "2001:4860::1"),
    )
    for address, source in (("8.8.8.8", "good"), ("8.8.8.9", ""), ("2001:4860::1", "")):
        verdict = site.find(address).verdict
        assert (verdict.score, verdict.rule, verdict.source) == (100, Rule.ALLOW, source)
    assert site.score("8.8.8.7") == 0


@pytest.mark.parametrize("block", [False, True])
def test_private_addresses_are_blocked_only_where_the_policy_says_so(
    site: Site, block: bool
) -> None:
    path = site.file("all", "10.0.0.0/8\nfe80::/10\n192.168.0.0/16\n8.8.8.8\n")
    site.build(mine(path), block_private=block, unknown=70)
    for address in ("10.1.2.3", "::ffff:10.1.2.3", "fe80::1", "192.168.1.1"):
        assert site.score(address) == (0 if block else 70)
    assert site.score("127.0.0.1") == 70
    assert site.score("8.8.8.8") == 0


@pytest.mark.parametrize(("failed", "score"), [("open", 80), ("closed", 20)])
def test_a_list_that_was_never_loaded_fails_open_or_closed(
    site: Site, failed: Any, score: int
) -> None:
    missing = site.root / "missing"
    site.build(mine(missing, score=20, failed=failed), unknown=80)
    finding = site.find("8.8.8.8")
    assert finding.verdict.score == score
    assert finding.verdict.results[0].state is Listing.FAILED
    site.file("missing", "9.9.9.9\n")
    site.build(mine(missing, score=20, failed=failed), unknown=80)
    assert site.score("8.8.8.8") == 80


# --- databases ---------------------------------------------------------------------------


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


# --- snapshots ----------------------------------------------------------------------------


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


# --- DNSBLs ------------------------------------------------------------------------------


def test_what_a_dnsbl_says_counts(site: Site) -> None:
    async def scenario() -> None:
        async with name_server() as server:
            server.answers[NAME] = ["127.0.0.2"]
            site.build(dnsbl(server.address, scores=(("127.0.0.2", 30),)))
            async with site.used() as reputation:
                for address in ("8.8.8.8", "::ffff:8.8.8.8"):
                    finding = await reputation.ask(ip_address(address))
                    assert finding.verdict.score == 30
                    assert finding.verdict.category == "127.0.0.2"
                assert (await reputation.ask(ip_address("9.9.9.9"))).verdict.score == 100
                # A question is not asked where nothing could come of it.
                assert (await reputation.ask(ip_address("10.1.1.1"))).verdict.rule is Rule.PRIVATE
                assert server.asked == [NAME, "9.9.9.9.bl.example"]

    run(scenario)


def at_once(coroutine: Coroutine[Any, Any, LookupResult]) -> LookupResult:
    """Return what a coroutine returns without waiting for anything."""
    try:
        coroutine.send(None)
    except StopIteration as ended:
        found: LookupResult = ended.value
        return found
    coroutine.close()
    pytest.fail("it waits")


def test_nobody_waits_for_a_dnsbl_that_can_change_nothing(site: Site) -> None:
    bans = BanStore(site.root / "bans")

    async def scenario() -> None:
        async with name_server() as server:
            server.silent = True
            site.build(
                mine(site.file("bad", "8.8.8.8\n"), "bad", score=10),
                mine(site.file("good", "9.9.9.9\n"), "good", allow=True),
                dnsbl(server.address, score=10, failed="closed"),
                allow=("1.1.1.1",),
            )
            async with site.used(bans) as reputation:
                reputation.ban_soon(Ban(ip_network("7.7.7.0/24"), 5, time.time() + 100))
                for address, score, rule in (
                    ("8.8.8.8", 10, Rule.LOWEST),
                    ("9.9.9.9", 100, Rule.ALLOW),
                    ("1.1.1.1", 100, Rule.ALLOW),
                    ("10.1.1.1", 100, Rule.PRIVATE),
                    ("7.7.7.7", 5, Rule.BAN),
                ):
                    finding = at_once(reputation.ask(ip_address(address)))
                    assert (finding.verdict.score, finding.verdict.rule) == (score, rule)
                    assert finding.verdict.results[2].state is Listing.NOT_ASKED
                assert server.asked == []

    run(scenario)
    bans.close()


def test_an_answer_that_is_kept_is_given_at_once(site: Site) -> None:
    async def scenario() -> None:
        async with name_server() as server:
            server.answers[NAME] = ["127.0.0.2"]
            site.build(dnsbl(server.address, score=20), dnsbl(server.address, name="other"))
            async with site.used() as reputation:
                for address in ("8.8.8.8", "9.9.9.9"):
                    asked = await reputation.ask(ip_address(address))
                    found = at_once(reputation.ask(ip_address(address)))
                    assert found is asked  # with the actions that it has already
                assert {each.state for each in found.verdict.results} == {Listing.ABSENT}

    run(scenario)


def test_what_one_dnsbl_has_answered_may_decide_without_the_other(site: Site) -> None:
    async def scenario() -> None:
        async with name_server() as server, name_server() as silent:
            server.answers[NAME] = ["127.0.0.2"]
            silent.silent = True
            site.build(dnsbl(server.address), dnsbl(silent.address, 0.01, "silent"))
            async with site.used() as reputation:
                await reputation.ask(ip_address("8.8.8.8"))
                finding = at_once(reputation.ask(ip_address("8.8.8.8")))
                assert finding.verdict.source == "bl"
                assert finding.verdict.results[1].state is Listing.NOT_ASKED

    run(scenario)


def test_a_dnsbl_of_those_to_allow_is_asked_about_who_is_listed(site: Site) -> None:
    async def scenario() -> None:
        async with name_server() as server:
            server.answers[NAME] = ["127.0.0.2"]
            site.build(
                mine(site.file("bad", "8.8.8.8\n9.9.9.9\n")), dnsbl(server.address, allow=True)
            )
            async with site.used() as reputation:
                assert (await reputation.ask(ip_address("8.8.8.8"))).verdict.rule is Rule.ALLOW
                assert (await reputation.ask(ip_address("9.9.9.9"))).verdict.score == 0

    run(scenario)


def test_a_ban_that_comes_while_a_dnsbl_is_asked_counts(site: Site) -> None:
    bans = BanStore(site.root / "bans")

    async def scenario() -> None:
        async with name_server() as server:
            server.silent = True
            site.build(dnsbl(server.address))
            async with site.used(bans) as reputation:
                asking = asyncio.create_task(reputation.ask(ip_address("8.8.8.8")))
                await until(lambda: server.asked)
                reputation.ban_soon(Ban(ip_network("8.8.8.8"), 5, time.time() + 100))
                server.speak()
                assert (await asking).verdict.rule is Rule.BAN

    run(scenario)
    bans.close()


@pytest.mark.parametrize("failed", ["open", "closed"])
def test_a_dnsbl_that_lists_everybody_lists_nobody(site: Site, failed: Any) -> None:
    async def scenario() -> None:
        async with name_server() as server:
            for name in (NAME, "2.0.0.127.bl.example", "1.0.0.127.bl.example"):
                server.answers[name] = ["127.0.0.2"]
            source = dnsbl(server.address, test="127.0.0.2", failed=failed)
            site.build(source)
            async with site.used() as reputation:
                finding = await reputation.ask(ip_address("8.8.8.8"))
                assert finding.verdict.score == 100
                assert finding.verdict.results[0].state is Listing.OUT
                assert "it lists 127.0.0.1" in reputation.dnsbls[source].error

    run(scenario)


def test_a_snapshot_is_used_once_its_dnsbls_are_tested(site: Site) -> None:
    """Or the first clients would wait for the test and for their answer, and miss the deadline."""

    async def scenario() -> None:
        async with name_server() as server:
            server.delay = 0.1
            source = dnsbl(server.address, test="127.0.0.2")
            site.build(source)
            async with site.used() as reputation:
                assert reputation.dnsbls[source].fault
                finding = at_once(reputation.ask(ip_address("8.8.8.8")))
                assert finding.verdict.results[0].state is Listing.OUT

    run(scenario)


def test_a_snapshot_does_not_wait_long_for_a_dnsbl_that_is_silent(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reputation_module, "_TEST_PATIENCE", 0.02)

    async def scenario() -> None:
        async with name_server() as server:
            server.silent = True
            source = dnsbl(server.address, 0.02, test="127.0.0.2", failed="closed", score=20)
            site.build(source)
            start = time.monotonic()
            async with site.used() as reputation:
                assert time.monotonic() - start < 2  # a test without an answer takes longer
                finding = await reputation.ask(ip_address("8.8.8.8"))
                assert (finding.verdict.score, reputation.dnsbls[source].fault) == (20, "")

    run(scenario)


@pytest.mark.parametrize(("failed", "score"), [("open", 100), ("closed", 20)])
def test_a_dnsbl_that_refuses_to_answer_lists_nobody(site: Site, failed: Any, score: int) -> None:
    async def scenario() -> None:
        async with name_server() as server:
            server.answers[NAME] = ["127.255.255.254"]
            source = dnsbl(server.address, score=20, failed=failed)
            site.build(source)
            async with site.used() as reputation:
                finding = await reputation.ask(ip_address("8.8.8.8"))
                assert finding.verdict.score == score
                assert finding.verdict.results[0].state is Listing.FAILED
                assert "127.255.255.254" in reputation.dnsbls[source].error

    run(scenario)


def test_a_dnsbl_that_is_silent_costs_its_deadline(site: Site) -> None:
    async def scenario() -> None:
        async with name_server() as server:
            server.silent = True
            server.answers[NAME] = ["127.0.0.2"]
            source = dnsbl(server.address, 0.05, score=20, failed="closed")
            site.build(source)
            async with site.used() as reputation:
                start = time.monotonic()
                finding = await reputation.ask(ip_address("8.8.8.8"))
                assert time.monotonic() - start < 1.5
                assert finding.verdict.results[0].state is Listing.FAILED
                server.speak()
                await until(lambda: len(reputation.dnsbls[source]))
                finding = await reputation.ask(ip_address("8.8.8.8"))
                assert finding.verdict.results[0].state is Listing.LISTED

    run(scenario)


def test_a_dnsbl_with_the_same_settings_keeps_its_answers(site: Site) -> None:
    async def scenario() -> None:
        async with name_server() as server:
            source = dnsbl(server.address)
            site.build(source)
            async with site.used() as reputation:
                before = reputation.dnsbls[source]
                await reputation.ask(ip_address("8.8.8.8"))
                await in_use(reputation, site.build(source, mine(site.file("a", "9.9.9.9\n"))))
                assert reputation.dnsbls[source] is before
                await reputation.ask(ip_address("8.8.8.8"))
                assert server.asked == [NAME]
                await in_use(reputation, site.build())
                assert reputation.dnsbls == {}
                assert (await reputation.ask(ip_address("8.8.8.8"))).verdict.score == 100

    run(scenario)


def test_a_question_to_a_dnsbl_that_is_removed_has_an_answer(site: Site) -> None:
    async def scenario() -> None:
        async with name_server() as server:
            server.silent = True
            site.build(dnsbl(server.address))
            async with site.used() as reputation:
                asking = asyncio.create_task(reputation.ask(ip_address("8.8.8.8")))
                await until(lambda: server.asked)
                await in_use(reputation, site.build())
                finding = await asking
                assert finding.verdict.results[0].state is Listing.FAILED
                assert finding.verdict.score == 100

    run(scenario)


# --- bans --------------------------------------------------------------------------------


def test_bans_come_before_all_but_who_is_allowed(site: Site) -> None:
    now = 1000.0
    bans = BanStore(site.root / "bans", clock=lambda: now)

    async def scenario() -> None:
        nonlocal now
        site.build(
            mine(site.file("a", "8.8.8.8\n"), score=50),
            mine(site.file("good", "9.9.9.9\n"), "good", allow=True),
        )
        async with site.used(bans) as reputation:

            def score(address: str) -> int:
                return reputation.find(ip_address(address)).verdict.score

            assert score("8.8.8.8") == 50
            for network in ("8.8.8.8", "9.9.9.9", "10.0.0.0/8", "2001:4860::/32"):
                reputation.ban_soon(Ban(ip_network(network), 5, 1060.0))
            for address in ("8.8.8.8", "::ffff:8.8.8.8", "10.1.1.1", "2001:4860::1"):
                assert score(address) == 5
                found = await reputation.ask(ip_address(address))
                assert (found.verdict.rule, found.verdict.score) == (Rule.BAN, 5)
                assert found.ban is not None
            assert score("9.9.9.9") == 100
            now = 1059.999
            assert score("8.8.8.8") == 5
            now = 1060.0
            assert score("8.8.8.8") == 50

    run(scenario)
    bans.close()


def test_an_address_that_carries_one_of_ipv4_is_looked_up_by_both(site: Site) -> None:
    bans = BanStore(site.root / "bans")

    async def scenario() -> None:
        site.build(
            mine(site.file("a", "8.8.8.8\n2002:909:909::/48\n9.9.9.10\n"), score=50),
            mine(site.file("good", "8.8.4.4\n64:ff9b::9.9.9.10\n"), "good", allow=True),
        )
        async with site.used(bans) as reputation:
            for address, score in (
                ("64:ff9b::8.8.8.8", 50),
                ("2002:808:808::1", 50),
                ("2002:909:909::1", 50),  # by itself
                ("64:ff9b::9.9.9.9", 100),
                ("64:ff9b::8.8.4.4", 100),
                ("64:ff9b::9.9.9.10", 100),  # allowed in one of its forms
                ("64:ff9b::10.1.1.1", 100),
                ("64:ff9b:1::8.8.8.8", 100),  # not a translator that the settings name
            ):
                assert reputation.find(ip_address(address)).verdict.score == score
                assert (await reputation.ask(ip_address(address))).verdict.score == score
            await bans.ban(Ban(ip_network("9.9.9.9"), 7, time.time() + 100))
            await bans.ban(Ban(ip_network("8.8.4.4"), 7, time.time() + 100))
            for address, score in (("64:ff9b::9.9.9.9", 7), ("64:ff9b::8.8.4.4", 100)):
                assert reputation.find(ip_address(address)).verdict.score == score

    run(scenario)
    bans.close()


def test_a_ban_is_not_made_again_for_each_request(site: Site) -> None:
    bans = BanStore(site.root / "bans")

    async def scenario() -> None:
        site.build()
        async with site.used(bans) as reputation:
            network, until_then = ip_network("8.8.8.8"), time.time() + 100
            for score, end, kept in (
                (10, 0.0, (10, 0.0)),
                (10, 0.5, (10, 0.0)),
                (20, 0.5, (10, 0.0)),
                (10, 2.0, (10, 2.0)),
                (5, 0.0, (5, 0.0)),
            ):
                reputation.ban_soon(Ban(network, score, until_then + end))
                [ban] = await bans.current()
                assert (ban.score, ban.until - until_then) == pytest.approx(kept)

    run(scenario)
    bans.close()


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
