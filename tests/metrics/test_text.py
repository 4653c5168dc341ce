"""spoakit.metrics.text: Prometheus' text, as its own library reads it."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_prometheus

from spoakit.metrics.families import counter, gauge, histogram
from spoakit.metrics.memory import SharedMetrics
from spoakit.metrics.snapshot import Snapshot
from spoakit.metrics.text import number, render

SENT = counter("text_sent_total", 'Sent, with a \\ and "quotes".', labels=("to", "how"))
LOAD = gauge("text_load", "Load.", merge="worker")
DEPTH = gauge("text_depth", "Depth.")
TOOK = histogram("text_took_seconds", "Took.", labels=("what",))

Parse = Callable[[str], Iterable[Any]]
FORMS = [(False, parse_prometheus), (True, parse_openmetrics)]


def samples(text: str, parse: Parse) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in parse(text)
        for sample in family.samples
        if sample.name.startswith("text_")
    }


@pytest.mark.parametrize(("openmetrics", "parse"), FORMS)
def test_prometheus_reads_what_was_counted(openmetrics: bool, parse: Parse) -> None:
    metrics = SharedMetrics(3)
    for index in range(2):
        metrics.worker(index).add(SENT, 2, "a", "quickly")
        metrics.worker(index).set(LOAD, index + 0.5)
        metrics.worker(index).set(DEPTH, 3)
        metrics.worker(index).observe(TOOK, 0.003, "x")
    found = samples(render(Snapshot.take(metrics), openmetrics=openmetrics), parse)
    assert found["text_sent_total", (("how", "quickly"), ("to", "a"))] == 4
    assert found["text_load", (("worker", "1"),)] == 0.5
    assert found["text_load", (("worker", "2"),)] == 1.5
    assert ("text_load", (("worker", "3"),)) not in found
    assert found["text_depth", ()] == 6
    assert found["text_took_seconds_count", (("what", "x"),)] == 2
    assert found["text_took_seconds_sum", (("what", "x"),)] == pytest.approx(0.006)
    buckets = {
        dict(labels)["le"]: value
        for (name, labels), value in found.items()
        if name == "text_took_seconds_bucket"
    }
    assert len(buckets) == 26
    assert {float(bound): value for bound, value in buckets.items() if float(bound) < 0.01} == {
        **dict.fromkeys([1e-6, 2e-6, 5e-6, 1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3], 0),
        5e-3: 2,
    }
    assert buckets["+Inf"] == 2


@pytest.mark.parametrize(("openmetrics", "parse"), FORMS)
@given(value=st.text(st.characters(exclude_categories=["Cs"]), max_size=15))
def test_any_label_survives(openmetrics: bool, parse: Parse, value: str) -> None:
    metrics = SharedMetrics(1)
    metrics.worker(0).add(SENT, 1, value, "b")
    found = samples(render(Snapshot.take(metrics), openmetrics=openmetrics), parse)
    assert found == {("text_sent_total", (("how", "b"), ("to", value))): 1} | {
        ("text_load", (("worker", "1"),)): 0,
        ("text_depth", ()): 0,
    }


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (3.0, "3"),
        (-2.0, "-2"),
        (0.1, "0.1"),
        (2.0**60, "1.152921504606847e+18"),
        (math.inf, "+Inf"),
        (-math.inf, "-Inf"),
        (math.nan, "NaN"),
    ],
)
def test_numbers(value: float, text: str) -> None:
    assert number(value) == text
