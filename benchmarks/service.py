"""The reputation service with the list of `tables`: what a frame costs, and what a reload does.

One worker, at the list's size. Agent and load generator have a core each, but a reload's process
goes where the kernel puts it.
"""

import re
import shlex
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from ipaddress import IPv6Address
from pathlib import Path

from benchmarks.blocklist import Blocklist
from benchmarks.measure import (
    BenchmarkError,
    Process,
    on_core,
    running,
    wait_until,
)
from benchmarks.results import Case, Measurement, Scenario
from benchmarks.subjects import Bench, Subject
from benchmarks.tables import Inputs
from spoakit.testing import EngineClient
from tests.support.ports import free_port

# Connections, and NOTIFYs in flight on each.
SHAPES = ((8, 64), (4, 20), (300, 1))
CONNECTIONS, DEPTH = SHAPES[0]
SECONDS = 2.0
WARM_UP = 5_000
RELOAD_RATE = 20_000
RELOAD_SECONDS = 10.0
RELOADS = 2
TABLE_LIMIT = 60.0  # seconds to load the list
TABLE_LINE = re.compile(r"table \d+: \d+ entries")
VARIABLE = "ip_score"
UNLISTED = IPv6Address("2c0f::")  # and what follows: no network of the list is near

_CONFIG = """\
[[source]]
name = "blocklist"
type = "list"
path = "blocklist.txt"
"""


def scenarios(bench: Bench) -> list[Scenario]:
    """Return a scenario for each shape of load, and one for reloads."""
    inputs = Inputs(bench.directory, Blocklist().scaled(bench.scale))
    entries = f"{len(inputs.blocklist):,} entries"
    found = [
        Scenario(
            f"reputation-table-{connections}x{depth}",
            f"spoa-iprep with a table of {entries}; {connections} connections, {depth} NOTIFYs in"
            " flight on each",
            [
                Case(each.name, partial(_frames, bench, inputs, each, connections, depth))
                for each in bench.with_lists()
            ],
        )
        for connections, depth in SHAPES
    ]
    reloads = Scenario(
        "iprep-reload",
        f"the same at {RELOAD_RATE:,}/s over ({CONNECTIONS},{DEPTH}), while its list is changed and"
        f" read again {RELOADS} times",
        [Case(each.name, partial(_reloads, bench, inputs, each)) for each in bench.with_lists()],
    )
    return [*found, reloads]


def _frames(
    bench: Bench, inputs: Inputs, subject: Subject, connections: int, depth: int
) -> Measurement:
    with ExitStack() as stack:
        with on_core(0):
            port, process, _ = stack.enter_context(_service(inputs, subject))
        stack.enter_context(on_core(1))
        bench.tools.engine_load(port, connections, depth, count=WARM_UP, wide=True)
        before = process.usage()
        load = bench.tools.engine_load(
            port, connections, depth, seconds=SECONDS * bench.scale, expect=VARIABLE, wide=True
        )
        used = process.usage()
        values = {
            **load.values("frames"),
            "CPU us/frame": (used.cpu - before.cpu) * 1e6 / max(load.done, 1),
            "PSS MB": process.memory(),
        }
    return Measurement(values, load.problems)


def _reloads(bench: Bench, inputs: Inputs, subject: Subject) -> Measurement:
    seconds = RELOAD_SECONDS * bench.scale
    with ExitStack() as stack:
        port, process, path = stack.enter_context(_service(inputs, subject))
        pool = stack.enter_context(ThreadPoolExecutor(1))
        bench.tools.engine_load(port, CONNECTIONS, DEPTH, count=WARM_UP, wide=True)
        resting = process.memory()
        before = process.usage()
        loading = pool.submit(
            bench.tools.engine_load,
            *(port, CONNECTIONS, DEPTH),
            seconds=seconds,
            rate=RELOAD_RATE,
            expect=VARIABLE,
            wide=True,
        )
        engine = stack.enter_context(EngineClient(port=port))
        engine.hello()
        reloads = [_reload(process, path, engine, number) for number in range(RELOADS)]
        load = loading.result()
        used = process.usage()
    return Measurement(
        {
            "frames/s": load.per_second,
            "ACK p50 ms": load.p50 / 1e3,
            "ACK p99 ms": load.p99 / 1e3,
            "ACK max ms": load.maximum / 1e3,
            "CPU us/frame": (used.cpu - before.cpu) * 1e6 / max(load.done, 1),
            "reload s": max(took for took, _ in reloads),
            "PSS MB": resting,
            "PSS MB in a reload": max(memory for _, memory in reloads),
        },
        load.problems,
    )


def _reload(process: Process, path: Path, engine: EngineClient, number: int) -> tuple[float, float]:
    """Change the list and have it read; return the seconds until it is, and the most PSS in MB.

    It is read when the worker answers by it.
    """
    address = UNLISTED + number
    memory = 0.0

    def score() -> object:
        return engine.call("check-client-ip", ip=address)

    def is_read() -> bool:
        nonlocal memory
        memory = max(memory, process.memory())
        return score() != before

    before = score()
    with path.open("a", encoding="ascii") as file:
        file.write(f"{address}\n")
    start = time.perf_counter()
    process.popen.send_signal(signal.SIGHUP)
    _wait(process, is_read)
    return time.perf_counter() - start, memory


@contextmanager
def _service(inputs: Inputs, subject: Subject) -> Iterator[tuple[int, Process, Path]]:
    """Run a subject with a copy of the list, which may be changed, until it has its table."""
    port = free_port()
    with inputs.folder() as folder:
        path, config = Path(folder, "blocklist.txt"), Path(folder, "iprep.toml")
        shutil.copyfile(inputs.list, path)
        config.write_text(_CONFIG, encoding="utf-8")
        command = shlex.split(subject.command.format(port=port, config=shlex.quote(str(config))))
        log = Path(folder, "log")
        with running(command, port=port, log=log, timeout=TABLE_LIMIT) as process:
            _wait(process, lambda: _tables(process) > 0)
            yield port, process, path


def _wait(process: Process, condition: Callable[[], bool]) -> None:
    if not wait_until(lambda: process.ended() or condition(), TABLE_LIMIT) or process.ended():
        last = process.log_text().strip().splitlines()[-1:] or ["nothing"]
        raise BenchmarkError(f"no table in {TABLE_LIMIT:.0f} s; last logged: {last[0]}")


def _tables(process: Process) -> int:
    return len(TABLE_LINE.findall(process.log_text()))
