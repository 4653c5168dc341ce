"""What was measured: scenarios of alternating cases, their tables, and JSON."""

import json
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median

from benchmarks.measure import BenchmarkError


@dataclass(frozen=True, slots=True)
class Measurement:
    """One round of one case: figures by column, and what went wrong."""

    values: Mapping[str, float]
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Case:
    """One row of a table: who is measured, and how.

    Attributes:
        label: the row's name.
        measure: makes one round.
        max_rounds: the most rounds that are made, of what takes long and only stands beside.
    """

    label: str
    measure: Callable[[], Measurement]
    max_rounds: int | None = None


@dataclass(frozen=True, slots=True)
class Scenario:
    """One table. With a baseline, a column tells each row's share of that row's figure."""

    name: str
    title: str
    cases: Sequence[Case]
    baseline: tuple[str, str] | None = None  # label, column


@dataclass(frozen=True, slots=True)
class Problem:
    """What went wrong in one round of one case."""

    scenario: str
    label: str
    round: int
    text: str

    def __str__(self) -> str:
        return f"{self.scenario}, {self.label}, round {self.round}: {self.text}"


@dataclass(slots=True)
class Results:
    """All figures so far: by scenario, case and column, one a round."""

    figures: dict[str, dict[str, dict[str, list[float]]]] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def run(self, scenario: Scenario, rounds: int) -> None:
        """Measure the cases of a scenario in turn, `rounds` times; a failing case is left out."""
        rows = self.figures.setdefault(scenario.name, {})
        failed: set[str] = set()
        for number in range(1, rounds + 1):
            for case in scenario.cases:
                if case.label in failed or number > (case.max_rounds or rounds):
                    continue
                try:
                    measured = case.measure()
                except BenchmarkError as error:
                    measured = Measurement({}, (str(error),))
                    failed.add(case.label)
                columns = rows.setdefault(case.label, {})
                for column, value in measured.values.items():
                    columns.setdefault(column, []).append(value)
                self.problems += [
                    Problem(scenario.name, case.label, number, text) for text in measured.problems
                ]

    def median(self, scenario: str, label: str, column: str) -> float | None:
        """Return a figure's median over the rounds, or None where it was not measured."""
        rounds = self.figures.get(scenario, {}).get(label, {}).get(column)
        return median(rounds) if rounds else None

    def ratio(self, scenario: str, label: str, baseline: str, column: str) -> float | None:
        """Return the ratio of two rows' medians, or None where one was not measured."""
        figure, base = (self.median(scenario, row, column) for row in (label, baseline))
        return figure / base if figure is not None and base else None

    def table(self, scenario: Scenario) -> str:
        """Lay out a scenario's figures: median (min-max) of the rounds."""
        rows = self.figures.get(scenario.name, {})
        columns = list(dict.fromkeys(column for row in rows.values() for column in row))
        header = ["", *columns]
        lines = [[label, *(_cell(row.get(column)) for column in columns)]
                 for label, row in rows.items()]  # fmt: skip
        if scenario.baseline and rows:
            label, column = scenario.baseline
            header.append(f"{column.split()[0]} x {label}")
            for line in lines:
                ratio = self.ratio(scenario.name, line[0], label, column)
                line.append("-" if ratio is None else f"{ratio:.2f}")
        widths = [max(map(len, cells)) for cells in zip(header, *lines, strict=True)]
        text = [f"{scenario.name}: {scenario.title}"]
        for cells in (header, *lines):
            first, *others = (cell.rjust(width) for cell, width in zip(cells, widths, strict=True))
            text.append("  ".join(["", first.strip().ljust(widths[0]), *others]))
        return "\n".join(text)

    def write(self, path: Path) -> None:
        """Write everything, every round's figure, as JSON."""
        machine = {
            "cores": os.cpu_count(),
            "kernel": platform.release(),
            "python": platform.python_version(),
        }
        problems = [asdict(problem) for problem in self.problems]
        content = {"machine": machine, "figures": self.figures, "problems": problems}
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _cell(rounds: list[float] | None) -> str:
    if not rounds:
        return "-"
    low, middle, high = min(rounds), median(rounds), max(rounds)
    if low == high:
        return _number(middle)
    return f"{_number(middle)} ({_number(low)}-{_number(high)})"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.2f}"
