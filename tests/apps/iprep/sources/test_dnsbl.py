import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from ipaddress import ip_address
from typing import Any, TypeAlias

import pytest
import uvloop

from spoakit.apps.iprep.config.schema import PolicySettings
from spoakit.apps.iprep.config.sources import DnsblSettings, Failed, SourceSettings
from spoakit.apps.iprep.metrics import DNSBL_OUT, DNSBL_TESTS
from spoakit.apps.iprep.scoring.policy import Listing, Policy, SourceResult, score_of
from spoakit.apps.iprep.sources import dnsbl as dnsbl_module
from spoakit.apps.iprep.sources.dnsbl import Dnsbl, reversed_name
from spoakit.metrics.memory import SharedMetrics
from tests.support.dns_server import SERVFAIL, NameServer, name_server
from tests.support.waiting import TIMEOUT, until

Run: TypeAlias = Callable[[Coroutine[Any, Any, None]], None]
ADDRESS = ip_address("192.0.2.7")
NAME = "7.2.0.192.bl.example"
LISTED = "2.0.0.127.bl.example"
UNLISTED = "1.0.0.127.bl.example"
V6 = ".0.0.0.f.7.f.f.f.f" + ".0" * 20 + ".bl.example"


@pytest.fixture(params=["uvloop", "asyncio"])
def run(request: pytest.FixtureRequest) -> Run:
    """Run a coroutine in an event loop of each kind."""
    factory = uvloop.new_event_loop if request.param == "uvloop" else asyncio.new_event_loop

    def run(coroutine: Coroutine[Any, Any, None]) -> None:
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(asyncio.wait_for(coroutine, 2 * TIMEOUT))

    return run


@asynccontextmanager
async def asking(
    answers: dict[str, list[str] | int] | None = None, failed: Failed = "open", **settings: Any
) -> AsyncIterator[tuple[Dnsbl, NameServer]]:
    async with name_server() as server:
        server.answers.update(answers or {})
        dnsbl = Dnsbl(
            SourceSettings(
                "bl",
                "dnsbl",
                score=50,
                scores=(("127.0.0.2", 10), ("127.0.0.3", 70)),
                failed=failed,
                dnsbl=DnsblSettings(
                    "bl.example",
                    nameservers=(server.address,),
                    **({"deadline": 5, "test": None} | settings),
                ),
            ),
            SharedMetrics(1).worker(0),
        )
        try:
            yield dnsbl, server
        finally:
            await dnsbl.close()


def test_addresses_are_asked_for_reversed() -> None:
    assert reversed_name(4, int(ADDRESS)) == "7.2.0.192"
    name = reversed_name(6, int(ip_address("2001:db8::1")))
    assert name == "1" + ".0" * 23 + ".8.b.d.0.1.0.0.2"


def test_an_address_is_listed_or_absent_and_both_are_kept(run: Run) -> None:
    async def scenario() -> None:
        async with asking() as (dnsbl, server):
            server.answers[NAME] = ["127.0.0.3", "127.0.0.2"]
            for _ in range(3):
                say = await dnsbl.ask(ADDRESS)
                assert (say.state, say.category, score_of(say)) == (Listing.LISTED, "127.0.0.2", 10)
                assert (await dnsbl.ask(ip_address("::1"))).state is Listing.ABSENT
            assert len(server.asked) == 2
            assert dnsbl.known(ADDRESS) == say

    run(scenario())


@pytest.mark.parametrize(
    "code", ["127.255.255.254", "127.255.255.255", "192.0.2.1", "127.0.0.1", "0.0.0.0"]
)
def test_errors_are_failures_and_never_listings(run: Run, code: str) -> None:
    async def scenario() -> None:
        async with asking() as (dnsbl, server):
            server.answers[NAME] = [code, "127.0.0.2"]
            assert (await dnsbl.ask(ADDRESS)).state is Listing.FAILED
            assert (len(dnsbl), dnsbl.failures) == (0, 1)

    run(scenario())


def test_a_server_that_fails_is_no_answer(run: Run) -> None:
    async def scenario() -> None:
        async with asking() as (dnsbl, server):
            server.answers[NAME] = SERVFAIL
            assert (await dnsbl.ask(ADDRESS)).state is Listing.FAILED

    run(scenario())


def test_who_asks_waits_no_longer_than_the_deadline_and_late_answers_are_kept(run: Run) -> None:
    async def scenario() -> None:
        async with asking(deadline=0.02) as (dnsbl, server):
            server.answers[NAME] = ["127.0.0.2"]
            server.silent = True
            assert (await dnsbl.ask(ADDRESS)).state is Listing.FAILED
            assert dnsbl.late == 1
            server.speak()
            await until(lambda: dnsbl.known(ADDRESS) is not None)

    run(scenario())


