"""Scenarios around the reputation-style agent: one message, one address, one variable set.

Agent and load generator have a core each.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

from benchmarks.measure import Process, on_core
from benchmarks.results import Case, Measurement, Scenario
from benchmarks.subjects import Bench, Subject

LOADS = ((1, 1), (16, 1), (4, 20), (8, 64))
HANDLERS_LOAD = (4, 20)
HANDLERS = "handlers-4x20"
SECONDS = 2.0
WARM_UP = 5_000
CHURN = 10_000
CHURN_CONNECTIONS = 8
VARIABLE = "ip_score"


def scenarios(bench: Bench) -> list[Scenario]:
    """Return one scenario for each (connections, depth), and churn."""
    found = [
        Scenario(
            f"reputation-{connections}x{depth}",
            f"{connections} connections, {depth} NOTIFYs in flight on each",
            [
                Case(subject.name, partial(_load, bench, subject, connections, depth))
                for subject in bench.reputations()
            ],
        )
        for connections, depth in LOADS
    ]
    churn = Scenario(
        "churn",
        f"one NOTIFY a connection (connect, HELLO, NOTIFY, ACK, DISCONNECT), {CHURN_CONNECTIONS} "
        "at a time; latency of the whole",
        [Case(s.name, partial(_churn, bench, s)) for s in bench.reputations()],
    )
    return [*found, *_handlers(bench), churn]


def _handlers(bench: Bench) -> list[Scenario]:
    """Return the scenario that compares kinds of handlers, if spoakit is measured at all."""
    own = [
        Case(subject.name, partial(_load, bench, subject, *HANDLERS_LOAD))
        for subject in bench.handlers()
    ]
    title = f"kinds of handlers at ({HANDLERS_LOAD[0]},{HANDLERS_LOAD[1]}), with its event loop"
    return [Scenario(HANDLERS, title, own)] if own else []


@contextmanager
def _agent(bench: Bench, subject: Subject) -> Iterator[tuple[int, Process]]:
    with ExitStack() as stack:
        with on_core(0):
            started = stack.enter_context(bench.agent(subject))
        yield started


def _load(bench: Bench, subject: Subject, connections: int, depth: int) -> Measurement:
    with _agent(bench, subject) as (port, process), on_core(1):
        bench.tools.engine_load(port, connections, depth, count=WARM_UP)
        before = process.usage()
        load = bench.tools.engine_load(
            port, connections, depth, seconds=SECONDS * bench.scale, expect=VARIABLE
        )
        used = process.usage()
    return Measurement(
        {
            **load.values("frames"),
            "CPU us/frame": (used.cpu - before.cpu) * 1e6 / max(load.done, 1),
            "peak RSS MB": used.peak_rss,
        },
        load.problems,
    )


def _churn(bench: Bench, subject: Subject) -> Measurement:
    with _agent(bench, subject) as (port, process), on_core(1):
        before = process.usage()
        load = bench.tools.engine_load(
            port, CHURN_CONNECTIONS, count=bench.count(CHURN), expect=VARIABLE, churn=True
        )
        used = process.usage()
    return Measurement(
        {
            "connections/s": load.per_second,
            "p50 us": load.p50,
            "p99 us": load.p99,
            "CPU us/connection": (used.cpu - before.cpu) * 1e6 / max(load.done, 1),
            "peak RSS MB": used.peak_rss,
        },
        load.problems,
    )
