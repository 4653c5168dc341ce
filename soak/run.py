"""Serve HAProxy's clients for a long time, while all kinds of things happen to the agents.

    python -m soak.run [--minutes 60] [--rate 1000] [--seconds 10]

spoa-mirror (with a healthy, a slow, a dead and a resetting target, and one that is restarted) and
spoa-iprep, both with two workers, behind one HAProxy. Each round has a HAProxy of its own and goes
through the incidents of `incidents.py`, each under its own load; then it is looked at what the
agents hold.

Exit status 0 when each request was answered, scored by spoa-iprep and copied to the healthy target
unless a worker that was killed had it; when no memory and no file was kept; and when both agents
ended in order. Else 1, and 2 when it could not go on.

Workers are stopped only where the agents have --worker-timeout, which replaces them.
"""

import argparse
import os
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from threading import Event

from benchmarks.measure import BenchmarkError
from benchmarks.subjects import REPOSITORY
from benchmarks.tools import Sent, build
from soak.incidents import LOST_COPIES, UNSCORED, Incident, incidents
from soak.scene import Scene, has_worker_timeout

MOST_MEMORY = 8.0  # MB that an agent may hold beyond what it held after the first round
MOST_FILES = 250  # of an agent: with two workers, 160 connections to five targets among them


@dataclass
class Soak:
    """The rounds so far, and what went wrong in them."""

    scene: Scene
    rate: int
    seconds: float
    stop_workers: bool = False
    problems: list[str] = field(default_factory=list)
    requests: int = 0
    _first: dict[str, float] = field(default_factory=dict)

    def round(self) -> str:
        """Go through all incidents; return what there is to say of it."""
        self.scene.restart_haproxy()
        met = {each.__name__: self.meet(each) for each in incidents(self.stop_workers)}
        p99s = {name: p99 for name, (p99, _) in met.items()}
        worst = max(p99s, key=p99s.__getitem__)
        return (
            f"p99 {median(p99s.values()):.1f} ms, worst {p99s[worst]:.1f} ms ({worst}), "
            f"{sum(lost for _, lost in met.values())} lost; {self._look()}"
        )

    def meet(self, incident: Incident) -> tuple[float, int]:
        """Let it happen under load; return clients' p99 in ms, and how many copies were lost."""

        name = incident.__name__
        count = max(1, round(self.rate * self.seconds))
        over = Event()
        loads: list[Sent] = []

        def send() -> None:
            while not (loads and over.is_set()):
                loads.append(self.scene.send(count, self.rate))

        # What an incident starts is a child of its thread, and ends with it: it has this one.
        with ThreadPoolExecutor(1) as pool:
            sending = pool.submit(send)
            try:
                time.sleep(self.seconds / 4)
                incident(self.scene)
            finally:
                over.set()
            sending.result()
        requests, copies = self.scene.reached()
        self.requests += requests
        self.problems += [f"{name}: {problem}" for load in loads for problem in load.problems]
        if requests != count * len(loads):
            self.problems.append(f"{name}: {requests} of {count * len(loads)} requests were served")
        lost = requests - copies
        if not 0 <= lost <= LOST_COPIES.get(incident, 0):
            said = self.scene.said_of_healthy()
            self.problems.append(f"{name}: {copies} copies of {requests} requests\n{said}")
        if (unscored := self.scene.unscored()) > UNSCORED.get(incident, 0):
            self.problems.append(f"{name}: {unscored} of {requests} requests have no score")
        return max(load.p99 for load in loads) / 1e3, lost

    def _look(self) -> str:
        """Compare what the agents hold with what they held first; return what it is."""
        texts = []
        for agent in self.scene.agents:
            held = agent.held
            first = self._first.setdefault(agent.name, held.memory)
            texts.append(f"{agent.name} {held.memory:.1f} MB, {held.files} files")
            if held.memory > first + MOST_MEMORY or held.files > MOST_FILES:
                self.problems.append(f"{texts[-1]}; at first {first:.1f} MB")
        return ", ".join(texts)


def soak(
    folder: Path, *, minutes: float, rate: int, seconds: float, stop_workers: bool = False
) -> int:
    """Go round for some time, once at least; print what comes of it, return how many problems."""
    start = time.monotonic()

    def show(line: str, problems: list[str]) -> None:
        print(f"{time.monotonic() - start:6.0f} s: {line}", flush=True)
        for problem in problems:
            print(f"  PROBLEM {problem}", flush=True)

    with ExitStack() as stack:
        scene = Scene(build(REPOSITORY / ".cache" / "benchmarks"), folder, stack)
        rounds = Soak(scene, rate, seconds, stop_workers)
        while not rounds.requests or time.monotonic() < start + minutes * 60:
            known = len(rounds.problems)
            line = rounds.round()
            show(line, rounds.problems[known:])
        at_the_end = scene.stop_agents()
    problems = len(rounds.problems) + len(at_the_end)
    show(f"{rounds.requests:,} requests, {problems} problems", at_the_end)
    return problems


def main() -> int:
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = "*"  # all is on this machine
    parser = argparse.ArgumentParser(
        prog="python -m soak.run",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--minutes", type=float, default=60.0, help="how long (default: 60)")
    parser.add_argument("--rate", type=int, default=1000, help="requests a second (default: 1000)")
    parser.add_argument(
        "--seconds", type=float, default=10.0, help="of load for each incident (default: 10)"
    )
    parser.add_argument(
        "--stop-workers",
        action=argparse.BooleanOptionalAction,
        default=has_worker_timeout(),
        help="send workers SIGSTOP (default: if the agents have --worker-timeout)",
    )
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with TemporaryDirectory(prefix="spoakit-soak-") as folder:
        try:
            problems = soak(
                Path(folder),
                minutes=options.minutes,
                rate=options.rate,
                seconds=options.seconds,
                stop_workers=options.stop_workers,
            )
        except BenchmarkError as error:
            print(f"ERROR: {error}", file=sys.stderr)
            return 2
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
