"""The reputation table beside other people's: ``python -m tests.benchmarks.tables``.

A list of 1.4 million entries, the same in every run, is built, mapped and looked up by each in a
process of its own. Beside spoakit's table: pytricia and py-radix, where they are installed (pip
install pytricia py-radix), and a map of HAProxy's, where there is one (make haproxy). Figures are
minimum, median and maximum of the rounds. Half of the addresses looked up are listed, all come in
random order, and the table's are made anew, as an agent makes them.
"""

import argparse
import json
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from importlib.util import find_spec
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, TypeAlias

from spoakit.apps.iprep._table_cy import COMPILED, Table
from spoakit.apps.iprep.table_builder import Family, Ranges, TableBuilder
from spoakit.testing.haproxy import HAProxy, find_haproxy

Address: TypeAlias = IPv4Address | IPv6Address
Figures: TypeAlias = dict[str, float]
Prefix: TypeAlias = tuple[int, int]

SOURCES = 8
IPV4_ADDRESSES = 1_000_000
IPV4_NETWORKS = 200_000
IPV6_NETWORKS = 200_000
LOOKUPS = 200_000
ROUNDS = 5

# Where listed IPv6 addresses come from, about: few of the /16 are in use.
_IPV6_ROOTS: tuple[int, ...] = (
    0x2001,
    0x2003,
    0x2400,
    0x2402,
    0x2406,
    0x240E,
    0x2600,
    0x2604,
    0x2606,
    0x2800,
)
_IPV6_ROOTS += (0x2804, 0x2A00, 0x2A01, 0x2A02, 0x2A03, 0x2A06, 0x2A0A, 0x2A0E)

HAPROXY_CONFIG = """\
defaults
    mode http
    timeout connect 1s
    timeout client 1s
    timeout server 1s
frontend front
    bind "${FRONTEND}"
    http-request return status 200 hdr listed %[src,map_ip(list.map,0)]
"""


def entries(family: Family) -> Iterator[Prefix]:
    """Yield addresses and networks in random order, as a number and the length of its prefix."""
    numbers = random.Random(family)
    if family == 4:
        for _ in range(IPV4_ADDRESSES):
            yield numbers.randrange(1 << 24, 224 << 24), 32
        for _ in range(IPV4_NETWORKS):
            length = numbers.choice((16, 20, 22, 23, 24, 24, 24, 24, 28))
            yield numbers.randrange(1 << 24, 224 << 24) >> 32 - length << 32 - length, length
        return
    for _ in range(IPV6_NETWORKS):
        length = numbers.choice((32, 48, 48, 56, 64, 64, 64, 128))
        number = numbers.choice(_IPV6_ROOTS) << 112 | numbers.getrandbits(112)
        yield number >> 128 - length << 128 - length, length


