"""What the figures should reach, checked on the medians of a run."""

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.mirroring import BARE, COST
from benchmarks.production import PACES as PRODUCTION_PACES
from benchmarks.production import TROUBLED, UNFILTERED, paced_name
from benchmarks.reputation import HANDLERS
from benchmarks.results import Results
from benchmarks.subjects import ACKNOWLEDGING, KINDS, OWN
from benchmarks.tables import UNCOMPILED

FRAME_COST = "CPU us/frame"
CHURN_COST = "CPU us/connection"


@dataclass(frozen=True, slots=True)
class Goal:
    """A figure and its limit; not measured in this run: None."""

    text: str
    figure: float | None
    limit: float
    at_least: bool = False

    def __str__(self) -> str:
        sign = ">=" if self.at_least else "<="
        if self.figure is None:
            return f"  -     {self.text}: not measured ({sign} {self.limit:g})"
        reached = self.figure >= self.limit if self.at_least else self.figure <= self.limit
        mark = "ok    " if reached else "MISSED"
        return f"  {mark} {self.text}: {self.figure:.3g} ({sign} {self.limit:g})"


def goals(results: Results, references: Sequence[str], *, whole_list: bool = True) -> list[Goal]:
    """Return the goals.

    Args:
        results: what was measured.
        references: the compared agents, the first being the reference.
        whole_list: whether the table had all entries; what a smaller one reaches is no goal.
    """

    def own(scenario: str, column: str, label: str = OWN) -> float | None:
        return results.median(scenario, label, column)

    def with_table(scenario: str, column: str, label: str = OWN) -> float | None:
        return own(scenario, column, label) if whole_list else None

    found = [
        Goal("reputation (8,64), CPU us a frame", own("reputation-8x64", FRAME_COST), 1.5),
        Goal("reputation (4,20), CPU us a frame", own("reputation-4x20", FRAME_COST), 2.0),
    ]
    for kind, limit in (("never_waits", 4.0), ("waits_once", 5.0), ("threaded", 8.0)):
        cost = own(HANDLERS, FRAME_COST, f"{OWN}, {KINDS[kind]}")
        found.append(Goal(f"{KINDS[kind]} (4,20), CPU us a frame", cost, limit))
    found.append(Goal("a connection of one frame, CPU us", own("churn", CHURN_COST), 100.0))
    if references:
        ratio = results.ratio("reputation-1x1", OWN, references[0], FRAME_COST)
        found.append(Goal(f"reputation (1,1), CPU times {references[0]}'s", ratio, 1.1))
    for pace, limit in (("2000", 1.7), ("full", 2.2)):
        ratio = results.ratio(f"mirror-{pace}", OWN, BARE, COST)
        found.append(Goal(f"mirror-{pace}, CPU times the bare sender's", ratio, limit))
    found += [
        Goal(f"mirror-{pace}, requests lost", own(f"mirror-{pace}", "lost"), 0)
        for pace in ("2000", "20000", "full")
    ]
    share = results.ratio("production", OWN, UNFILTERED, "requests/s")
    kept = results.ratio("production", OWN, ACKNOWLEDGING, "requests/s")
    found += [
        Goal("production, share of an acknowledging agent's requests/s", kept, 0.85, at_least=True),
        Goal("production, share of the unfiltered requests/s", share, 0.35, at_least=True),
        Goal("production, p99 ms", own("production", "p99 ms"), 10),
        Goal("production, requests not mirrored", own("production", "lost"), 0),
        Goal("production, 4 targets, p99 ms", own("production", "p99 ms", TROUBLED), 10),
        Goal("production, 4 targets, healthy one lost", own("production", "lost", TROUBLED), 0),
    ]
    for rate in PRODUCTION_PACES:
        name = paced_name(rate)
        # Where others use the machine, the rounds differ more from each other than the cases do:
        # missed once, this tells nothing.
        p99 = results.ratio(name, TROUBLED, OWN, "p99 ms")
        found += [
            Goal(f"{name}, p99 with 4 targets, times that with 1", p99, 1.25),
            Goal(f"{name}, 4 targets, healthy one lost", own(name, "lost", TROUBLED), 0),
        ]
    found += [
        Goal("table of 1.4 million, us a lookup", with_table("iprep-table", "lookup us"), 0.3),
        Goal("table, uncompiled", with_table("iprep-table", "lookup us", UNCOMPILED), 2.0),
        Goal("table, memory MB", with_table("iprep-table", "memory MB"), 20),
        Goal("table, loaded from text in s", with_table("iprep-table", "load s"), 6),
        *(
            Goal(
                f"service with it ({connections},{depth}), CPU us a frame",
                with_table(f"reputation-table-{connections}x{depth}", FRAME_COST),
                limit,
            )
            for connections, depth, limit in ((8, 64, 2.5), (4, 20, 1.5), (300, 1, 9.0))
        ),
        Goal("service, reload at 20,000/s, p99 ms", with_table("iprep-reload", "ACK p99 ms"), 5),
        Goal("table, peak MB while it is loaded", with_table("iprep-table", "peak MB"), 250),
    ]
    for target in ("closed", "silent"):
        label = f"{OWN}, {target}"
        p99 = results.ratio("dead-target", label, f"{OWN}, answering", "ACK p99 us")
        found += [
            Goal(f"target {target}, peak RSS MB", own("dead-target", "peak RSS MB", label), 80),
            Goal(
                f"target {target}, requests unaccounted for",
                own("dead-target", "unaccounted", label),
                0,
            ),
            Goal(f"target {target}, lines logged", own("dead-target", "log lines", label), 600),
            Goal(f"target {target}, ACK p99 times an answering target's", p99, 1.1),
        ]
    return found
