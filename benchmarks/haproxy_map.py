"""A HAProxy map of the list: what it costs to have, and to look up in.

HAProxy is started with the map, and with an empty one: what it takes to load and to hold is the
difference. It is reloaded by a new process, which ends the old one (``-sf``) once it has read the
map.

A lookup is far cheaper than the request that asks for it, so one request asks for thousands: a
rule each looks a constant address up, with the converter ``map_ip``. Another frontend has the same
rules without the converter. The CPU time between both, divided by lookups, is a lookup's. There is
no figure for warm caches: the rules themselves take more room than those have.
"""

import re
import socket
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path

from benchmarks.blocklist import Address
from benchmarks.contenders import Figures
from benchmarks.measure import (
    BenchmarkError,
    Process,
    proportional_set_size,
    running,
    wait_until,
)
from tests.support.ports import free_port

RULES = 10_000
REQUESTS = 10
START_LIMIT = 60.0
ANSWER_LIMIT = 10.0

_HEAD = """\
global
    nbthread 1
    stats socket {socket} mode 600 level admin

defaults
    mode http
    timeout connect 5s
    timeout client 30s
    timeout server 30s
"""
_FRONTEND = """\

frontend {name}
    bind 127.0.0.1:{port}
{rules}
    http-request return status 200
"""
_POOLS = re.compile(r"^PoolAlloc_bytes: (\d+)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class _Run:
    """One HAProxy's figures."""

    started: float
    memory: float
    peak: float
    pools: float
    lookup: float
    reload: float


def measure(binary: Path, path: Path, asked: Sequence[Address], folder: Path) -> Figures:
    """Measure the map of a list.

    Args:
        binary: the haproxy program.
        path: the list.
        asked: addresses to look up, of which the first 10,000 are.
        folder: where the map, the configuration and the log go.

    Raises:
        BenchmarkError: HAProxy does not run.
    """
    the_map = folder / "list.map"
    the_map.write_text("# empty\n", encoding="ascii")
    empty = _run(binary, the_map, asked, folder)
    the_map.write_text(path.read_text(encoding="ascii").replace("\n", " 1\n"), encoding="ascii")
    full = _run(binary, the_map, asked, folder)
    return {
        "memory MB": full.memory - empty.memory,
        "pools MB": full.pools - empty.pools,
        "peak MB": full.peak,
        "load s": full.started - empty.started,
        "reload s": full.reload,
        "lookup us": full.lookup,
        "lookups/s": 1e6 / full.lookup,
    }


def _run(binary: Path, the_map: Path, asked: Sequence[Address], folder: Path) -> _Run:
    plain, mapped = free_port(), free_port()
    stats, config = folder / "stats.sock", folder / "haproxy.cfg"
    config.write_text(
        _HEAD.format(socket=stats)
        + _FRONTEND.format(name="mapped", port=mapped, rules=_rules(asked[:RULES], the_map))
        + _FRONTEND.format(name="plain", port=plain, rules=_rules(asked[:RULES], None)),
        encoding="ascii",
    )
    command, log = [str(binary), "-db", "-f", str(config)], folder / "haproxy.log"
    start = time.perf_counter()
    with running(command, port=plain, log=log, timeout=START_LIMIT) as process:
        started = time.perf_counter() - start
        pid = process.popen.pid
        without = _cpu_of_a_request(process, plain)
        lookup = (_cpu_of_a_request(process, mapped) - without) / RULES * 1e6
        memory, peak, pools = proportional_set_size(pid), process.usage().peak_rss, _pools(stats)
        start = time.perf_counter()
        with running([*command, "-sf", str(pid)], port=plain, log=log, timeout=START_LIMIT):
            if not wait_until(process.ended, START_LIMIT):
                raise BenchmarkError("HAProxy was not reloaded")
            return _Run(started, memory, peak, pools, lookup, time.perf_counter() - start)


def _rules(asked: Sequence[Address], the_map: Path | None) -> str:
    converter = "" if the_map is None else f",map_ip({the_map},0)"
    return "\n".join(
        f"    http-request set-var(txn.found) ipv{address.version}({address}){converter}"
        for address in asked
    )


def _cpu_of_a_request(process: Process, port: int) -> float:
    with closing(HTTPConnection("127.0.0.1", port, timeout=ANSWER_LIMIT)) as client:
        _request(client)
        before = process.usage().cpu
        for _ in range(REQUESTS):
            _request(client)
        return (process.usage().cpu - before) / REQUESTS


def _request(client: HTTPConnection) -> None:
    try:
        client.request("GET", "/")
        answer = client.getresponse()
        answer.read()
    except OSError as error:
        raise BenchmarkError(f"HAProxy does not answer: {error}") from error
    if answer.status != 200:
        raise BenchmarkError(f"HAProxy answered {answer.status}")


def _pools(stats: Path) -> float:
    """Return what HAProxy reports as the memory of its pools, in MB."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(ANSWER_LIMIT)
        client.connect(str(stats))
        client.sendall(b"show info\n")
        with client.makefile() as file:
            return parsed_pools(file.read())


def parsed_pools(text: str) -> float:
    """Return the memory of the pools, in MB, from what "show info" says.

    Raises:
        BenchmarkError: it does not say it.
    """
    found = _POOLS.search(text)
    if found is None:
        raise BenchmarkError(f"HAProxy's 'show info' has no PoolAlloc_bytes: {text[:200]!r}")
    return int(found[1]) / 2**20
