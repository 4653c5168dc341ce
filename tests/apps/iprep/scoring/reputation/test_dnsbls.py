"""DNSBLs of a `Reputation`: when they are asked, and what counts."""

import asyncio
import time
from collections.abc import Coroutine
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from spoakit.apps.iprep.bans import Ban, BanStore
from spoakit.apps.iprep.scoring import reputation as reputation_module
from spoakit.apps.iprep.scoring.policy import Listing, Rule
from spoakit.apps.iprep.scoring.reputation import LookupResult
from tests.support.dns_server import name_server
from tests.support.iprep_sources import dnsbl, mine
from tests.support.reputation_site import Site, in_use, run
from tests.support.waiting import until

NAME = "8.8.8.8.bl.example"


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
