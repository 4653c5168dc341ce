"""Production through a real HAProxy: what its clients lose when every request is mirrored.

HAProxy (one thread), clients, origin, target and agent share the machine. Measured without the
filter, with an agent that only acknowledges, with the mirror, with three more targets that are
slow, dead, and reset each connection, and with the filter's agent dead behind spop-check: as many
requests as there can be, which tells of throughput, and some at a fixed pace, which tells of
latencies.
"""

import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial

from benchmarks.measure import BenchmarkError, wait_until
from benchmarks.mirroring import WARM_UP
from benchmarks.resetting import resetting
from benchmarks.results import Case, Measurement, Scenario
from benchmarks.subjects import (
    ACKNOWLEDGING,
    HAPROXY_VERSIONS,
    OWN,
    Bench,
    Subject,
    acknowledging_agent,
    newest_haproxy,
)
from benchmarks.tools import MARGIN
from spoakit.testing.haproxy import HAProxy, haproxy_version
from tests.support.ports import free_port

WANTED = HAPROXY_VERSIONS[0]
CONNECTIONS = 32
SECONDS = 5
PACES = (500, 2_000)  # requests a second
PACED_CONNECTIONS = 64  # more than are busy at a time: no request waits for one, unmeasured
UNFILTERED = "no filter"
TROUBLED = f"{OWN}, 4 targets"
SLOW_ANSWER = 2000  # milliseconds
CHECK_TIMEOUT = 10.0

CONFIG = """\
global
    nbthread 1
    maxconn 2000

defaults
    mode http
    timeout connect 1s
    timeout client 30s
    timeout server 30s

frontend production
    bind "${FRONTEND}"
    option http-buffer-request
    @FILTER@
    default_backend origin

backend origin
    server origin "127.0.0.1:${ORIGIN}"

backend mirrors
    mode @MODE@
    option spop-check
    server mirror "127.0.0.1:${AGENT}" check inter 200ms
"""

SPOE = """\
[mirror]
spoe-agent mirror
    messages mirror
    use-backend mirrors
    option var-prefix mirror
    option continue-on-error
    option set-on-error error
    timeout hello 500ms
    timeout idle 30s
    timeout processing 500ms

spoe-message mirror
    args arg_method=method arg_path=url arg_ver=req.ver arg_hdrs=req.hdrs_bin arg_body=req.body
    event on-frontend-http-request
"""

Values = dict[str, float]
Load = Callable[[int], tuple[Values, tuple[str, ...]]]  # on HAProxy's port; what went wrong

_UNITS = {"us": 1e-3, "ms": 1.0, "s": 1e3, "m": 6e4}  # in milliseconds


def scenarios(bench: Bench) -> list[Scenario]:
    """Return one scenario for what is possible, and one for each pace."""
    binary = newest_haproxy()
    version = f"HAProxy {haproxy_version(binary)}" if binary else "no HAProxy"
    if not version.startswith(f"HAProxy {WANTED}."):
        version += f" ({WANTED} is wanted: scripts/fetch_haproxy.py {WANTED})"
    seconds = max(1, round(SECONDS * bench.scale))
    possible = partial(_wrk, seconds)
    acknowledged = Case(
        ACKNOWLEDGING,
        partial(_production, bench, possible, acknowledging_agent(), mirrors=False),
    )
    dead = Case("dead agent", partial(_production, bench, possible, None, dead=True))
    return [
        Scenario(
            "production",
            f"{version}, 1 thread; wrk with {CONNECTIONS} connections",
            [*_cases(bench, possible), acknowledged, dead],
            (UNFILTERED, "requests/s"),
        ),
        *(
            Scenario(
                paced_name(rate),
                f"{version}, 1 thread; {rate:,} requests a second",
                _cases(bench, partial(_paced, bench, rate, seconds)),
                (OWN, "p99 ms"),
            )
            for rate in PACES
        ),
    ]


def paced_name(rate: int) -> str:
    """Return the name of the scenario at that pace."""
    return f"production-{rate}"


def _cases(bench: Bench, load: Load) -> list[Case]:
    """Return the cases: without the filter, each mirror, ours with targets in trouble."""
    return [
        Case(UNFILTERED, partial(_production, bench, load, None)),
        *(Case(s.name, partial(_production, bench, load, s)) for s in bench.mirrors()),
        *(
            Case(TROUBLED, partial(_production, bench, load, s, troubled=True))
            for s in bench.mirrors()
            if s.name == OWN
        ),
    ]


