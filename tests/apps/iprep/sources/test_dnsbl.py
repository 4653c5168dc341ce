import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from ipaddress import ip_address
from typing import Any, TypeAlias

import pytest
import uvloop
from tests.dns_server import SERVFAIL, NameServer, name_server

from spoakit.apps.iprep.config.settings import DnsblSettings, SourceSettings
from spoakit.apps.iprep.scoring.policy import Listing, SourceResult, score_of
from spoakit.apps.iprep.sources.dnsbl import Dnsbl, reversed_name
from spoakit.metrics.memory import SharedMetrics

Run: TypeAlias = Callable[[Coroutine[Any, Any, None]], None]
ADDRESS = ip_address("192.0.2.7")
NAME = "7.2.0.192.bl.example"


@pytest.fixture(params=["uvloop", "asyncio"])
def run(request: pytest.FixtureRequest) -> Run:
    """Run a coroutine in an event loop of each kind."""
    factory = uvloop.new_event_loop if request.param == "uvloop" else asyncio.new_event_loop

    def run(coroutine: Coroutine[Any, Any, None]) -> None:
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(asyncio.wait_for(coroutine, 30))

    return run


@asynccontextmanager
async def asking(**settings: Any) -> AsyncIterator[tuple[Dnsbl, NameServer]]:
    async with name_server() as server:
        dnsbl = Dnsbl(
            SourceSettings(
                "bl",
                "dnsbl",
                score=50,
                scores=(("127.0.0.2", 10), ("127.0.0.3", 70)),
                dnsbl=DnsblSettings(
                    "bl.example", nameservers=(server.address,), **({"deadline": 5} | settings)
                ),
            ),
            SharedMetrics(1).worker(0),
        )
        try:
            yield dnsbl, server
        finally:
            await dnsbl.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.002)


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


@pytest.mark.parametrize("code", ["127.255.255.254", "127.255.255.255", "192.0.2.1"])
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
