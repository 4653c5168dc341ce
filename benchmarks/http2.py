"""Mirroring over HTTP/2, to nghttpd with prior knowledge.

There is no bare sender for it: what it costs stands beside what HTTP/1.1 costs in `mirroring`.
"""

import re
import shutil
from dataclasses import replace
from functools import partial

from benchmarks.measure import BenchmarkError, running, stop, wait_until
from benchmarks.mirroring import CONNECTIONS, COST, DEPTH, WARM_UP
from benchmarks.results import Case, Measurement, Scenario
from benchmarks.subjects import OWN, Bench, Subject
from tests.support.ports import free_port

PACES = {"2000": (2_000, 8_000), "full": (0, 30_000)}
FINISH = 30.0
RESPONSES = re.compile(r"(\d+) responses\b")


def scenarios(bench: Bench) -> list[Scenario]:
    """Return one scenario for each pace."""
    return [
        Scenario(
            f"http2-{pace}",
            f"{bench.count(count):,} requests, no body, over HTTP/2, "
            + (f"at {rate:,}/s" if rate else "as fast as they are ACKed"),
            [
                Case(subject.name, partial(_mirror, bench, subject, rate, bench.count(count)))
                for subject in bench.mirrors()
                if subject.name == OWN
            ],
        )
        for pace, (rate, count) in PACES.items()
    ]


def _mirror(bench: Bench, subject: Subject, rate: float, count: int) -> Measurement:
    if (program := shutil.which("nghttpd")) is None:
        raise BenchmarkError("no nghttpd: install it (apt-get install nghttp2-server)")
    target = free_port()
    command = [program, "-a", "127.0.0.1", "-d", "/nonexistent", "--no-tls", str(target)]
    with (
        running(command, port=target, log=bench.new_log()),
        bench.agent(replace(subject, command=subject.command + " --http 2"), target) as (port, own),
    ):
        tools = bench.tools
        tools.engine_load(port, CONNECTIONS, DEPTH, count=WARM_UP, message="mirror")
        before = own.usage()
        load = tools.engine_load(port, CONNECTIONS, DEPTH, count=count, rate=rate, message="mirror")
        logged = WARM_UP + load.done
        wait_until(lambda: own.log_text().count('HTTP/2" 404 ') >= logged, FINISH)
        used = own.usage()
        stop(own)
        responses = int(RESPONSES.findall(own.log_text())[-1]) - WARM_UP
    lost = load.done - responses
    return Measurement(
        {
            COST: (used.cpu - before.cpu) * 1e6 / max(responses, 1),
            "lost": lost,
            "ACK p50 us": load.p50,
            "ACK p99 us": load.p99,
            "peak RSS MB": used.peak_rss,
        },
        (*load.problems, *([f"{lost} of {load.done} requests lost"] if lost else [])),
    )
