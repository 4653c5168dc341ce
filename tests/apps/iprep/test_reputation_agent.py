import asyncio
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any

import pytest

from spoakit import Headers
from spoakit.agent import Agent
from spoakit.apps.iprep.agent import create_agent
from spoakit.apps.iprep.bans import BanStore
from spoakit.apps.iprep.config.schema import (
    AnswerSettings,
    AuditSettings,
    BanSettings,
    ForwardedSettings,
    PolicySettings,
    ReputationSettings,
)
from spoakit.apps.iprep.config.sources import SourceSettings
from spoakit.apps.iprep.metrics import ANSWERS
from spoakit.apps.iprep.service import reloadable_settings
from spoakit.spop import DataType
from spoakit.spop.messages import Argument, Message
from spoakit.testing import AgentServer, EngineClient, Reply
from spoakit.testing.calls import make_message
from spoakit.testing.pytest_plugin import ConnectEngine, ServeAgents
from tests.support.dns_server import NameServer, name_server
from tests.support.iprep_sources import database, dnsbl, mine, put, write_database
from tests.support.waiting import TIMEOUT, wait_until

pytestmark = pytest.mark.slow

BAD = IPv4Address("8.8.8.8")
GOOD = IPv4Address("9.9.9.9")
ALL = AnswerSettings(("ip_score", "ip_list", "ip_asn", "ip_country", "ip_category"))


class Site:
    """Where agents are made that are served in a thread."""

    def __init__(self, root: Path, serve: ServeAgents, connect: ConnectEngine) -> None:
        self.root = root
        self.list = root / "list.txt"
        self.list.write_text("8.8.8.8\n2001:4860::1\n")
        self._serve = serve
        self._connect = connect
        self._served = 0
        self.server: AgentServer | None = None

    def agent(self, *sources: SourceSettings, delay: float = 0.0, **settings: Any) -> Agent:
        folder = self.root / f"snapshots-{self._served}"
        folder.mkdir()
        self._served += 1
        live = reloadable_settings(lambda: ReputationSettings(sources, **settings))
        return create_agent(live, folder, delay)

    def serve(self, *sources: SourceSettings, **settings: Any) -> EngineClient:
        self.server = self._serve(self.agent(*sources, **settings))
        engine = self._connect(port=self.server.port)
        engine.hello()
        return engine


@pytest.fixture
def site(tmp_path: Path, serve_agents: ServeAgents, connect_engine: ConnectEngine) -> Site:
    return Site(tmp_path, serve_agents, connect_engine)


@contextmanager
def answering() -> Iterator[NameServer]:
    """Run a name server in a thread of its own."""
    started = threading.Event()
    found: list[Any] = []

    async def serve() -> None:
        async with name_server() as server:
            ended = asyncio.Event()
            found.extend((server, asyncio.get_running_loop(), ended))
            started.set()
            await ended.wait()

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    assert started.wait(TIMEOUT)
    server, loop, ended = found
    try:
        yield server
    finally:
        loop.call_soon_threadsafe(ended.set)
        thread.join()


def check(engine: EngineClient, address: IPv4Address | IPv6Address, **more: Any) -> Reply:
    return engine.call("check-client-ip", address, **more)


def test_an_address_has_a_score(site: Site) -> None:
    engine = site.serve(mine(site.list, score=20))
    for address, score in (
        (BAD, 20),
        (GOOD, 100),
        (IPv6Address("::ffff:8.8.8.8"), 20),
        (IPv6Address("2001:4860::1"), 20),
        (IPv6Address("2001:4860::2"), 100),
    ):
        reply = check(engine, address)
        assert reply == {"sess.ip_score": score}
        assert reply.actions[0].data_type is DataType.UINT32
    assert engine.call("check-client-ip", src=BAD) == {"sess.ip_score": 20}


