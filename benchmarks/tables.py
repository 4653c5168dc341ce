"""The reputation table of 1.4 million entries, beside what else can look addresses up.

Each contender has a process of its own (see `contenders` and `haproxy_map`), and all have the same
list and the same questions.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from ipaddress import ip_address
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.blocklist import QUESTIONS, Blocklist
from benchmarks.contenders import Figures
from benchmarks.haproxy_map import RULES, measure
from benchmarks.measure import BenchmarkError
from benchmarks.results import Case, Measurement, Scenario
from benchmarks.subjects import OWN, REPOSITORY, Bench, newest_haproxy
from spoakit.testing.haproxy import haproxy_version

UNCOMPILED = f"{OWN}, uncompiled"
OTHERS_ROUNDS = 1  # they take ten seconds each to load
TIMEOUT = 120.0  # seconds for a contender


def scenarios(bench: Bench) -> list[Scenario]:
    """Return the scenario."""
    blocklist = Blocklist().scaled(bench.scale)
    inputs = Inputs(bench.directory, blocklist)
    contenders: dict[str, Callable[[], Figures]] = {
        OWN: partial(_own, inputs, ""),
        UNCOMPILED: partial(_own, inputs, "-uncompiled"),
        "pytricia": partial(_contender, inputs, "pytricia"),
        "py-radix": partial(_contender, inputs, "py-radix"),
        "plain bisect": partial(_contender, inputs, "bisect"),
        _map_label(): partial(_haproxy_map, inputs),
    }
    return [
        Scenario(
            "iprep-table",
            f"{len(blocklist):,} IPv4 and IPv6 addresses and networks",
            [
                Case(
                    label,
                    partial(_measured, figures),
                    max_rounds=None if label.startswith(OWN) else OTHERS_ROUNDS,
                )
                for label, figures in contenders.items()
                if bench.has_own or not label.startswith(OWN)
            ],
        )
    ]


@dataclass
class Inputs:
    """The list and the questions as files, which are made when they are first needed."""

    directory: Path
    blocklist: Blocklist

    @cached_property
    def list(self) -> Path:
        path = self.directory / "blocklist.txt"
        if not path.exists():
            self.blocklist.write(path)
        return path

    @cached_property
    def questions(self) -> Path:
        path = self.directory / "questions.txt"
        count = min(QUESTIONS, len(self.blocklist))
        lines = "".join(f"{address}\n" for address in self.blocklist.questions(count))
        path.write_text(lines, encoding="ascii")
        return path

    def folder(self) -> TemporaryDirectory[str]:
        return TemporaryDirectory(dir=self.directory)


def _measured(figures: Callable[[], Figures]) -> Measurement:
    return Measurement(figures())


def _own(inputs: Inputs, form: str) -> Figures:
    """Build in one process and look up in another, as the service and its workers do."""
    with inputs.folder() as folder:
        built = _run(f"build{form}", inputs, folder)
        looked_up = _run(f"lookup{form}", inputs, folder)
    return {
        **looked_up,
        "peak MB": built["peak MB"],
        "load s": built["load s"] + looked_up["load s"],
    }


def _contender(inputs: Inputs, name: str) -> Figures:
    with inputs.folder() as folder:
        return _run(name, inputs, folder)


def _haproxy_map(inputs: Inputs) -> Figures:
    if (binary := newest_haproxy()) is None:
        raise BenchmarkError("no HAProxy: install haproxy, or run scripts/fetch_haproxy.py")
    lines = inputs.questions.read_text(encoding="ascii").split()
    with inputs.folder() as folder:
        asked = [ip_address(line) for line in lines[:RULES]]
        return measure(binary, inputs.list, asked, Path(folder))


def _map_label() -> str:
    binary = newest_haproxy()
    return f"map of HAProxy {haproxy_version(binary)}" if binary else "map of HAProxy"


def _run(name: str, inputs: Inputs, folder: str) -> Figures:
    """Measure in a process of its own.

    Raises:
        BenchmarkError: it failed; the text is the last line it printed.
    """
    command = [sys.executable, "-m", "benchmarks.contenders", name]
    command += [str(inputs.list), str(inputs.questions), folder]
    try:
        ended = subprocess.run(
            command, cwd=REPOSITORY, capture_output=True, text=True, timeout=TIMEOUT, check=False
        )
    except subprocess.TimeoutExpired:
        raise BenchmarkError(f"{name} did not end in {TIMEOUT:.0f} s") from None
    if ended.returncode:
        last = ended.stderr.strip().splitlines()[-1:] or [f"it ended with {ended.returncode}"]
        raise BenchmarkError(last[0])
    figures: Figures = json.loads(ended.stdout)
    return figures
