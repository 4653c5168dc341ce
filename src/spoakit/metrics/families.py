"""Declarations of metrics.

A declaration is a constant of a module. It must be made before the workers are forked, because the
shared memory has room for the metrics that are declared by then.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, ClassVar, Final, Literal, Protocol, Self, TypeVar

from spoakit.exceptions import RegistrationError

OTHER: Final = "other"
"""Value of all labels of the series that counts for series over the limit."""

_NAME: Final = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_LABEL: Final = re.compile(r"(?!__)[a-zA-Z_][a-zA-Z0-9_]*")
_RESERVED_LABELS: Final = frozenset({"le", "quantile", "worker"})
_MAX_LIMIT: Final = 4096
_MAX_LABELS: Final = 4
_DEFAULT_LIMIT: Final = 32
_DEFAULT_HISTOGRAM_LIMIT: Final = 8


Merge = Literal["sum", "max", "worker"]


class MetricKind(Enum):
    """Kind of a metric, as Prometheus names it."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


class Recorder(Protocol):
    """Interface of a process's metrics; see `spoakit.metrics.memory.WorkerMetrics`."""

    def add(self, family: Any, amount: float = 1, *values: str) -> None:
        """Add to a counter or gauge."""

    def set(self, family: Any, value: float, *values: str) -> None:
        """Set a gauge."""

    def observe(self, family: Any, value: float, *values: str) -> None:
        """Count a value into a histogram."""


@dataclass(frozen=True, slots=True, eq=False)
class Family:
    """Metric, with a series for each combination of its labels' values.

    Attributes:
        kind: counter, gauge or histogram.
        name: its name, by Prometheus' conventions.
        help: a sentence that says what it shows.
        labels: the names of its labels.
        limit: limit on the number of series, including the one for others; 1 without labels.
    """

    kind: ClassVar[MetricKind]

    name: str
    help: str
    labels: tuple[str, ...]
    limit: int

    def order_values(self, labels: dict[str, object]) -> tuple[str, ...]:
        """Return the values of the labels as text, in the order of the declaration.

        Raises:
            TypeError: a label is missing or unknown.
        """
        if len(labels) != len(self.labels) or not all(label in labels for label in self.labels):
            wanted = ", ".join(self.labels) or "none"
            raise TypeError(f"{self.name}: labels must be {wanted}, got {', '.join(labels)}")
        return tuple(str(labels[label]) for label in self.labels)

    def same_as(self, other: "Family") -> bool:
        """Return whether another declaration is equal to this one."""
        return type(self) is type(other) and all(
            getattr(self, field) == getattr(other, field) for field in self.__dataclass_fields__
        )


@dataclass(frozen=True, slots=True, eq=False)
class Counter(Family):
    """Metric that only grows; see `counter`."""

    kind: ClassVar[MetricKind] = MetricKind.COUNTER

    def add(self, amount: float = 1, /, **labels: object) -> None:
        """Add to the series with these values of the labels.

        Raises:
            TypeError: a label is missing or unknown.
            ValueError: the amount is negative.
        """
        if amount < 0:
            raise ValueError(f"{self.name}: the amount must not be negative, got {amount}")
        _process.add(self, amount, *self.order_values(labels))


@dataclass(frozen=True, slots=True, eq=False)
class Gauge(Family):
    """Metric that goes up and down, and is cleared when its worker ends; see `gauge`.

    Attributes:
        merge: how to merge the workers' values: "sum", "max", or "worker" for a series of each
            worker with the label "worker".
        lost_as: a counter, and the value of its last label, to which the value is added when a
            worker ends unexpectedly; the counter's other labels are the gauge's.
    """

    kind: ClassVar[MetricKind] = MetricKind.GAUGE

    merge: Merge = "sum"
    lost_as: tuple[Counter, str] | None = None

    def add(self, amount: float = 1, /, **labels: object) -> None:
        """Add to the series with these values of the labels, or subtract from it.

        Raises:
            TypeError: a label is missing or unknown.
        """
        _process.add(self, amount, *self.order_values(labels))

    def set(self, value: float, /, **labels: object) -> None:
        """Set the series with these values of the labels.

        Raises:
            TypeError: a label is missing or unknown.
        """
        _process.set(self, value, *self.order_values(labels))


@dataclass(frozen=True, slots=True, eq=False)
class Histogram(Family):
    """Metric that shows a distribution; see `histogram`.

    Attributes:
        lowest: the lowest bound of its buckets; the highest bound is 10**8 times that.
    """

    kind: ClassVar[MetricKind] = MetricKind.HISTOGRAM

    lowest: float = 1e-6

    def observe(self, value: float, /, **labels: object) -> None:
        """Count a value into the series with these values of the labels.

        Raises:
            TypeError: a label is missing or unknown.
        """
        _process.observe(self, value, *self.order_values(labels))


F = TypeVar("F", bound=Family)

_families: dict[str, Family] = {}


def counter(
    name: str, help: str, *, labels: Sequence[str] = (), limit: int = _DEFAULT_LIMIT
) -> Counter:
    """Declare a metric that only grows, at a module's top level.

    An equal declaration returns the same object.

    Args:
        name: its name, by Prometheus' conventions; it ends with ``_total``.
        help: a sentence that says what it counts.
        labels: names of labels, at most four. They must have few values, and never a client's
            data: a process keeps at most 256 values, and 63 bytes of each.
        limit: limit on the number of series, 1 to 4096. Further ones are counted together, with
            "other" as the value of their labels.

    Raises:
        RegistrationError: Prometheus would refuse a name, or another metric has it.
    """
    if not name.endswith("_total"):
        raise RegistrationError(f"metric {name!r}: the name of a counter must end with _total")
    return _register(Counter(name, help, tuple(labels), limit if labels else 1))