def test_an_address_is_asked_for_once_at_a_time(run: Run) -> None:
    async def scenario() -> None:
        async with asking() as (dnsbl, server):
            says: list[SourceResult] = await asyncio.gather(
                *(dnsbl.ask(ADDRESS) for _ in range(20))
            )
            assert {say.state for say in says} == {Listing.ABSENT}
            assert (len(server.asked), dnsbl.asked) == (1, 1)

    run(scenario())


def test_too_many_questions_are_refused(run: Run) -> None:
    async def scenario() -> None:
        async with asking(max_pending=2, deadline=0.02) as (dnsbl, server):
            server.silent = True
            await asyncio.gather(*(dnsbl.ask(ip_address(number)) for number in range(5)))
            assert (dnsbl.asked, dnsbl.refused) == (2, 3)

    run(scenario())


def test_answers_are_kept_for_a_bounded_time_and_in_a_bounded_number(run: Run) -> None:
    async def scenario() -> None:
        async with asking(cache_size=3, min_ttl=0.0, max_ttl=0.01) as (dnsbl, server):
            server.answers[NAME] = ["127.0.0.2"]
            await dnsbl.ask(ADDRESS)
            await until(lambda: dnsbl.known(ADDRESS) is None)
            for number in range(10):
                await dnsbl.ask(ip_address(number))
            assert len(dnsbl) <= 3

    run(scenario())


def test_a_dnsbl_that_fails_is_left_alone_for_a_while(run: Run) -> None:
    async def scenario() -> None:
        async with asking() as (dnsbl, server):
            for number in range(12):
                server.answers[f"{number}.0.0.0.bl.example"] = ["127.255.255.254"]
                assert (await dnsbl.ask(ip_address(number))).state is Listing.FAILED
            assert (dnsbl.asked, dnsbl.refused) == (10, 2)
            server.answers.clear()
            async with asyncio.timeout(10):
                while (await dnsbl.ask(ADDRESS)).state is Listing.FAILED:
                    await asyncio.sleep(0.02)

    run(scenario())


