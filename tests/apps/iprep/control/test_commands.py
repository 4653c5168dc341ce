import asyncio
import json
import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from spoakit.apps.iprep.bans import BanError, BanStore
from spoakit.apps.iprep.config.schema import (
    BanSettings,
    ControlSettings,
    PolicySettings,
    ReputationSettings,
)
from spoakit.apps.iprep.config.sources import SourceSettings
from spoakit.apps.iprep.control.commands import Commands
from spoakit.apps.iprep.control.socket import ControlError, ask, serve_control
from spoakit.apps.iprep.metrics import DNSBL_ANSWERS, DNSBL_FAILING, DNSBL_LOOKUPS
from spoakit.apps.iprep.scoring.reputation import Reputation
from spoakit.apps.iprep.snapshot.builder import build_snapshot
from spoakit.apps.iprep.snapshot.updater import Updater
from spoakit.exceptions import SpoakitError
from spoakit.metrics.memory import SharedMetrics, WorkerMetrics
from tests.support.dns_server import SERVFAIL, name_server
from tests.support.iprep_sources import database, dnsbl, mine, write_database
from tests.support.waiting import TIMEOUT

Ask = Callable[..., Awaitable[dict[str, Any]]]
Scenario = Callable[[Ask], Awaitable[None]]


class Site:
    """A service of one process whose sources do not change."""

    other: WorkerMetrics
    """The counters of another worker."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folder = root / "snapshots"
        self.folder.mkdir()

    def run(
        self,
        scenario: Scenario,
        *sources: SourceSettings,
        with_bans: bool = True,
        ready: bool = True,
        **policy: Any,
    ) -> None:
        """Run a scenario that is given what answers requests."""
        settings = ReputationSettings(sources, PolicySettings(**policy))
        if ready:
            build_snapshot(self.folder, settings, None)

        async def answered() -> None:
            metrics = SharedMetrics(2)
            row, self.other = metrics.worker(0), metrics.worker(1)
            bans = BanStore(self.root / "bans") if with_bans else None
            reputation = Reputation(self.folder, bans, row)
            following = asyncio.create_task(reputation.follow())
            updater = Updater(self.folder, settings, row, bans)
            commands = Commands(reputation, updater, bans, BanSettings(max_time=1000), row)

            async def ask(command: str, **request: Any) -> dict[str, Any]:
                answer = await commands.handle({"command": command, **request})
                json.dumps(answer)
                return answer

            try:
                async with asyncio.timeout(TIMEOUT):
                    if ready:
                        await reputation.wait()
                    await scenario(ask)
            finally:
                following.cancel()
                await asyncio.gather(following, return_exceptions=True)
                await reputation.aclose()
                if bans is not None:
                    bans.close()

        asyncio.run(answered())


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "list.txt"
    path.write_text("8.8.8.0/24\nwrong\n")
    return path


def test_a_ban_is_made_listed_explained_and_ended(site: Site) -> None:
    async def scenario(ask: Ask) -> None:
        start = time.time()
        ban = await ask("ban", address="8.8.8.8", seconds=60, score=7, reason="scraping")
        assert start + 60 <= ban["until"] <= time.time() + 60
        assert ban | {"until": 0} == {
            "address": "8.8.8.8",
            "score": 7,
            "until": 0,
            "reason": "scraping",
        }
        assert (await ask("bans"))["bans"] == [ban]
        found = await ask("lookup", address="8.8.8.8")
        assert (found["score"], found["rule"], found["ban"]) == (7, "ban", ban)
        assert await ask("unban", address="8.8.8.8") == {"address": "8.8.8.8", "count": 1}
        assert (await ask("bans"))["bans"] == []
        with pytest.raises(BanError, match=r"8\.8\.8\.8 is not banned"):
            await ask("unban", address="8.8.8.8")

    site.run(scenario)


def test_a_ban_has_defaults(site: Site) -> None:
    async def scenario(ask: Ask) -> None:
        with pytest.raises(BanError, match="3600 s is not a time above 0 and up to 1000 s"):
            await ask("ban", address="8.8.8.8")
        assert (await ask("ban", address="8.8.0.0/16", seconds=1))["score"] == 0

    site.run(scenario)


@pytest.mark.parametrize(
    ("text", "shown", "within"),
    [
        ("::ffff:8.8.8.8", "8.8.8.8", "8.8.8.8"),
        ("::ffff:8.8.8.0/120", "8.8.8.0/24", "8.8.8.9"),
        ("8.8.8.0/24", "8.8.8.0/24", "::ffff:8.8.8.9"),
        ("2001:4860::/32", "2001:4860::/32", "2001:4860::1"),
        ("2001:4860::0:1", "2001:4860::1", "2001:4860::1"),
        ("0.0.0.0/0", "0.0.0.0/0", "255.255.255.255"),
        ("::/0", "::/0", "2001:4860::1"),
    ],
)
def test_a_ban_holds_whatever_way_its_address_is_written(
    site: Site, text: str, shown: str, within: str
) -> None:
    async def scenario(ask: Ask) -> None:
        assert (await ask("ban", address=text, seconds=60))["address"] == shown
        assert (await ask("lookup", address=within))["rule"] == "ban"
        assert await ask("unban", address=text) == {"address": shown, "count": 1}

    site.run(scenario)


def test_a_ban_of_who_is_allowed_says_that_it_has_no_effect(site: Site) -> None:
    async def scenario(ask: Ask) -> None:
        answer = await ask("ban", address="8.8.8.8", seconds=60)
        assert answer["note"] == (
            "it is among those that are always allowed, so the ban has no effect"
        )
        assert (await ask("lookup", address="8.8.8.8"))["score"] == 100

    site.run(scenario, allow=("8.8.8.8",))


@pytest.mark.parametrize(
    ("command", "request_", "reason"),
    [
        ("ban", {}, "the key 'address' is missing"),
        ("ban", {"address": ""}, "address: '' is not an address"),
        ("ban", {"address": "8.8.8.8/24"}, "neither an address nor a network without host bits"),
        ("ban", {"address": "8.8.8.1-8.8.8.2"}, "neither an address nor a network"),
        ("ban", {"address": "fe80::1%eth0"}, "is not an address"),
        ("ban", {"address": ["8.8.8.8"]}, "address: Expected `str`, got `array`"),
        ("ban", {"address": "8.8.8.8", "for": 60}, "there is no key 'for'"),
        ("ban", {"address": "8.8.8.8", "seconds": 0}, "0 s is not a time above 0"),
        ("ban", {"address": "8.8.8.8", "seconds": -1}, "-1 s is not a time above 0"),
        ("ban", {"address": "8.8.8.8", "seconds": 1_000_001}, "1000001 s is not a time above 0"),
        ("ban", {"address": "8.8.8.8", "seconds": True}, "seconds: Expected `float`, got `bool`"),
        ("ban", {"address": "8.8.8.8", "seconds": "60"}, "seconds: Expected `float`, got `str`"),
        ("ban", {"address": "8.8.8.8", "seconds": float("nan")}, "nan s is not a time above 0"),
        ("ban", {"address": "8.8.8.8", "seconds": float("inf")}, "inf s is not a time above 0"),
        ("ban", {"address": "8.8.8.8", "seconds": 10**400}, "seconds: "),
        ("ban", {"address": "8.8.8.8", "score": 0.4}, "score: Expected `int`, got `float`"),
        ("ban", {"address": "8.8.8.8", "score": float("nan")}, "score: Expected `int`, got"),
        ("ban", {"address": "8.8.8.8", "seconds": 9, "score": 101}, "score: 101 is not in"),
        ("ban", {"address": "8.8.8.8", "seconds": 9, "reason": "x" * 201}, "201 characters"),
        ("ban", {"address": "8.8.8.8", "seconds": 9, "reason": "a\nb"}, "cannot be shown"),
        ("ban", {"address": "8.8.8.8", "reason": ["a"]}, "reason: Expected `str`, got `array`"),
        ("bans", {"address": "8.8.8.8"}, "there is no key 'address'"),
        ("sources", {"name": "mine"}, "there is no key 'name'"),
        ("unban", {"address": "8.8.8.8"}, "8.8.8.8 is not banned"),
        ("lookup", {"address": "example.org"}, "address: 'example.org' is not an address"),
        ("lookup", {}, "the key 'address' is missing"),
        ("dance", {}, "there is no command 'dance'; there are ban, unban,"),
        ("x" * 1000, {}, f"there is no command '{'x' * 80}'"),
    ],
)
def test_what_makes_no_sense_is_refused_with_the_reason(
    site: Site, command: str, request_: dict[str, Any], reason: str
) -> None:
    async def scenario(ask: Ask) -> None:
        with pytest.raises(SpoakitError) as caught:
            await ask(command, **request_)
        assert reason in str(caught.value)
        assert len(str(caught.value)) < 300
        assert (await ask("bans"))["bans"] == []

    site.run(scenario)


@pytest.mark.parametrize(
    ("command", "request_"),
    [
        ("ban", {"address": "8.8.8.8", "seconds": 60}),
        ("unban", {"address": "8.8.8.8"}),
        ("bans", {}),
    ],
)
def test_without_a_file_there_are_no_bans(
    site: Site, command: str, request_: dict[str, Any]
) -> None:
    async def scenario(ask: Ask) -> None:
        with pytest.raises(ControlError, match=r"no bans: the configuration has no bans\.path"):
            await ask(command, **request_)
        assert (await ask("lookup", address="8.8.8.8"))["ban"] is None

    site.run(scenario, with_bans=False)


@pytest.mark.parametrize("command", ["ban", "lookup", "sources"])
def test_before_the_first_table_that_is_said(site: Site, command: str) -> None:
    async def scenario(ask: Ask) -> None:
        with pytest.raises(ControlError, match="the first table is being made"):
            await ask(command, address="8.8.8.8", seconds=60)

    site.run(scenario, ready=False)


def test_a_lookup_explains_what_each_source_says(site: Site, path: Path) -> None:
    country = path.with_name("country.mmdb")
    write_database(country, {"8.8.0.0/16": "US"})

    async def scenario(ask: Ask) -> None:
        found = await ask("lookup", address="::ffff:8.8.8.8")
        table = found.pop("table")
        assert found == {
            "address": "8.8.8.8",
            "score": 10,
            "rule": "lowest",
            "source": "mine",
            "category": "spam",
            "asn": None,
            "country": "US",
            "ban": None,
            "says": [
                {"source": "mine", "state": "listed", "score": 10, "category": "spam"},
                {"source": "none", "state": "failed", "score": None, "category": ""},
                {"source": "db", "state": "absent", "score": None, "category": ""},
            ],
            "observed": [],
        }
        assert table["built"] <= time.time()
        assert table["entries"] > 0

    site.run(
        scenario,
        mine(path, score=10, category="spam"),
        mine(path.with_name("none"), "none"),
        database(country, "country"),
    )


def test_sources_tell_how_they_are(site: Site, path: Path) -> None:
    async def scenario(ask: Ask) -> None:
        answer = await ask("sources")
        good, none, old = answer["sources"]
        assert (good["name"], good["type"], good["place"]) == ("mine", "list", str(path))
        assert (good["state"], good["entries"], good["error"]) == ("ok", 1, "")
        assert good["failed_lines"] == 1
        assert good["line_errors"] == ("line 2: 'wrong' is not an address",)
        assert 0 <= good["age"] < 1000
        assert (none["state"], none["age"]) == ("failed", None)
        assert "No such file" in none["error"]
        assert old["state"] == "stale"
        assert answer["table"]["generation"] == 1

    old = mine(path, "old", max_age=1.0)
    past = time.time() - 100
    os.utime(path, (past, past))
    site.run(scenario, mine(path), mine(path.with_name("none"), "none"), old)


def test_sources_tell_how_a_dnsbl_is(site: Site) -> None:
    async def serve() -> None:
        async with name_server() as server:
            server.answers["8.8.8.8.bl.example"] = SERVFAIL
            source = dnsbl(server.address)

            def other_loop() -> None:
                site.run(scenario, source)

            await asyncio.to_thread(other_loop)

    async def scenario(ask: Ask) -> None:
        [told] = (await ask("sources"))["sources"]
        assert (told["place"], told["state"], told["asked"]) == ("bl.example", "ok", 0)
        assert told["entries"] is None
        await ask("lookup", address="8.8.8.8")
        [told] = (await ask("sources"))["sources"]
        assert (told["state"], told["asked"], told["failures"]) == ("failed", 1, 1)
        assert told["error"]

    asyncio.run(serve())


def test_sources_have_the_figures_of_all_workers(site: Site) -> None:
    async def scenario(ask: Ask) -> None:
        site.other.add(DNSBL_LOOKUPS, 3, "bl.example", "asked")
        site.other.add(DNSBL_LOOKUPS, 5, "bl.example", "kept")
        site.other.add(DNSBL_ANSWERS, 2, "bl.example", "failed")
        site.other.set(DNSBL_FAILING, 1, "bl.example")
        site.other.publish()
        [told] = (await ask("sources"))["sources"]
        assert (told["asked"], told["failures"], told["state"]) == (3, 2, "failed")
        assert told["error"] == "no usable answer in 1 of the other workers"
        site.other.set(DNSBL_FAILING, 0, "bl.example")
        site.other.publish()
        [told] = (await ask("sources"))["sources"]
        assert (told["state"], told["error"]) == ("ok", "")

    site.run(scenario, dnsbl("127.0.0.1:9"))


def test_bans_are_ended_by_network_and_all_at_once(site: Site) -> None:
    async def scenario(ask: Ask) -> None:
        for address in ("8.8.8.8", "8.8.8.0/25", "8.8.0.0/16", "9.9.9.9", "2001:db8::1"):
            await ask("ban", address=address, seconds=60)
        assert await ask("unban", address="8.8.8.0/24") == {"address": "8.8.8.0/24", "count": 2}
        with pytest.raises(BanError, match=r"no ban of its own; it is within 8\.8\.0\.0/16"):
            await ask("unban", address="8.8.8.8")
        left = [ban["address"] for ban in (await ask("bans"))["bans"]]
        assert sorted(left) == ["2001:db8::1", "8.8.0.0/16", "9.9.9.9"]
        assert await ask("unban", all=True) == {"address": "", "count": 3}
        assert await ask("unban", all=True) == {"address": "", "count": 0}
        for request in ({}, {"all": True, "address": "8.8.8.8"}):
            with pytest.raises(ControlError, match="give either an address or 'all'"):
                await ask("unban", **request)

    site.run(scenario)


def test_what_cannot_be_updated_is_refused(site: Site, path: Path) -> None:
    async def scenario(ask: Ask) -> None:
        with pytest.raises(SpoakitError, match="there is no source 'none'"):
            await ask("update", source="none")
        with pytest.raises(SpoakitError, match="the key 'source' is missing"):
            await ask("update")

    site.run(scenario, mine(path))


def test_a_lookup_shows_what_is_observed(site: Site, path: Path) -> None:
    async def scenario(ask: Ask) -> None:
        found = await ask("lookup", address="8.8.8.8")
        assert (found["score"], found["rule"]) == (100, "unknown")
        assert found["observed"] == [{"source": "new", "score": 10}]
        assert found["says"] == [
            {"source": "new", "state": "listed", "score": 10, "category": "", "mode": "observe"}
        ]
        [source] = (await ask("sources"))["sources"]
        assert source["mode"] == "observe"

    site.run(scenario, mine(path, "new", score=10, mode="observe"))


def test_sources_and_lookups_tell_of_a_dnsbl_that_is_out_or_was_not_asked(
    site: Site, path: Path
) -> None:
    async def serve() -> None:
        async with name_server() as server:
            await asyncio.to_thread(
                site.run, scenario, mine(path), dnsbl(server.address, test="127.0.0.2")
            )

    async def scenario(ask: Ask) -> None:
        assert [say["state"] for say in (await ask("lookup", address="8.8.8.8"))["says"]] == [
            "listed",
            "not asked",
        ]
        assert (await ask("lookup", address="9.9.9.9"))["says"][1]["state"] == "out"
        told = (await ask("sources"))["sources"][1]
        assert (told["state"], told["asked"]) == ("failed", 0)
        assert told["error"].startswith("it does not list 127.0.0.2")

    asyncio.run(serve())


def test_a_command_that_fails_has_an_answer(tmp_path: Path) -> None:
    async def fail(_: dict[str, Any], user: int) -> dict[str, Any]:
        raise RuntimeError("a bug")

    async def scenario() -> None:
        path = str(tmp_path / "control")
        async with serve_control(ControlSettings(path), fail):
            with pytest.raises(ControlError, match="it failed: RuntimeError: a bug"):
                await asyncio.to_thread(ask, path, {})
            reader, writer = await asyncio.open_unix_connection(path)
            writer.write(b"[" * 60_000 + b"\n")
            assert b"the request is not JSON" in await reader.readline()
            writer.close()

    asyncio.run(scenario())
