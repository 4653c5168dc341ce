"""spoakit.apps.mirror.metrics: in whatever is published, each target's figures add up."""

import asyncio
import random
import socket
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from spoakit.agent.headers import Headers
from spoakit.apps.line_writer import LogWriter
from spoakit.apps.mirror._request_cy import IncomingRequest
from spoakit.apps.mirror.access_log._lines_cy import AccessLog
from spoakit.apps.mirror.agent import Mirror
from spoakit.apps.mirror.config.schema import (
    MirrorSettings,
    QueueSettings,
    TargetSettings,
    Timeouts,
)
from spoakit.apps.mirror.http.connection_budget import ConnectionBudget
from spoakit.apps.mirror.url import TargetURL
from spoakit.metrics.memory import SharedMetrics
from spoakit.metrics.snapshot import Snapshot
from spoakit.server.stats_log import describe
from tests.support.copier import Run
from tests.support.origin import OK, origin
from tests.support.waiting import until

pytestmark = pytest.mark.slow

ENDS = (
    "spoakit_mirror_responses_total",
    "spoakit_mirror_failures_total",
    "spoakit_mirror_dropped_total",
    "spoakit_mirror_not_copied_total",
    "spoakit_mirror_waiting",
    "spoakit_mirror_in_flight",
)


def of_target(taken: Snapshot, name: str, target: str) -> float:
    [series] = [series for family, series in taken.values.items() if family.name == name]
    return sum(value for labels, value in series.items() if labels[0] == target)


def check_sums(taken: Snapshot, targets: Sequence[str]) -> None:
    for target in targets:
        received = of_target(taken, "spoakit_mirror_requests_total", target)
        ends = {name: of_target(taken, name, target) for name in ENDS}
        assert received == sum(ends.values()), (target, received, ends)


@pytest.fixture
def make_mirror(tmp_path: Path) -> Any:
    @asynccontextmanager
    async def make(
        metrics: SharedMetrics,
        *targets: TargetSettings,
        drain: float = 0.1,
        budget: ConnectionBudget | None = None,
    ) -> AsyncIterator[Mirror]:
        settings = MirrorSettings(targets, drain=drain)
        with (tmp_path / "access.log").open("wb") as file:
            log = AccessLog(LogWriter(file.fileno()))
            mirror = Mirror(settings, log, metrics.worker(0), budget)
            try:
                yield mirror
            finally:
                await mirror.aclose()

    return make


def settings_for(port: int, name: str, **more: Any) -> TargetSettings:
    return TargetSettings(TargetURL.parse(f"http://127.0.0.1:{port}"), name=name, **more)


def request(path: bytes = b"/", method: bytes = b"GET", marker: bytes = b"") -> IncomingRequest:
    headers = Headers(b"host: h\r\n" + marker + b"\r\n", False)
    return IncomingRequest(method, path, b"1.1", headers, b"")


@pytest.fixture
def dead_port() -> Iterator[int]:
    with socket.socket() as bound:  # bound, and not listening: it refuses
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


