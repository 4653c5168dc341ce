"""Scores are those that Python's `ipaddress` leads to. `make fuzz` compares many more."""

import pytest

from spoakit.apps.iprep.snapshot import builder
from tests.support.iprep_oracle import LISTS, check_lists


@pytest.mark.parametrize("seed", range(1000 // LISTS))
def test_scores_of_random_lists_are_those_of_the_oracle(seed: int) -> None:
    assert check_lists(seed) > 0


def test_another_score_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builder, "_worst_last", lambda ranges, scores: ranges)
    with pytest.raises(AssertionError):
        sum(map(check_lists, range(20)))
