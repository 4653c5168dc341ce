"""Declarations of metrics, which a process counts by wherever it is.

A declaration is a module's constant, made when the module is imported, and so before the workers
are forked: the shared memory has room for what is declared by then, and for no more.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, ClassVar, Final, Literal, Protocol, Self, TypeVar

from spoakit.exceptions import RegistrationError

OTHER: Final = "other"
"""The value of all labels of the series that stands in for those that have no room."""

_NAME: Final = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_LABEL: Final = re.compile(r"(?!__)[a-zA-Z_][a-zA-Z0-9_]*")
_RESERVED_LABELS: Final = frozenset({"le", "quantile", "worker"})
_MAX_LIMIT: Final = 4096
_MAX_LABELS: Final = 4
_DEFAULT_LIMIT: Final = 32
_DEFAULT_HISTOGRAM_LIMIT: Final = 8


Merge = Literal["sum", "max", "worker"]


class MetricKind(Enum):
    """Kind of a metric, by Prometheus' names."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


class Recorder(Protocol):
    """The metrics of one process; see `spoakit.metrics.memory.WorkerMetrics`."""

    def add(self, family: Any, amount: float = 1, *values: str) -> None:
        """Add to a counter or gauge."""

    def set(self, family: Any, value: float, *values: str) -> None:
        """Set a gauge."""

    def observe(self, family: Any, value: float, *values: str) -> None:
        """Count a value into a histogram."""


@dataclass(frozen=True, slots=True, eq=False)
class Family:
    """A metric by its name, with a series for each combination of its labels' values.

    Attributes:
        kind: counter, gauge or histogram.
        name: by Prometheus' conventions.
        help: a sentence.
        labels: the names of its labels.
        limit: how many series it may have, the one for others included; 1 without labels.
    """

    kind: ClassVar[MetricKind]

    name: str
    help: str
    labels: tuple[str, ...]
    limit: int

    def values_of(self, labels: dict[str, object]) -> tuple[str, ...]:
        """Return the values of the labels in their order, as text.

        Raises:
            TypeError: one is missing, or is not one of the family's.
        """
        if len(labels) != len(self.labels) or not all(label in labels for label in self.labels):
            wanted = ", ".join(self.labels) or "none"
            raise TypeError(f"{self.name}: its labels are {wanted}, not {', '.join(labels)}")
        return tuple(str(labels[label]) for label in self.labels)

    def same_as(self, other: "Family") -> bool:
        """Return whether another declaration says the same."""
        return type(self) is type(other) and all(
            getattr(self, field) == getattr(other, field) for field in self.__dataclass_fields__
        )


@dataclass(frozen=True, slots=True, eq=False)
class Counter(Family):
    """A figure that only grows; see `counter`."""

    kind: ClassVar[MetricKind] = MetricKind.COUNTER

    def add(self, amount: float = 1, /, **labels: object) -> None:
        """Add to the series with these values of the labels.

        Raises:
            TypeError: these are not its labels.
            ValueError: the amount is negative.
        """
        if amount < 0:
            raise ValueError(f"{self.name}: a counter only grows, got {amount}")
        _process.add(self, amount, *self.values_of(labels))


@dataclass(frozen=True, slots=True, eq=False)
class Gauge(Family):
    """A figure that goes up and down, and ends with its worker; see `gauge`.

    Attributes:
        merge: how the workers' become one: their "sum", the "max", or each stands for itself, with
            the label "worker".
        lost_as: the counter, and the value of its last label, by which what a worker had in its
            hands is counted when it ends unexpectedly; its other labels are the gauge's.
    """

    kind: ClassVar[MetricKind] = MetricKind.GAUGE

    merge: Merge = "sum"
    lost_as: tuple[Counter, str] | None = None

    def add(self, amount: float = 1, /, **labels: object) -> None:
        """Add to the series with these values of the labels, or subtract from it.

        Raises:
            TypeError: these are not its labels.
        """
        _process.add(self, amount, *self.values_of(labels))

    def set(self, value: float, /, **labels: object) -> None:
        """Set the series with these values of the labels.

        Raises:
            TypeError: these are not its labels.
        """
        _process.set(self, value, *self.values_of(labels))


@dataclass(frozen=True, slots=True, eq=False)
class Histogram(Family):
    """The distribution of a figure; see `histogram`.

    Attributes:
        lowest: the lowest bound of its buckets; the highest is 10**8 times that.
    """

    kind: ClassVar[MetricKind] = MetricKind.HISTOGRAM

    lowest: float = 1e-6

    def observe(self, value: float, /, **labels: object) -> None:
        """Count a value into the series with these values of the labels.

        Raises:
            TypeError: these are not its labels.
        """
        _process.observe(self, value, *self.values_of(labels))


F = TypeVar("F", bound=Family)

_families: dict[str, Family] = {}