def test_all_variables_are_set_and_unset_where_nothing_is_known(site: Site) -> None:
    asn, country = site.root / "asn.mmdb", site.root / "country.mmdb"
    write_database(asn, {"8.8.8.0/24": 64500})
    write_database(country, {"8.8.0.0/16": "US"})
    engine = site.serve(
        mine(site.list, category="spam"),
        database(asn, "asn", "asn"),
        database(country, "country", "country"),
        answers=ALL,
    )
    assert check(engine, BAD) == {
        "sess.ip_score": 0,
        "sess.ip_list": "mine",
        "sess.ip_asn": 64500,
        "sess.ip_country": "US",
        "sess.ip_category": "spam",
    }
    assert check(engine, GOOD) == {
        "sess.ip_score": 100,
        "sess.ip_list": None,
        "sess.ip_asn": None,
        "sess.ip_country": None,
        "sess.ip_category": None,
    }


def test_a_list_that_changes_is_used_without_losing_a_frame(site: Site) -> None:
    engine = site.serve(mine(site.list))
    assert check(engine, GOOD) == {"sess.ip_score": 100}
    put(site.list, "9.9.9.9\n")
    wait_until(lambda: check(engine, GOOD) == {"sess.ip_score": 0})
    assert check(engine, BAD) == {"sess.ip_score": 100}


@pytest.mark.parametrize(
    ("settings", "event"),
    [
        ({}, "on-client-session"),
        ({"answers": AnswerSettings(scope="txn")}, "on-client-session"),
        ({"answers": AnswerSettings(scope="res")}, "on-http-response"),
        ({"forwarded": ForwardedSettings("xff", ("10.0.0.0/8",))}, "on-frontend-http-request"),
    ],
)
def test_the_message_comes_when_there_is_what_it_needs(
    site: Site, settings: dict[str, Any], event: str
) -> None:
    [handler] = site.agent(**settings).handlers
    assert handler.trigger.event == event


def test_a_check_can_be_delayed_without_holding_up_others(site: Site) -> None:
    engine = site.serve(mine(site.list), delay=0.3)
    start = time.monotonic()
    sent = [engine.notify(make_message("check-client-ip", (BAD,), {})) for _ in range(20)]
    assert all(engine.ack(ids) == {"sess.ip_score": 0} for ids in sent)
    assert 0.3 <= time.monotonic() - start < 3  # and not six


# --- proxies -----------------------------------------------------------------------------


@pytest.mark.parametrize("asks", [False, True])
def test_who_is_behind_a_trusted_proxy_is_checked(site: Site, asks: bool) -> None:
    with answering() as server:
        sources = [mine(site.list), *([dnsbl(server.address)] if asks else [])]
        engine = site.serve(*sources, forwarded=ForwardedSettings("xff", ("10.0.0.0/8",)))
        for source, header, score in (
            ("10.0.0.1", "9.9.9.9, 8.8.8.8", 0),
            ("10.0.0.1", "8.8.8.8, 9.9.9.9", 100),
            ("10.0.0.1", "[2001:4860::1]:99, 10.1.1.1", 0),
            ("9.9.9.9", "8.8.8.8", 100),
            ("10.0.0.1", "nonsense", 100),
            ("10.0.0.1", "", 100),
        ):
            reply = check(engine, IPv4Address(source), xff=header)
            assert reply == {"sess.ip_score": score}
        assert check(engine, IPv6Address("::ffff:10.0.0.1"), xff="8.8.8.8")["sess.ip_score"] == 0
        # A request without the header.
        assert check(engine, BAD, xff=None) == {"sess.ip_score": 0}
        assert check(engine, BAD) == {"sess.ip_score": 0}


def test_all_lines_that_a_message_brings_count(site: Site) -> None:
    engine = site.serve(mine(site.list), forwarded=ForwardedSettings("xff", ("10.0.0.0/8",)))
    source = IPv4Address("10.0.0.1")

    def score(*lines: Any) -> object:
        arguments = (Argument.of("", source), *(Argument.of("xff", line) for line in lines))
        ids = engine.notify(Message("check-client-ip", arguments))
        return engine.ack(ids)["sess.ip_score"]

    assert score("8.8.8.8", "10.1.1.1") == 0
    assert score(None, "8.8.8.8") == 0
    assert score("8.8.8.8", "9.9.9.9") == 100
    block = Headers.of(("x-forwarded-for", "8.8.8.8"), ("X-Forwarded-For", "10.1.1.1"))
    assert score(block.encode()) == 0
    assert score(b"no block") == 100  # the proxy's own