def questions() -> list[Address]:
    """Return what is looked up: half of it listed, a seventh IPv6."""
    numbers = random.Random(7)
    asked: list[Address] = []
    for family, share, make in ((4, 6, IPv4Address), (6, 1, IPv6Address)):
        bits = 32 if family == 4 else 128
        listed = list(entries(4 if family == 4 else 6))
        for _ in range(LOOKUPS * share // 14):
            number, length = numbers.choice(listed)
            asked.append(make(number | numbers.getrandbits(bits) >> length))
            if family == 4:
                asked.append(IPv4Address(numbers.getrandbits(32)))
            else:
                root = numbers.choice(_IPV6_ROOTS)
                asked.append(IPv6Address(root << 112 | numbers.getrandbits(112)))
    numbers.shuffle(asked)
    return [type(each)(int(each)) for each in asked]  # in memory as they come, as an agent's


def lookups(lookup: Callable[[Any], object], asked: Sequence[object]) -> float:
    """Return the microseconds of a lookup, without those of the loop around it."""
    start = time.perf_counter()
    for _ in asked:
        pass
    looping = time.perf_counter()
    for address in asked:
        lookup(address)
    return (time.perf_counter() - looping - (looping - start)) / len(asked) * 1e6


def memory(key: str, pid: int | None = None) -> float:
    """Return a figure of a process's memory in MB, such as VmHWM, its peak RSS."""
    text = Path(f"/proc/{pid or 'self'}/status").read_text()
    return int(text.partition(f"{key}:")[2].split()[0]) / 1024


def chunks() -> Iterator[tuple[int, Family, Ranges]]:
    """Yield the entries as a parser hands them over."""
    for family in (4, 6):
        of: Family = 4 if family == 4 else 6
        bits = 32 if family == 4 else 128
        pending = [Ranges.of(of) for _ in range(SOURCES)]
        for index, (number, length) in enumerate(entries(of)):
            ranges = pending[index % SOURCES]
            last = number | (1 << bits - length) - 1
            if family == 4:
                ranges.firsts.append(number)
                ranges.lasts.append(last)
            else:
                ranges.firsts.extend((number >> 64, number & 2**64 - 1))
                ranges.lasts.extend((last >> 64, last & 2**64 - 1))
            ranges.values.append(index % 3)
        for source, ranges in enumerate(pending):
            yield source, of, ranges


def build(path: Path) -> Figures:
    """Build a table, in a process that does nothing else, from what a parser would hand over."""
    parsed = list(chunks())
    resting = memory("VmRSS")
    start, cpu = time.perf_counter(), time.process_time()
    builder = TableBuilder()
    while parsed:
        builder.extend(*parsed.pop())
    stats = builder.build(path)
    return {
        "build s": time.perf_counter() - start,
        "build CPU s": time.process_time() - cpu,
        "peak RSS MB": memory("VmHWM"),
        "of it before the build": resting,
        "file MB": stats.size / 2**20,
        "combinations": stats.combinations,
    }


def look_up(path: Path) -> Figures:
    """Map a table, as a worker does, and look addresses up."""
    asked = questions()
    resting = memory("VmRSS")
    start = time.perf_counter()
    table = Table.open(path)
    opened = time.perf_counter() - start
    figures = {"open ms": opened * 1e3, "us a lookup": lookups(table.lookup, asked)}
    for version in (4, 6):
        some = [each for each in asked if each.version == version]
        figures[f"us a lookup, IPv{version}"] = lookups(table.lookup, some)
    return {**figures, "RSS MB more": memory("VmRSS") - resting}


def pytricia(path: Path) -> Figures:
    """Fill and ask a tree of pytricia's, which takes one family each."""
    module: Any = import_module("pytricia")
    trees = {4: module.PyTricia(32), 6: module.PyTricia(128)}

    def insert(prefix: str) -> None:
        trees[6 if ":" in prefix else 4].insert(prefix, 1)

    def ask(address: Address) -> object:
        return trees[address.version].get(address)

    return _tree(insert, ask, questions())


def radix(path: Path) -> Figures:
    """Fill and ask a tree of py-radix's."""
    tree: Any = import_module("radix").Radix()
    # It takes texts or packed addresses; packing is the caller's work, and not measured.
    asked = [each.packed for each in questions()]
    return _tree(tree.add, lambda packed: tree.search_best(packed=packed), asked)


def _tree(
    insert: Callable[[str], object], ask: Callable[[Any], object], asked: Sequence[object]
) -> Figures:
    resting = memory("VmRSS")
    took = 0.0
    for prefixes in texts():
        start = time.perf_counter()
        for prefix in prefixes:
            insert(prefix)
        took += time.perf_counter() - start
    return {
        "build s": took,
        "RSS MB more": memory("VmRSS") - resting,
        "us a lookup": lookups(ask, asked),
    }


def texts(size: int = 10_000) -> Iterator[list[str]]:
    """Yield the entries as text, some at a time."""
    pending: list[str] = []
    for number, length in entries(4):
        pending.append(f"{IPv4Address(number)}/{length}")
        if len(pending) == size:
            yield pending
            pending = []
    for number, length in entries(6):
        pending.append(f"{IPv6Address(number)}/{length}")
        if len(pending) == size:
            yield pending
            pending = []
    yield pending


def haproxy_map(path: Path) -> Figures:
    """Start HAProxy with the entries as a map, and without; memory as the kernel sees it."""
    entries_ = "".join(f"{prefix} 1\n" for prefixes in texts() for prefix in prefixes)
    empty, full = (_haproxy(text) for text in ("", entries_))
    return {
        "start or reload s": full[0] - empty[0],
        "RSS MB more": full[1] - empty[1],
    }


def newest_haproxy() -> Path | None:
    """Return the newest HAProxy that the tests use."""
    return find_haproxy("3.2") or find_haproxy("3.0") or find_haproxy("2.6")


def _haproxy(entries_: str) -> tuple[float, float]:
    """Return the seconds HAProxy takes to check its configuration, and its RSS once it runs.

    What it does for a check, reading the map, it does for a reload, in a new process.
    """
    with HAProxy(HAPROXY_CONFIG, files={"list.map": entries_}, binary=newest_haproxy()) as haproxy:
        start = time.perf_counter()
        haproxy.check()
        took = time.perf_counter() - start
        pid = next(
            int(line.partition(":")[2])
            for line in haproxy.command("show info").splitlines()
            if line.startswith("Pid:")
        )
        return took, memory("VmRSS", pid)


# By name, what measures it in a process of its own, and what it needs.
SUBJECTS: dict[str, tuple[Callable[[Path], Figures], Callable[[], object]]] = {
    "build": (build, lambda: True),
    "lookup": (look_up, lambda: True),
    "pytricia": (pytricia, lambda: find_spec("pytricia")),
    "py-radix": (radix, lambda: find_spec("radix")),
    "haproxy map": (haproxy_map, newest_haproxy),
}


def measured(name: str, path: Path) -> Figures:
    """Measure a subject in a process of its own."""
    command = [sys.executable, "-m", "tests.benchmarks.tables", "--measure", name]
    command += ["--table", str(path)]
    ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    figures: Figures = json.loads(ended.stdout)
    return figures


def main() -> int:
    parser = argparse.ArgumentParser(prog="tables", description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"rounds ({ROUNDS})")
    parser.add_argument("--only", action="append", choices=SUBJECTS, help="may be repeated")
    parser.add_argument("--measure", choices=SUBJECTS, help=argparse.SUPPRESS)
    parser.add_argument("--table", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(SUBJECTS[options.measure][0](options.table)))
        return 0
    print(
        f"{'compiled' if COMPILED else 'uncompiled'}, {options.rounds} rounds: min / median / max"
    )
    with TemporaryDirectory() as folder:
        path = Path(folder, "table")
        measured("build", path)
        for name in options.only or SUBJECTS:
            if not SUBJECTS[name][1]():
                print(f"{name}: not installed")
                continue
            rounds = [measured(name, path) for _ in range(options.rounds)]
            print(name)
            for figure in rounds[0]:
                values = sorted(each[figure] for each in rounds)
                shown = " / ".join(f"{v:10.3f}" for v in (values[0], median(values), values[-1]))
                print(f"  {figure:24} {shown}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
