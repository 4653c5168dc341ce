"""Scenarios around the mirror: copies to a fast target, against a bare sender; dead targets."""

import re
import time
from contextlib import ExitStack
from functools import partial

from benchmarks.measure import stop
from benchmarks.results import Case, Measurement, Scenario
from benchmarks.subjects import Bench, Subject
from tests.support.ports import free_port

CONNECTIONS, DEPTH = 8, 16
# Of the scenarios' names: the size of the body; requests a second and how many. Without a pace they
# come as fast as they are ACKed and wait in the mirror's queue (65,536 requests and 32 MiB by
# default), which therefore bounds their number.
BODIES = {"": 0, "-4k": 4096}
PACES = {"2000": (2_000, 8_000), "20000": (20_000, 60_000)}
UNPACED = {"": 60_000, "-4k": 7_000}
WARM_UP = 200
BARE = "bare sender"
BARE_UNPACED = 200_000  # no queue bounds it, and fewer would be over in an instant
BARE_CONNECTIONS = 64  # as a mirror's; from 8 to 128 its CPU does not depend on this
COST = "CPU us/request"

DEAD_COUNT = 60_000
TARGETS = ("answering", "closed", "silent")
# What spoa-mirror says at its end about every request it had.
SUMMARY = re.compile(
    r"(\d+) (?:responses|failed|dropped|body cut|malformed|not selected|rate limited)\b"
)


def scenarios(bench: Bench) -> list[Scenario]:
    """Return one scenario for each body and pace, and one for dead targets."""
    found = [
        _pace_scenario(bench, f"mirror-{pace}{suffix}", rate, count, body)
        for suffix, body in BODIES.items()
        for pace, (rate, count) in {**PACES, "full": (0, UNPACED[suffix])}.items()
    ]
    dead = Scenario(
        "dead-target",
        f"{DEAD_COUNT:,} requests as fast as they are ACKed; the target answers, refuses, or never "
        "answers",
        [
            Case(f"{subject.name}, {target}", partial(_dead, bench, subject, target))
            for subject in bench.mirrors()
            for target in TARGETS
        ],
    )
    return [*found, dead]


def _pace_scenario(bench: Bench, name: str, rate: float, count: int, body: int) -> Scenario:
    count = bench.count(count)
    pace = f"at {rate:,.0f}/s" if rate else "as fast as they are ACKed"
    what = f"body of {body} bytes" if body else "no body"
    bare = Case(BARE, partial(_bare, bench, rate, count, body))
    return Scenario(
        name,
        f"{count:,} requests, {what}, {pace}, ({CONNECTIONS},{DEPTH})",
        [
            bare,
            *(Case(s.name, partial(_mirror, bench, s, rate, count, body)) for s in bench.mirrors()),
        ],
        (BARE, COST),
    )


def _bare(bench: Bench, rate: float, count: int, body: int) -> Measurement:
    count = count if rate else bench.count(BARE_UNPACED)
    with bench.tools.sink(bench.new_log()) as sink:
        sent = bench.tools.bare_sender(
            sink.port, BARE_CONNECTIONS, count=count, rate=rate, body=body
        )
        lost = count - sink.wait_for(count)
    values = {"requests/s": sent.per_second, COST: sent.cpu, "lost": lost}
    return Measurement(values, sent.problems)


def _mirror(bench: Bench, subject: Subject, rate: float, count: int, body: int) -> Measurement:
    with (
        bench.tools.sink(bench.new_log()) as sink,
        bench.agent(subject, sink.port) as (port, process),
    ):
        tools = bench.tools
        tools.engine_load(port, CONNECTIONS, DEPTH, count=WARM_UP, message="mirror", body=body)
        before, warm = process.usage(), sink.wait_for(WARM_UP)
        start = time.perf_counter()
        load = tools.engine_load(
            port, CONNECTIONS, DEPTH, count=count, rate=rate, message="mirror", body=body
        )
        arrived = sink.wait_for(warm + count) - warm
        seconds = time.perf_counter() - start
        used = process.usage()
    lost = max(0, load.done - arrived)
    problems = [*load.problems]
    if lost:
        problems.append(f"{lost} of {load.done} requests lost")
    return Measurement(
        {
            "requests/s": arrived / seconds,
            COST: (used.cpu - before.cpu) * 1e6 / max(arrived, 1),
            "lost": lost,
            "ACK p50 us": load.p50,
            "ACK p99 us": load.p99,
            "peak RSS MB": used.peak_rss,
        },
        tuple(problems),
    )


def _dead(bench: Bench, subject: Subject, target: str) -> Measurement:
    count = bench.count(DEAD_COUNT)
    with ExitStack() as stack:
        port_of_target = free_port()  # nobody listens there
        if target != "closed":
            sink = bench.tools.sink(bench.new_log(), never=target == "silent")
            port_of_target = stack.enter_context(sink).port
        port, process = stack.enter_context(bench.agent(subject, port_of_target))
        load = bench.tools.engine_load(port, CONNECTIONS, DEPTH, count=count, message="mirror")
        used = process.usage()
        stop(process)
        log = process.log_text()
    values = {
        **load.values("requests"),
        "peak RSS MB": used.peak_rss,
        "log lines": log.count("\n"),
    }
    if summary := SUMMARY.findall(log):
        values["unaccounted"] = load.done - sum(map(int, summary))
    return Measurement(values, load.problems)