@pytest.mark.parametrize("forwarded", [None, "xff"])
def test_an_address_may_come_as_text(
    site: Site, forwarded: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    settings = ForwardedSettings(forwarded, ("10.0.0.0/8",) if forwarded else ())
    engine = site.serve(mine(site.list), forwarded=settings)
    for text, score in (("8.8.8.8", 0), ("[2001:4860::1]:443", 0), ("9.9.9.9", 100)):
        assert engine.call("check-client-ip", text) == {"sess.ip_score": score}
    assert engine.call("check-client-ip", "unknown") == {"sess.ip_score": None}
    assert "a message has no address: 'unknown' is not an address" in caplog.text


# --- DNSBLs ------------------------------------------------------------------------------


def test_a_dnsbl_that_is_slow_costs_no_frame_more_than_its_deadline(site: Site) -> None:
    with answering() as server:
        server.silent = True
        engine = site.serve(mine(site.list, score=40), dnsbl(server.address, 0.1, score=20))
        for address, score in ((BAD, 40), (GOOD, 100)):
            start = time.monotonic()
            assert check(engine, address) == {"sess.ip_score": score}
            assert time.monotonic() - start < 1.5
        assert site.server is not None
        counted = site.server.metrics
        assert counted.value("spoakit_iprep_dnsbl_late_total", zone="bl.example") == 2
        looked = "spoakit_iprep_dnsbl_lookups_total"
        assert counted.value(looked, zone="bl.example", how="asked") == 2


def test_a_listed_address_does_not_wait_for_a_dnsbl(site: Site) -> None:
    with answering() as server:
        server.silent = True
        engine = site.serve(mine(site.list, score=20), dnsbl(server.address, 10.0, score=20))
        start = time.monotonic()
        assert check(engine, BAD) == {"sess.ip_score": 20}
        assert time.monotonic() - start < 5
        assert server.asked == []


def test_answers_are_counted_by_what_decided_and_by_the_score(site: Site) -> None:
    with answering() as server:
        server.answers["8.8.8.8.bl.example"] = ["127.0.0.2"]
        engine = site.serve(
            mine(site.list, score=40),
            dnsbl(server.address, score=20),
            policy=PolicySettings(allow=("1.1.1.0/24",)),
        )
        for address, count in ((BAD, 3), (GOOD, 2), (IPv4Address("1.1.1.1"), 1)):
            for _ in range(count):
                check(engine, address)
        check(engine, IPv4Address("10.0.0.1"))
        check(engine, IPv6Address("2001:4860::1"))
        assert site.server is not None
        counted = site.server.metrics
        answers = counted.values[ANSWERS]
        assert answers == {
            ("bl", "20-39"): 3,
            ("mine", "40-59"): 1,
            ("unknown", "80-100"): 2,
            ("allow", "80-100"): 1,
            ("private", "80-100"): 1,
        }
        assert counted.value("spoakit_messages_total", message="check-client-ip") == sum(
            answers.values()
        )
        zone = {"zone": "bl.example"}
        assert counted.value("spoakit_iprep_dnsbl_answers_total", result="listed", **zone) == 1
        assert counted.value("spoakit_iprep_dnsbl_lookups_total", how="kept", **zone) >= 2
        assert counted.value("spoakit_iprep_dnsbl_kept", **zone) >= 2
        # The updater tells of its sources a moment after the table is in use.
        served = site.server
        wait_until(lambda: served.metrics.value("spoakit_iprep_entries", source="mine") == 2)
        counted = site.server.metrics
        assert counted.value("spoakit_iprep_source_failed", source="mine") == 0
        assert counted.value("spoakit_iprep_source_age_seconds", source="mine") > 0


def test_what_a_dnsbl_answers_counts_and_its_errors_do_not(site: Site) -> None:
    with answering() as server:
        server.answers["8.8.8.8.bl.example"] = ["127.0.0.2"]
        server.answers["9.9.9.9.bl.example"] = ["127.255.255.254"]
        engine = site.serve(dnsbl(server.address, score=20), answers=ALL)
        assert check(engine, BAD)["sess.ip_score"] == 20
        assert check(engine, BAD)["sess.ip_list"] == "bl"
        assert check(engine, GOOD)["sess.ip_score"] == 100


def test_a_deadline_that_a_reload_makes_longer_is_waited_for(tmp_path: Path) -> None:
    """The message's own time is not that of the settings it started with."""
    folder = tmp_path / "snapshots"
    folder.mkdir()
    with answering() as server:
        settings = ReputationSettings((dnsbl(server.address, 0.001),))
        [handler] = create_agent(reloadable_settings(lambda: settings), folder).handlers
        assert handler.timeout is not None
        assert handler.timeout > 10  # which is the longest that one can be


# --- bans --------------------------------------------------------------------------------


def banning(site: Site, **more: Any) -> BanSettings:
    return BanSettings(str(site.root / "bans"), **more)


def test_haproxy_may_ban_where_it_is_told_so(site: Site) -> None:
    engine = site.serve(answers=ALL, bans=banning(site, message=True))
    assert engine.call("ban-client-ip", BAD, 60) == {}
    assert engine.call("ban-client-ip", ip=IPv6Address("2001:4860::1"), time=60) == {}
    assert engine.call("ban-client-ip", IPv6Address("::ffff:9.9.9.9"), (DataType.UINT32, 60)) == {}
    for address in (BAD, IPv6Address("::ffff:8.8.8.8"), IPv6Address("2001:4860::1"), GOOD):
        reply = check(engine, address)
        assert (reply["sess.ip_score"], reply["sess.ip_list"]) == (0, "ban")
    store = BanStore(site.root / "bans")
    wait_until(lambda: len(asyncio.run(store.current())) == 3)  # they are written some ms later
    store.close()


def test_haproxy_bans_ipv6_by_prefix_and_never_a_proxy(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    engine = site.serve(
        answers=ALL,
        bans=banning(site, message=True, ipv6_prefix=56),
        forwarded=ForwardedSettings("xff", ("10.0.0.0/8",)),
    )
    proxy = IPv4Address("10.0.0.1")
    engine.call("ban-client-ip", proxy, 60, xff="2001:4860:0:1::1")
    engine.call("ban-client-ip", proxy, 60, xff="64:ff9b::8.8.8.8")
    engine.call("ban-client-ip", "7.7.7.7", 60)
    engine.call("ban-client-ip", proxy, 60)
    engine.call("ban-client-ip", proxy, 60, xff="nonsense")
    engine.call("ban-client-ip", "nonsense", 60)
    for address, listed in (
        ("2001:4860:0:2::2", "ban"),
        ("2001:4860:1::1", None),
        ("8.8.8.8", "ban"),
        ("64:ff9b::8.8.8.9", None),
        ("7.7.7.7", "ban"),
        ("10.0.0.1", None),
    ):
        assert engine.call("check-client-ip", address)["sess.ip_list"] == listed
    assert "ban-client-ip for 10.0.0.1: it is a trusted proxy" in caplog.text


def test_haproxy_may_not_ban_elsewhere(site: Site) -> None:
    assert [each.message for each in site.agent(bans=banning(site)).handlers] == ["check-client-ip"]


def test_a_ban_that_makes_no_sense_is_logged_and_changes_nothing(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    engine = site.serve(bans=banning(site, message=True, max_time=100))
    for seconds in (0, -5, 101, 2**62):
        assert engine.call("ban-client-ip", BAD, seconds) == {}
    assert check(engine, BAD) == {"sess.ip_score": 100}
    assert "ban-client-ip for 8.8.8.8: 0 s is not a time above 0 and up to 100 s" in caplog.text


def test_a_ban_of_another_process_is_seen_soon_and_survives_a_kill(site: Site) -> None:
    engine = site.serve(bans=banning(site))
    program = (
        "import asyncio, sys, time; from pathlib import Path; from ipaddress import ip_network;"
        "from spoakit.apps.iprep.bans import Ban, BanStore;"
        "store = BanStore(Path(sys.argv[1]));"
        "asyncio.run(store.ban(Ban(ip_network('8.8.8.8'), 7, time.time() + 600)));"
        "print(flush=True); time.sleep(600)"
    )
    path = str(site.root / "bans")
    with subprocess.Popen([sys.executable, "-c", program, path], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        start = time.monotonic()
        process.kill()
    wait_until(lambda: check(engine, BAD) == {"sess.ip_score": 7})
    assert time.monotonic() - start < 2  # 0.1 s on a machine that has time
    another = site.serve(bans=banning(site))
    assert check(another, BAD) == {"sess.ip_score": 7}


def test_a_ban_ends_when_it_is_to_end(site: Site) -> None:
    engine = site.serve(bans=banning(site, message=True))
    start = time.monotonic()
    engine.call("ban-client-ip", BAD, 1)
    assert check(engine, BAD)["sess.ip_score"] == 0 or time.monotonic() - start > 1
    wait_until(lambda: check(engine, BAD)["sess.ip_score"] == 100)
    assert 0.99 <= time.monotonic() - start < 3


def test_what_a_reply_says_can_be_shown(site: Site) -> None:
    engine = site.serve(mine(site.list, "ünïcode", category="é"), answers=ALL)
    reply = check(engine, BAD)
    assert json.loads(json.dumps(dict(reply)))["sess.ip_list"] == "ünïcode"


def test_what_a_source_that_is_observed_would_change_is_counted(site: Site) -> None:
    other = site.root / "other.txt"
    other.write_text("8.8.8.8\n9.9.9.9\n7.7.7.7\n")
    third = site.root / "third.txt"
    third.write_text("7.7.7.7\n")
    engine = site.serve(
        mine(site.list, score=10),
        mine(other, "new", score=5, mode="observe"),
        mine(third, "third", score=30),
        answers=AnswerSettings(("ip_score", "ip_list")),
    )
    assert check(engine, BAD) == {"sess.ip_score": 10, "sess.ip_list": "mine"}
    assert check(engine, IPv4Address("9.9.9.9")) == {"sess.ip_score": 100, "sess.ip_list": None}
    for _ in range(3):
        assert check(engine, IPv4Address("7.7.7.7"))["sess.ip_score"] == 30
    assert site.server is not None
    metrics = site.server.metrics

    def observed(**labels: str) -> float:
        return metrics.value("spoakit_iprep_observed_total", source="new", **labels)

    # Not that of 8.8.8.8: its score is in that range.
    wait_until(lambda: observed(score="0-19") == 4)
    assert metrics.value("spoakit_iprep_answers_total", source="third", score="20-39") == 3
    assert metrics.value("spoakit_iprep_answers_total", source="mine", score="0-19") == 1


def test_low_scores_and_bans_are_in_the_audit_log(site: Site) -> None:
    path = site.root / "audit.log"
    engine = site.serve(
        mine(site.list, score=10),
        bans=BanSettings(str(site.root / "bans"), message=True),
        audit=AuditSettings(str(path), threshold=20),
    )
    for _ in range(2):
        check(engine, BAD)
    check(engine, GOOD)
    for _ in range(2):  # the second one is as good as the first, and is not made
        engine.call("ban-client-ip", GOOD, 3600)
    check(engine, GOOD)
    wait_until(lambda: path.read_text().count("\n") == 4)
    facts = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(fact["event"], fact["address"], fact.get("rule", "")) for fact in facts] == [
        ("verdict", str(BAD), "lowest"),
        ("verdict", str(BAD), "lowest"),
        ("ban", str(GOOD), ""),
        ("verdict", str(GOOD), "ban"),
    ]
    assert facts[2]["by"] == "message"
