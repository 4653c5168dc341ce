# cython: wraparound=False
"""Buckets of histograms. Hot code.

Plain Python that compiles to C (see ``spoakit._cython``). A decade has 48 buckets, 3 to 7 % wide:
14 from 1 to 2, 20 from 2 to 5, 14 from 5 to 10. So the bounds 1, 2, 5, 10, ... of Prometheus' text
are bounds of buckets, and its cumulative counts are exact.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spoakit import _cython as cython
else:
    try:
        import cython
    except ModuleNotFoundError:
        from spoakit import _cython as cython

COMPILED: bool = cython.compiled

DECADES: int = 8
_PER_DECADE: int = 48
BUCKETS: int = DECADES * _PER_DECADE + 2
"""Number of buckets: 48 for each decade, one below the lowest bound, one above the highest."""
BLOCK: int = BUCKETS + 1
"""Number of cells of a histogram: its buckets, and the sum of the values."""

_LAST = cython.declare(cython.Py_ssize_t, 8 * 48 + 1)
_SUM = cython.declare(cython.Py_ssize_t, 8 * 48 + 2)


@cython.cclass
class HistogramCells:
    """One series of a histogram, of one process; `WorkerMetrics.histogram` makes it.

    Args:
        cells: a buffer of `BLOCK` doubles.
        lowest: the lowest bound of the family.
    """

    if not cython.compiled:
        _cells: Any
        _scale: float

    def __init__(self, cells: Any, lowest: float) -> None:
        self._cells = cells
        self._scale = 1 / lowest

    def observe(self, value: float, count: int = 1) -> None:
        """Count a value, in the histogram's unit, or `count` values of this mean."""
        self._observe(value, count)

    @cython.cfunc
    @cython.exceptval(-1, check=True)
    def _observe(self, value: cython.double, count: cython.Py_ssize_t) -> cython.Py_ssize_t:
        self._cells[bucket_index(value * self._scale)] += count
        self._cells[_SUM] += value * count
        return 0


@cython.ccall
@cython.exceptval(-1, check=False)
def bucket_index(value: cython.double) -> cython.Py_ssize_t:
    """Return the index of the bucket for a value, given in units of the lowest bound."""
    index: cython.Py_ssize_t = 1
    if not value >= 1:  # NaN, too
        return 0
    while value >= 10:
        value *= 0.1
        index += 48
        if index >= _LAST:
            return _LAST
    # The conversion to an integer cannot overflow below 10.
    if value < 2:
        index += cython.cast(cython.Py_ssize_t, (value - 1) * 14)
    elif value < 5:
        index += 14 + cython.cast(cython.Py_ssize_t, (value - 2) * (20 / 3))
    else:
        index += 34 + cython.cast(cython.Py_ssize_t, (value - 5) * 2.8)
    return index


def merge(total: Any, part: Any) -> None:
    """Add the cells of one histogram to another one."""
    into = cython.declare("double[::1]", total)
    cells = cython.declare("const double[::1]", part)
    index: cython.Py_ssize_t
    for index in range(_SUM + 1):
        into[index] += cells[index]


def bucket_bounds() -> list[float]:
    """Return the upper bounds of all buckets but the last, in units of the lowest bound."""
    bounds = [1.0]
    for decade in range(DECADES):
        unit = 10.0**decade
        bounds += [unit * (1 + step / 14) for step in range(1, 15)]
        bounds += [unit * (2 + step * 3 / 20) for step in range(1, 21)]
        bounds += [unit * (5 + step * 5 / 14) for step in range(1, 15)]
    return bounds