def test_figures_add_up_at_any_moment_whatever_the_targets_do(
    run: Run, make_mirror: Any, dead_port: int
) -> None:
    names = ("healthy", "slow", "dead", "resetting", "silent")
    quick = Timeouts(first_byte=0.2, total=0.4, min_backoff=0.01, max_backoff=0.05)
    chance = random.Random(13)

    def reset_or_answer(_: bytes) -> Sequence[bytes | None]:
        return [None] if chance.random() < 0.3 else [OK]

    async def scenario() -> None:
        metrics = SharedMetrics(1)
        start = Snapshot.take(metrics)
        async with (
            origin() as healthy,
            origin(lambda _: [b"HTTP/1.1 500 No\r\nContent-Length: 2\r\n\r\n", b"n", b"o"]) as slow,
            origin(reset_or_answer) as resetting,
            origin(lambda _: []) as silent,
            make_mirror(
                metrics,
                settings_for(healthy.port, "healthy"),
                settings_for(
                    slow.port,
                    "slow",
                    connections=1,
                    queue=QueueSettings(length=20),
                    rate=400,
                    sample=80,
                ),
                settings_for(dead_port, "dead", queue=QueueSettings(length=50), timeouts=quick),
                settings_for(
                    resetting.port,
                    "resetting",
                    timeouts=quick,
                    marker=("X-Mirrored", "1"),
                ),
                settings_for(
                    silent.port,
                    "silent",
                    timeouts=quick,
                    connections=4,
                    queue=QueueSettings(length=30, overflow="drop-newest"),
                ),
            ) as mirror,
        ):
            for _ in range(60):
                for _ in range(chance.randrange(20)):
                    marker = b"x-mirrored: 1\r\n" if chance.random() < 0.2 else b""
                    mirror.copy(request(b"/", chance.choice([b"GET", b"POST"]), marker))
                await asyncio.sleep(chance.choice([0, 0, 0.001, 0.02]))
                check_sums(Snapshot.take(metrics), names)
            in_flight = []
            for _ in range(10):
                mirror.copy(request())
                await asyncio.sleep(0.05)
                taken = Snapshot.take(metrics)
                check_sums(taken, names)
                in_flight.append(of_target(taken, "spoakit_mirror_in_flight", "silent"))
            assert max(in_flight) > 0
        end = Snapshot.take(metrics)
        check_sums(end, names)
        for gauge in ("waiting", "in_flight", "connections", "waiting_bytes"):
            assert end.value(f"spoakit_mirror_{gauge}") == 0
        responses = "spoakit_mirror_responses_total"
        assert end.value(responses, target="healthy", status="2xx") == of_target(
            end, "spoakit_mirror_requests_total", "healthy"
        )
        assert end.value(responses, target="slow", status="5xx") > 0
        assert end.value("spoakit_mirror_not_copied_total", target="slow", reason="not_selected")
        not_copied = "spoakit_mirror_not_copied_total"
        assert end.value(not_copied, target="resetting", reason="looped") > 0
        assert end.value(not_copied, target="healthy", reason="looped") == 0
        dropped = "spoakit_mirror_dropped_total"
        assert end.value(dropped, target="dead", reason="queue_full") > 0
        assert end.value(dropped, target="dead", reason="stopping") > 0
        refused = "spoakit_mirror_connect_failures_total"
        assert end.value(refused, target="dead", reason="refused") > 0
        failures = "spoakit_mirror_failures_total"
        assert end.value(failures, target="resetting", reason="closed") > 0
        assert end.value(failures, target="silent", reason="timeout") > 0
        assert end.value("spoakit_mirror_retries_total", target="resetting") > 0
        took = end.distribution("spoakit_mirror_response_seconds", target="healthy")
        assert took.count == end.value(responses, target="healthy", status="2xx")
        assert 0 < took.quantile(0.5) < 5
        first = end.distribution("spoakit_mirror_first_byte_seconds", target="slow")
        whole = end.distribution("spoakit_mirror_response_seconds", target="slow")
        assert first.sum <= whole.sum
        lines = list(describe(end, start, everything=False))
        assert [line.split(":")[0] for line in lines if line.startswith("target")] == [
            f"target {name}" for name in sorted(names)
        ]

    run(scenario())


