"""spoakit.server.worker: what a worker sets for its whole process."""

import gc

import pytest

from spoakit.server.worker import _collect_less_often


@pytest.mark.parametrize(("own", "kept"), [(700, 5_000), (2_000, 5_000), (50_000, 50_000), (0, 0)])
def test_garbage_is_collected_less_often_unless_the_user_says_otherwise(
    own: int, kept: int
) -> None:
    before = gc.get_threshold()
    try:
        gc.set_threshold(own, 10, 10)
        _collect_less_often()
        assert gc.get_threshold()[:2] == (kept, 10)
    finally:
        gc.set_threshold(*before)
