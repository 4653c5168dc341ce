"""Verdicts of a `Reputation`: lists, weights, allowed and private addresses, bans."""

import time
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from spoakit.apps.iprep.bans import Ban, BanStore
from spoakit.apps.iprep.config.sources import SourceSettings
from spoakit.apps.iprep.scoring.policy import Listing, Rule
from spoakit.apps.iprep.sources.lists import Columns
from tests.support.iprep_sources import mine
from tests.support.reputation_site import Site, run


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