def test_bodies_that_are_not_copied_add_up(run: Run, make_mirror: Any) -> None:
    def put(lines: bytes, body: bytes) -> IncomingRequest:
        headers = Headers(b"host: h\r\n" + lines + b"\r\n", False)
        return IncomingRequest(b"PUT", b"/", b"1.1", headers, body, max_frame_size=16380)

    requests = (
        put(b"", b"x"),
        put(b"", bytes(15_203)),
        put(b"", bytes(20_000)),
        put(b"transfer-encoding: chunked\r\n", b""),
        put(b"content-length: 9\r\n", b"short"),
    )
    suspect = {"truncated_suspect": "skip", "max_body": 18_000}

    async def scenario() -> None:
        metrics = SharedMetrics(1)
        async with origin() as server:
            targets = (
                settings_for(server.port, "skip", **suspect),
                settings_for(server.port, "send", truncated="send"),
            )
            async with make_mirror(metrics, *targets) as mirror:
                for each in requests:
                    mirror.copy(each)
                check_sums(Snapshot.take(metrics), ("skip", "send"))
                await until(lambda: mirror.targets[1].counters.responses == len(requests))
        end = Snapshot.take(metrics)
        check_sums(end, ("skip", "send"))
        assert of_target(end, "spoakit_mirror_responses_total", "skip") == 1
        not_copied = {"body_suspect": 2, "body_too_large": 1, "body_cut": 1}
        for reason, count in not_copied.items():
            name = "spoakit_mirror_not_copied_total"
            assert end.value(name, target="skip", reason=reason) == count
        for target in ("skip", "send"):
            for reason in ("not_waited_for", "probably_cut"):
                name = "spoakit_mirror_suspect_bodies_total"
                assert end.value(name, target=target, reason=reason) == 1

    run(scenario())


def test_a_reload_that_replaces_a_target_keeps_its_figures(run: Run, make_mirror: Any) -> None:
    async def scenario() -> None:
        metrics = SharedMetrics(1)
        async with (
            origin(lambda _: []) as silent,
            origin() as healthy,
            make_mirror(metrics, settings_for(silent.port, "one"), drain=0.3) as mirror,
        ):
            for _ in range(10):
                mirror.copy(request())
            await mirror.reconfigure(MirrorSettings((settings_for(healthy.port, "one"),)))
            for _ in range(5):
                mirror.copy(request())
            # The one that is left and its successor are one series.
            check_sums(Snapshot.take(metrics), ["one"])
            taken = Snapshot.take(metrics)
            assert of_target(taken, "spoakit_mirror_requests_total", "one") == 15
            await asyncio.sleep(0.05)
            check_sums(Snapshot.take(metrics), ["one"])
            await mirror.reconfigure(MirrorSettings(()))
        check_sums(Snapshot.take(metrics), ["one"])
        assert Snapshot.take(metrics).value("spoakit_mirror_in_flight") == 0

    run(scenario())


def test_targets_that_there_is_no_room_for_are_others(run: Run, make_mirror: Any) -> None:
    async def scenario() -> None:
        metrics = SharedMetrics(1)
        async with origin(lambda _: []) as silent:
            targets = [settings_for(silent.port, f"target {number}") for number in range(30)]
            async with make_mirror(metrics, *targets) as mirror:
                mirror.copy(request())
                await asyncio.sleep(0.05)
                taken = Snapshot.take(metrics)
                check_sums(taken, ["target 0", "other"])
                assert of_target(taken, "spoakit_mirror_requests_total", "other") == 15

    run(scenario())


def test_slow_targets_leave_descriptors_for_others(
    run: Run, make_mirror: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        metrics = SharedMetrics(1)
        timeouts = Timeouts(first_byte=0.3, total=0.3)
        async with (
            origin(lambda _: []) as silent,
            origin() as healthy,
            make_mirror(
                metrics,
                settings_for(silent.port, "silent", timeouts=timeouts),
                settings_for(healthy.port, "healthy", connections=3),
                budget=ConnectionBudget(10),
            ) as mirror,
        ):
            for _ in range(5):
                for _ in range(20):
                    mirror.copy(request())
                await asyncio.sleep(0.02)
                taken = Snapshot.take(metrics)
                # One more than the budget for a target that would have none.
                assert taken.value("spoakit_mirror_connections") <= 11
            await until(lambda: len(healthy.requests) == 100)
            assert silent.open >= 7
            # What the silent one gives up is used again.
            await until(lambda: silent.connections > 12)
            check_sums(Snapshot.take(metrics), ["silent", "healthy"])

    run(scenario())
    assert "targets may have 67 connections in each worker, and the limit of open" in caplog.text
    assert "silent: no more connections for now: those to all targets are 10" in caplog.text