@contextmanager
def _with_troubled_targets(bench: Bench, subject: Subject) -> Iterator[Subject]:
    """Yield the subject with three more targets: a slow one, a dead one, a resetting one."""
    dead = free_port()
    with bench.tools.sink(bench.new_log(), delay=SLOW_ANSWER) as slow, resetting() as reset:
        more = "".join(f" -u http://127.0.0.1:{port}/" for port in (slow.port, dead, reset))
        # What the slow one still has at the end is not waited for.
        yield replace(subject, command=f"{subject.command}{more} --drain 1s")


def _production(
    bench: Bench,
    load: Load,
    subject: Subject | None,
    *,
    dead: bool = False,
    troubled: bool = False,
    mirrors: bool = True,
) -> Measurement:
    if (binary := newest_haproxy()) is None:
        raise BenchmarkError("no HAProxy: install haproxy, or run scripts/fetch_haproxy.py")
    with ExitStack() as stack:
        origin = stack.enter_context(bench.tools.sink(bench.new_log()))
        target = stack.enter_context(bench.tools.sink(bench.new_log()))
        process = None
        agent_port = free_port()
        if subject and troubled:
            subject = stack.enter_context(_with_troubled_targets(bench, subject))
        if subject:
            agent_port, process = stack.enter_context(bench.agent(subject, target.port))
        spop_mode = tuple(map(int, haproxy_version(binary).split(".")[:2])) >= (3, 1)
        haproxy = HAProxy(
            CONFIG.replace(
                "@FILTER@", "filter spoe engine mirror config spoe.cfg" if subject or dead else ""
            ).replace("@MODE@", "spop" if spop_mode else "tcp"),
            files={"spoe.cfg": SPOE},
            variables={"ORIGIN": str(origin.port), "AGENT": str(agent_port)},
            binary=binary,
        )
        stack.enter_context(haproxy)
        expected = "UP" if subject else "DOWN"
        if not wait_until(
            lambda: haproxy.server_status("mirrors", "mirror").split()[0] == expected,
            CHECK_TIMEOUT,
        ):
            raise BenchmarkError(f"HAProxy does not see the agent {expected}")
        before = process.usage() if process else None
        values, problems = load(haproxy.ports["FRONTEND"])
        requests = origin.count()
        mirrored = target.wait_for(requests) if process and mirrors else 0
        if process and before:
            used = process.usage()
            values["agent CPU us/request"] = (used.cpu - before.cpu) * 1e6 / max(requests, 1)
            values["peak RSS MB"] = used.peak_rss
        if process and mirrors:
            # A request whose client left at wrk's end may be mirrored and never reach the origin.
            values["lost"] = max(0, requests - mirrored)
            if values["lost"]:
                problems += (f"{values['lost']:.0f} of {requests} requests not mirrored",)
    return Measurement(values, problems)


def _paced(bench: Bench, rate: int, seconds: int, port: int) -> tuple[Values, tuple[str, ...]]:
    # What is opened for the first requests is not what the later ones wait for.
    bench.tools.bare_sender(port, PACED_CONNECTIONS, count=WARM_UP, rate=rate)
    sent = bench.tools.bare_sender(port, PACED_CONNECTIONS, count=rate * seconds, rate=rate)
    values = {
        "requests/s": sent.per_second,
        "p50 ms": sent.p50 / 1e3,
        "p99 ms": sent.p99 / 1e3,
        "max ms": sent.maximum / 1e3,
    }
    return values, sent.problems


def _wrk(seconds: int, port: int) -> tuple[Values, tuple[str, ...]]:
    if (program := shutil.which("wrk")) is None:
        raise BenchmarkError("no wrk: install it (apt-get install wrk)")
    command = [program, "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "--latency",
               f"http://127.0.0.1:{port}/articles/2024/offloading?page=2"]  # fmt: skip
    try:
        text = subprocess.run(
            command, capture_output=True, text=True, timeout=seconds + MARGIN, check=True
        ).stdout
    except subprocess.SubprocessError as error:
        raise BenchmarkError(f"wrk failed: {error}") from error
    rate = re.search(r"Requests/sec:\s+([\d.]+)", text)
    latencies = re.findall(r"^\s+(50|99)%\s+([\d.]+)(us|ms|s|m)$", text, re.MULTILINE)
    if rate is None or len(latencies) != 2:
        raise BenchmarkError(f"wrk printed something else than figures: {text}")
    values = {"requests/s": float(rate[1])}
    values |= {f"p{part} ms": float(number) * _UNITS[unit] for part, number, unit in latencies}
    lines = (line.strip() for line in text.splitlines())
    return values, tuple(line for line in lines if "Non-2xx" in line or "Socket" in line)
