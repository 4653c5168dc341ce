"""Measure spoakit's agents, and any others beside them: ``python -m benchmarks.run``.

Everything is bounded in count and time, and ends with this process. Exit status: 1 when one of
spoakit's own agents failed or lost something, whatever the others did; missed goals are only told.
"""

import argparse
import os
import signal
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks import http2, mirroring, production, reputation, service, tables
from benchmarks.goals import goals
from benchmarks.measure import BenchmarkError
from benchmarks.results import Results
from benchmarks.subjects import OWN, REPOSITORY, Bench, Subject, compared, own_subjects
from benchmarks.tools import build

QUICK_SCALE = 0.2


def main() -> int:
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = "*"  # all is on this machine
    options = _parser().parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        others = [compared(text) for text in options.compare]
        tools = build(REPOSITORY / ".cache" / "benchmarks")
    except BenchmarkError as error:
        print(f"ERROR: {error}", file=sys.stderr)
        return 2
    own = () if options.others_only else own_subjects()
    with TemporaryDirectory(prefix="spoakit-bench-") as directory:
        scale = QUICK_SCALE if options.quick else 1.0
        bench = Bench(tools, Path(directory), (*own, *others), scale)
        try:
            results = _measure(bench, options.only, 1 if options.quick else options.rounds)
        except KeyboardInterrupt:
            return 128 + signal.SIGINT
    _report(results, others, whole_list=not options.quick)
    if options.json:
        results.write(options.json)
    return int(any(problem.label.startswith(OWN) for problem in results.problems))


def _measure(bench: Bench, only: list[str], rounds: int) -> Results:
    results = Results()
    for room in (reputation, tables, service, mirroring, http2, production):
        for scenario in room.scenarios(bench):
            if only and not any(scenario.name.startswith(name) for name in only):
                continue
            results.run(scenario, rounds)
            print(results.table(scenario), end="\n\n", flush=True)
    return results


def _report(results: Results, others: list[Subject], *, whole_list: bool) -> None:
    print("Figures are medians (lowest-highest) of the rounds.\n\nGoals:")
    references = [each.name for each in others if not each.is_mirror and not each.has_lists]
    for goal in goals(results, references, whole_list=whole_list):
        print(goal)
    if results.problems:
        print("\nProblems:")
        for problem in results.problems:
            print(f"  {problem}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="run", description=__doc__)
    parser.add_argument(
        "--compare",
        action="append",
        default=[],
        metavar="NAME=COMMAND",
        help="measure another agent in the same run; {port} in the command is its port, and"
        " {target}, for a mirror, the port to copy to, or {config} the file of a spoa-iprep; may be"
        " repeated",
    )
    parser.add_argument("--others-only", action="store_true", help="leave spoakit's own agents out")
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="NAME",
        help="scenarios whose names start so (reputation, reputation-table, churn, iprep, mirror,"
        " mirror-full, dead-target, http2, production, production-500, production-2000); may be"
        " repeated",
    )
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each scenario (3)")
    parser.add_argument("--quick", action="store_true", help="one round, a fifth of the load")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure as JSON")
    return parser


if __name__ == "__main__":
    sys.exit(main())
