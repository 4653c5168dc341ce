"""spoakit.metrics._histogram_cy, and the distributions that are read from it."""

import math
from array import array
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spoakit.metrics._histogram_cy import (
    BLOCK,
    BUCKETS,
    HistogramCells,
    bucket_bounds,
    bucket_index,
)
from spoakit.metrics.snapshot import Distribution

BOUNDS = bucket_bounds()


def distribution_of(values: list[float], lowest: float = 1e-6) -> Distribution:
    cells = array("d", bytes(8 * BLOCK))
    histogram = HistogramCells(memoryview(cells), lowest)
    for value in values:
        histogram.observe(value)
    return Distribution(cells, lowest)


def test_buckets_are_3_to_8_percent_wide() -> None:
    assert len(BOUNDS) == BUCKETS - 1 == 385
    widths = [upper / lower - 1 for lower, upper in pairwise(BOUNDS)]
    assert min(widths) > 0.03
    assert max(widths) < 0.08
    assert 0.045 < sum(widths) / len(widths) < 0.055


@given(st.floats(1e-3, 1e9))
def test_a_value_is_in_the_bucket_whose_bounds_it_is_between(value: float) -> None:
    index = bucket_index(value)
    lower = BOUNDS[index - 1] if index else 0.0
    upper = BOUNDS[index] if index < len(BOUNDS) else math.inf
    assert lower * (1 - 1e-9) <= value <= upper * (1 + 1e-9)


@pytest.mark.parametrize(
    ("value", "index"),
    [(0.0, 0), (-1.0, 0), (math.nan, 0), (0.999, 0), (1.0, 1), (1e8, 385), (math.inf, 385)],
)
def test_the_ends(value: float, index: int) -> None:
    assert bucket_index(value) == index


@given(st.lists(st.floats(2e-6, 90), min_size=1, max_size=200), st.sampled_from([0.5, 0.99, 0.999]))
def test_percentiles_are_true_to_a_bucket(values: list[float], share: float) -> None:
    exact = sorted(values)[max(0, math.ceil(share * len(values)) - 1)]
    assert distribution_of(values).quantile(share) == pytest.approx(exact, rel=0.08)


def test_nothing_observed_has_no_percentile() -> None:
    assert math.isnan(distribution_of([]).quantile(0.5))


def test_what_is_beyond_the_bounds_is_counted() -> None:
    distribution = distribution_of([1e-9, 1000.0])
    assert distribution.count == 2
    assert distribution.quantile(1.0) == pytest.approx(100)
    assert distribution.cumulative()[0] == (1e-6, 1)
    assert distribution.cumulative()[-1] == (100.0, 1)


@given(st.lists(st.floats(1e-7, 200), max_size=100))
def test_cumulative_counts_are_exact(values: list[float]) -> None:
    shown = distribution_of(values).cumulative()
    assert len(shown) == 25
    for bound, count in shown:
        close = sum(math.isclose(value, bound, rel_tol=1e-9) for value in values)
        assert abs(count - sum(value < bound for value in values)) <= close


def test_bounds_are_1_2_5() -> None:
    bounds = [bound for bound, _ in distribution_of([]).cumulative()]
    assert bounds[:5] == [1e-6, 2e-6, 5e-6, 1e-5, 2e-5]
    assert bounds[-3:] == [20, 50, 100]


def test_several_of_one_mean_are_observed_at_once() -> None:
    cells = array("d", bytes(8 * BLOCK))
    HistogramCells(memoryview(cells), 1e-6).observe(0.25, 4)
    distribution = Distribution(cells, 1e-6)
    assert (distribution.count, distribution.sum) == (4, 1.0)
