"""Text formats for metrics: Prometheus 0.0.4 and OpenMetrics 1.0.

https://prometheus.io/docs/instrumenting/exposition_formats/ and OpenMetrics' specification.
"""

from collections.abc import Iterator, Sequence
from math import isinf, isnan

from spoakit.metrics.families import Counter, Family, Gauge, Histogram
from spoakit.metrics.memory import Labels
from spoakit.metrics.snapshot import Distribution, Snapshot

PROMETHEUS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS_TYPE = "application/openmetrics-text; version=1.0.0; charset=utf-8"


def render(snapshot: Snapshot, *, openmetrics: bool = False) -> str:
    """Return a snapshot as text for Prometheus.

    Args:
        snapshot: the snapshot.
        openmetrics: use the format of OpenMetrics.
    """
    lines: list[str] = []
    for family in (*snapshot.values, *snapshot.by_worker, *snapshot.distributions):
        samples = list(_samples(family, snapshot))
        if not samples and family.labels:
            continue  # no series of it has been counted
        name = family.name
        if openmetrics and isinstance(family, Counter):
            name = name.removesuffix("_total")
        lines.append(f"# HELP {name} {_escape_help(family.help, openmetrics)}")
        lines.append(f"# TYPE {name} {family.kind.value}")
        lines += samples
    if openmetrics:
        lines.append("# EOF")
    return "\n".join(lines) + "\n"


def _samples(family: Family, snapshot: Snapshot) -> Iterator[str]:
    if isinstance(family, Histogram):
        for labels, distribution in sorted(snapshot.distributions[family].items()):
            yield from _histogram(family, labels, distribution)
    elif isinstance(family, Gauge) and family.merge == "worker":
        names = ("worker", *family.labels)
        for worker, series in snapshot.by_worker[family].items():
            for labels, value in sorted(series.items()):
                yield f"{family.name}{_braces(names, (str(worker), *labels))} {number(value)}"
    else:
        for labels, value in sorted(snapshot.values[family].items()):
            yield f"{family.name}{_braces(family.labels, labels)} {number(value)}"


def _histogram(family: Histogram, values: Labels, distribution: Distribution) -> Iterator[str]:
    names = (*family.labels, "le")
    for bound, count in distribution.cumulative():
        yield f"{family.name}_bucket{_braces(names, (*values, number(bound)))} {count}"
    yield f"{family.name}_bucket{_braces(names, (*values, '+Inf'))} {distribution.count}"
    braces = _braces(family.labels, values)
    yield f"{family.name}_sum{braces} {number(distribution.sum)}"
    yield f"{family.name}_count{braces} {distribution.count}"


def _braces(names: Sequence[str], values: Sequence[str]) -> str:
    if not names:
        return ""
    pairs = (f'{name}="{_escape(value)}"' for name, value in zip(names, values, strict=True))
    return "{" + ",".join(pairs) + "}"


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _escape_help(text: str, openmetrics: bool) -> str:
    text = text.replace("\\", "\\\\").replace("\n", "\\n")
    return text.replace('"', '\\"') if openmetrics else text


def number(value: float) -> str:
    """Return a number as text; whole numbers have no fraction."""
    if isnan(value):
        return "NaN"
    if isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return str(int(value)) if value == int(value) and abs(value) < 2**53 else repr(value)