def gauge(
    name: str,
    help: str,
    *,
    labels: Sequence[str] = (),
    limit: int = _DEFAULT_LIMIT,
    merge: Merge = "sum",
    lost_as: tuple[Counter, str] | None = None,
) -> Gauge:
    """Declare a metric that goes up and down, at a module's top level.

    It is cleared when its worker ends.

    Args:
        name: its name, by Prometheus' conventions.
        help: a sentence that says what it shows.
        labels: see `counter`.
        limit: see `counter`.
        merge: how to merge the workers' values: "sum", "max", or "worker" for a series of each
            worker with the label "worker".
        lost_as: for a gauge of unfinished work: the counter to which it is added when the worker
            ends unexpectedly, so that figures add up, and the value of the counter's last label.

    Raises:
        RegistrationError: see `counter`.
    """
    return _register(Gauge(name, help, tuple(labels), limit if labels else 1, merge, lost_as))


def histogram(
    name: str,
    help: str,
    *,
    labels: Sequence[str] = (),
    limit: int = _DEFAULT_HISTOGRAM_LIMIT,
    lowest: float = 1e-6,
) -> Histogram:
    """Declare a metric that shows a distribution, at a module's top level.

    It has 48 buckets a decade, 3 to 7 % wide, which is the precision of percentiles. Each series
    takes 3 KB for each worker.

    Args:
        name: its name, by Prometheus' conventions; it ends with its unit: ``_seconds``, ``_bytes``.
        help: a sentence that says what it observes.
        labels: see `counter`.
        limit: see `counter`.
        lowest: the lowest bound of the buckets, above 0. The highest bound is 10**8 times that:
            100 s with 1e-6, for seconds, and 100 MB with 1, for bytes. Values beyond the bounds
            are counted too.

    Raises:
        RegistrationError: see `counter`; or the lowest bound is not above 0.
    """
    if not lowest > 0:
        raise RegistrationError(f"metric {name!r}: lowest must be above 0, got {lowest}")
    return _register(Histogram(name, help, tuple(labels), limit if labels else 1, lowest))


def declared() -> tuple[Family, ...]:
    """Return the metrics declared so far, in order."""
    return tuple(_families.values())


def find(name: str) -> Family:
    """Return the metric with a name. Raises KeyError if it is not declared."""
    try:
        return _families[name]
    except KeyError:
        raise KeyError(f"metric {name} is not declared") from None


class _NullRecorder:
    """Recorder that counts nothing, for a process that serves no agent."""

    def add(self, family: Any, amount: float = 1, *values: str) -> None:
        pass

    def set(self, family: Any, value: float, *values: str) -> None:
        pass

    def observe(self, family: Any, value: float, *values: str) -> None:
        pass


_process: Recorder = _NullRecorder()


class Recording:
    """Use of a recorder by all declarations, from now on or in a ``with`` block."""

    def __init__(self, recorder: Recorder) -> None:
        global _process
        self._previous = _process
        _process = recorder

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        global _process
        _process = self._previous


def _register(family: F) -> F:
    known = _families.get(family.name)
    if known is not None:
        if type(known) is not type(family) or not known.same_as(family):
            raise RegistrationError(f"metric {family.name!r} is already declared in another way")
        return known
    _check(family)
    _families[family.name] = family
    return family


def _check(family: Family) -> None:
    """Check names by Prometheus' rules, and that the text of two families does not clash."""
    if not _NAME.fullmatch(family.name):
        raise RegistrationError(
            f"metric {family.name!r}: a name consists of letters, digits, _ and :"
        )
    if not family.help.strip():
        raise RegistrationError(f"metric {family.name!r}: help must not be empty")
    for label in family.labels:
        if not _LABEL.fullmatch(label) or label in _RESERVED_LABELS:
            raise RegistrationError(
                f"metric {family.name!r}: label {label!r} must consist of letters, digits and _, "
                f"not begin with __, and not be one of {', '.join(sorted(_RESERVED_LABELS))}"
            )
    if len(family.labels) > _MAX_LABELS:
        raise RegistrationError(f"metric {family.name!r}: must have at most {_MAX_LABELS} labels")
    if len(set(family.labels)) < len(family.labels):
        raise RegistrationError(f"metric {family.name!r}: labels must differ")
    if not 1 <= family.limit <= _MAX_LIMIT:
        raise RegistrationError(
            f"metric {family.name!r}: limit must be 1 to {_MAX_LIMIT}, got {family.limit}"
        )
    lines = _line_names(family)
    for other in _families.values():
        if clash := lines & _line_names(other):
            raise RegistrationError(
                f"metric {family.name!r}: its line {min(clash)} is also a line of {other.name!r}"
            )


def _line_names(family: Family) -> set[str]:
    """Return the names of a family's lines in Prometheus' text."""
    if isinstance(family, Histogram):
        return {family.name} | {f"{family.name}_{end}" for end in ("bucket", "sum", "count")}
    return {family.name, family.name.removesuffix("_total")}  # OpenMetrics has both for a counter