def test_a_key_goes_before_the_address_and_is_not_shown(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")

    async def scenario() -> None:
        async with asking(key="hush", test="127.0.0.2") as (dnsbl, server):
            server.answers[f"hush.{NAME}"] = SERVFAIL
            server.answers[f"hush.{LISTED}"] = ["127.0.0.2"]
            assert (await dnsbl.ask(ADDRESS)).state is Listing.FAILED
            assert f"hush.{NAME}" in server.asked
            assert all(name.startswith("hush.") for name in server.asked)
            assert "hush" not in dnsbl.error

    run(scenario())
    assert "hush" not in caplog.text


# --- the self-test -----------------------------------------------------------------------

GOOD: dict[str, list[str] | int] = {LISTED: ["127.0.0.2"]}


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have zones tested all the time."""
    monkeypatch.setattr(dnsbl_module, "_TEST_INTERVAL", 0.01)
    monkeypatch.setattr(dnsbl_module, "_RETEST_INTERVAL", 0.01)


def test_a_zone_that_passes_is_used_and_was_tested_first(run: Run) -> None:
    async def scenario() -> None:
        async with asking(GOOD | {NAME: ["127.0.0.2"]}, test="127.0.0.2") as (dnsbl, server):
            assert (await dnsbl.ask(ADDRESS)).state is Listing.LISTED
            assert set(server.asked[:2]) == {LISTED, UNLISTED}
            assert server.asked[2:] == [NAME]
            assert (dnsbl.fault, dnsbl.asked) == ("", 1)

    run(scenario())


@pytest.mark.parametrize("failed", ["open", "closed"])
@pytest.mark.parametrize(
    ("answers", "fault"),
    [
        # All names exist, as where a zone was given up.
        ({LISTED: ["127.0.0.2"], UNLISTED: ["127.0.0.2"]}, "it lists 127.0.0.1, which no DNSBL"),
        # One clear answer is enough.
        ({LISTED: SERVFAIL, UNLISTED: ["127.0.0.2"]}, "it lists 127.0.0.1, which no DNSBL"),
        ({}, "it does not list 127.0.0.2; if the zone is right, set 'test'"),
        ({UNLISTED: SERVFAIL}, "it does not list 127.0.0.2"),
        # A resolver that blocks advertisements, a parked domain.
        ({LISTED: ["127.0.0.1"], UNLISTED: ["127.0.0.1"]}, "it does not list 127.0.0.2"),
        ({LISTED: ["192.0.2.1"], UNLISTED: ["192.0.2.1"]}, "it does not list 127.0.0.2"),
    ],
)
def test_a_zone_that_fails_its_test_lists_nobody(
    run: Run,
    caplog: pytest.LogCaptureFixture,
    answers: dict[str, list[str] | int],
    fault: str,
    failed: Failed,
) -> None:
    async def scenario() -> None:
        listing: dict[str, list[str] | int] = {NAME: ["127.0.0.2"]}
        async with asking(answers | listing, failed, test="127.0.0.2") as (dnsbl, server):
            for _ in range(3):
                result = await dnsbl.ask(ADDRESS)
                assert result.state is Listing.OUT
                assert not Policy(PolicySettings()).judge([result]).source
            assert dnsbl.error.startswith(fault)
            assert NAME not in server.asked

    run(scenario())
    text = "source bl: it fails its self-test and lists nobody until it passes: "
    assert caplog.text.count(f"{text}{fault}") == 1


@pytest.mark.parametrize("answer", [SERVFAIL, ["127.255.255.254"]])
def test_only_a_clear_answer_counts(run: Run, answer: list[str] | int) -> None:
    async def scenario() -> None:
        answers: dict[str, list[str] | int] = {LISTED: answer, UNLISTED: answer}
        async with asking(answers | {NAME: ["127.0.0.2"]}, test="127.0.0.2") as (dnsbl, _):
            assert (await dnsbl.ask(ADDRESS)).state is Listing.LISTED
            assert dnsbl.fault == ""

    run(scenario())


def test_who_asks_before_the_first_test_waits_for_it_up_to_the_deadline(run: Run) -> None:
    async def scenario() -> None:
        async with asking(GOOD, deadline=0.02, test="127.0.0.2") as (dnsbl, server):
            server.answers[NAME] = ["127.0.0.2"]
            server.silent_names = {UNLISTED}
            assert (await dnsbl.ask(ADDRESS)).state is Listing.FAILED
            assert NAME not in server.asked
            server.speak()
            await until(lambda: dnsbl.known(ADDRESS) is not None)

    run(scenario())


@pytest.mark.usefixtures("often")
def test_a_zone_goes_out_and_comes_back_and_both_are_logged_once(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with asking(GOOD | {NAME: ["127.0.0.2"]}, test="127.0.0.2") as (dnsbl, server):
            server.ttl = 0  # or the resolver answers by itself
            assert (await dnsbl.ask(ADDRESS)).state is Listing.LISTED
            server.answers[UNLISTED] = ["127.0.0.2"]
            await until(lambda: dnsbl.fault)
            assert (await dnsbl.ask(ADDRESS)).state is Listing.OUT
            assert len(dnsbl) == 0
            # Nothing that is not clear takes it in again.
            server.answers[UNLISTED] = SERVFAIL
            asked = len(server.asked)
            await until(lambda: len(server.asked) > asked + 6)
            assert dnsbl.fault
            del server.answers[UNLISTED]
            await until(lambda: not dnsbl.fault)
            assert (await dnsbl.ask(ADDRESS)).state is Listing.LISTED

    run(scenario())
    assert caplog.text.count("it fails its self-test") == 1
    assert caplog.text.count("it passes its self-test again and is in use") == 1


@pytest.mark.usefixtures("often")
def test_an_answer_on_its_way_does_not_count_if_the_zone_is_found_out(run: Run) -> None:
    async def scenario() -> None:
        async with asking(GOOD | {NAME: ["127.0.0.2"]}, test="127.0.0.2") as (dnsbl, server):
            server.silent_names = {NAME}
            asking_it = asyncio.create_task(dnsbl.ask(ADDRESS))
            await until(lambda: NAME in server.asked)
            server.answers[UNLISTED] = ["127.0.0.2"]
            await until(lambda: dnsbl.fault)
            server.speak()
            assert (await asking_it).state is Listing.OUT

    run(scenario())


def test_zones_of_ipv6_have_addresses_of_their_own(run: Run) -> None:
    async def scenario() -> None:
        answers: dict[str, list[str] | int] = {f"2.0.0{V6}": ["127.0.0.2"]}
        async with asking(answers, test="::FFFF:7F00:2") as (dnsbl, server):
            assert (await dnsbl.ask(ip_address("2001:4860::1"))).state is Listing.ABSENT
            assert set(server.asked[:2]) == {f"2.0.0{V6}", f"1.0.0{V6}"}

    run(scenario())


def test_self_tests_are_counted(run: Run) -> None:
    async def scenario() -> None:
        async with asking(test="127.0.0.2") as (dnsbl, _):
            await dnsbl.ask(ADDRESS)
            row = dnsbl._row
            assert row.get(DNSBL_TESTS, "bl.example", "failed") == 1
            assert row.get(DNSBL_OUT, "bl.example") == 1
        assert row.get(DNSBL_OUT, "bl.example") == 0

    run(scenario())