def counter(
    name: str, help: str, *, labels: Sequence[str] = (), limit: int = _DEFAULT_LIMIT
) -> Counter:
    """Declare a figure that only grows, at a module's top level.

    Declaring it again with the same words returns the same one.

    Args:
        name: by Prometheus' conventions; it ends with ``_total``.
        help: a sentence that says what is counted.
        labels: names of labels, at most four. Their values are few, and never a client's data: a
            process keeps 256 of them, and 63 bytes of each.
        limit: how many series the family may have, 1 to 4096. Where more are asked for, the last
            one counts for them, and its labels say "other".

    Raises:
        RegistrationError: a name is not one that Prometheus takes, or stands for another metric.
    """
    if not name.endswith("_total"):
        raise RegistrationError(f"metric {name!r}: the name of a counter ends with _total")
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
    """Declare a figure that goes up and down and ends with its worker, at a module's top level.

    Args:
        name: by Prometheus' conventions.
        help: a sentence that says what it is.
        labels: see `counter`.
        limit: see `counter`.
        merge: how the workers' become one: their "sum", the "max", or each stands for itself, with
            the label "worker".
        lost_as: for a gauge of what a worker has in its hands: the counter to which that is added
            when the worker ends unexpectedly, so that the figures add up, and the value of the
            counter's last label.

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
    """Declare the distribution of a figure, at a module's top level.

    Inside it has 48 buckets to a decade, 3 to 7 % wide, so that percentiles are true to that. Each
    series takes 3 KB for each worker.

    Args:
        name: by Prometheus' conventions; it ends with its unit, as ``_seconds`` or ``_bytes``.
        help: a sentence that says what is observed.
        labels: see `counter`.
        limit: see `counter`.
        lowest: the lowest bound of the buckets, above 0. The highest is 10**8 times that: with
            1e-6, for seconds, 100 s; with 1, for bytes, 100 MB. What is beyond is counted as well.

    Raises:
        RegistrationError: see `counter`; or the lowest bound is not above 0.
    """
    if not lowest > 0:
        raise RegistrationError(f"metric {name!r}: lowest must be above 0, got {lowest}")
    return _register(Histogram(name, help, tuple(labels), limit if labels else 1, lowest))


def declared() -> tuple[Family, ...]:
    """Return all that has been declared so far, in that order."""
    return tuple(_families.values())


def find(name: str) -> Family:
    """Return the metric of a name. Raises KeyError if there is none."""
    try:
        return _families[name]
    except KeyError:
        raise KeyError(f"there is no metric {name}") from None


class _Nobody:
    """Counts nothing: for a process, or a test, that serves no agent."""

    def add(self, family: Any, amount: float = 1, *values: str) -> None:
        pass

    def set(self, family: Any, value: float, *values: str) -> None:
        pass

    def observe(self, family: Any, value: float, *values: str) -> None:
        pass


_process: Recorder = _Nobody()


class Recording:
    """Has declarations count by a recorder from now on; as a context manager, until its end."""

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
            raise RegistrationError(f"metric {family.name!r} is declared already, in other words")
        return known
    _check(family)
    _families[family.name] = family
    return family


def _check(family: Family) -> None:
    """Check what Prometheus asks of names, and that none is two families' in its text."""
    if not _NAME.fullmatch(family.name):
        raise RegistrationError(f"metric {family.name!r}: a name has letters, digits, _ and :")
    if not family.help.strip():
        raise RegistrationError(f"metric {family.name!r}: it needs a sentence of help")
    for label in family.labels:
        if not _LABEL.fullmatch(label) or label in _RESERVED_LABELS:
            raise RegistrationError(
                f"metric {family.name!r}: {label!r} cannot be a label; one has letters, digits and "
                f"_, does not begin with __, and is none of {', '.join(sorted(_RESERVED_LABELS))}"
            )
    if len(family.labels) > _MAX_LABELS:
        raise RegistrationError(f"metric {family.name!r}: it has more than {_MAX_LABELS} labels")
    if len(set(family.labels)) < len(family.labels):
        raise RegistrationError(f"metric {family.name!r}: a label is there twice")
    if not 1 <= family.limit <= _MAX_LIMIT:
        raise RegistrationError(
            f"metric {family.name!r}: limit must be 1 to {_MAX_LIMIT}, got {family.limit}"
        )
    lines = _lines_of(family)
    for other in _families.values():
        if clash := lines & _lines_of(other):
            raise RegistrationError(
                f"metric {family.name!r}: {min(clash)} would be a line of {other.name!r}, too"
            )


def _lines_of(family: Family) -> set[str]:
    """Return the names that a family's lines have in Prometheus' text."""
    if isinstance(family, Histogram):
        return {family.name} | {f"{family.name}_{end}" for end in ("bucket", "sum", "count")}
    return {family.name, family.name.removesuffix("_total")}  # OpenMetrics has both for a counter
