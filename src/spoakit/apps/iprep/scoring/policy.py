"""Policy: from the results of all sources for an address to its score. No I/O, no state."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Final

from spoakit.apps.iprep.config.schema import PolicySettings
from spoakit.apps.iprep.config.sources import MAX_SCORE, SourceSettings


class Listing(Enum):
    """What a source says of an address."""

    LISTED = "listed"
    ABSENT = "absent"
    FAILED = "failed"
    OUT = "out"
    NOT_ASKED = "not asked"


class Rule(Enum):
    """What decided about an address."""

    ALLOW = "allow"
    BAN = "ban"
    PRIVATE = "private"
    LOWEST = "lowest"
    WEIGHTED = "weighted"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class SourceResult:
    """What one source says of an address.

    Attributes:
        source: who says it.
        state: whether it has the address, has not, could not be asked, is out because it failed
            its self-test, or was not asked because nothing could come of it.
        score: 0 (worst) to 100, of an address that is listed; None for the source's own.
        category: its kind; "" for the source's own.
    """

    source: SourceSettings = field(hash=False)  # hashing it is slow; the other fields suffice
    state: Listing
    score: int | None = None
    category: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The score of an address and how it came about.

    Attributes:
        score: 0 (worst) to 100.
        rule: what decided.
        source: the name of the source that did, with `Rule.WEIGHTED` of the one that took most;
            "" for none.
        category: what it says is the kind of the address; "" for nothing.
        results: what all sources said.
        observed: the sources with mode "observe" that say something of the address, with the score
            that there would have been if each had counted, too.
    """

    score: int
    rule: Rule
    source: str = ""
    category: str = ""
    results: tuple[SourceResult, ...] = ()
    observed: tuple[tuple[str, int], ...] = ()


# Verdicts by these do not depend on sources that were not asked.
_FINAL: Final = (Rule.ALLOW, Rule.BAN, Rule.PRIVATE)


class Policy:
    """Makes verdicts as the settings result.

    Args:
        settings: how says make a score.
    """

    def __init__(self, settings: PolicySettings) -> None:
        self._settings = settings

    def judge(
        self, results: Iterable[SourceResult], *, allowed: bool = False, private: bool = False
    ) -> Verdict:
        """Return the verdict on an address.

        First come those that are allowed, then those that are not of the public Internet, then
        the sources. It depends on nothing else, so that who asks often can keep it.

        Args:
            results: what each source says of the address.
            allowed: whether it is in `PolicySettings.allow`.
            private: whether it is not of the public Internet.
        """
        results = tuple(results)
        counting = tuple(each for each in results if each.source.mode != "observe")
        verdict = self._judge(counting, allowed=allowed, private=private)
        if len(counting) == len(results):
            return verdict
        observed = tuple(
            (
                each.source.name,
                self._judge((*counting, each), allowed=allowed, private=private).score,
            )
            for each in results
            if each.source.mode == "observe" and (_counts(each) or _allows(each))
        )
        return replace(verdict, results=results, observed=observed)

    def _judge(self, results: tuple[SourceResult, ...], *, allowed: bool, private: bool) -> Verdict:
        """Return the verdict of results that all count."""
        if allowed:
            return Verdict(MAX_SCORE, Rule.ALLOW, results=results)
        for result in results:
            if _allows(result):
                return Verdict(
                    MAX_SCORE, Rule.ALLOW, result.source.name, _category(result), results
                )
        if private and not self._settings.block_private:
            return Verdict(self._settings.unknown, Rule.PRIVATE, results=results)
        counting = [result for result in results if _counts(result)]
        if not counting:
            return Verdict(self._settings.unknown, Rule.UNKNOWN, results=results)
        if self._settings.combine == "lowest":
            return _lowest(counting, results)
        return self._weighted(counting, results)

    def is_decided(self, verdict: Verdict, pending: Sequence[SourceResult]) -> bool:
        """Return whether the score is the same whatever the sources answer that were not asked.

        Args:
            verdict: the verdict without them.
            pending: of each of them, the result with the lowest score that it can have.
        """
        if not pending or verdict.rule in _FINAL:
            return True
        if any(result.source.allow for result in pending):
            return False
        if self._settings.combine == "weighted":
            return verdict.score == 0 or not any(map(_weight, pending))
        return verdict.rule is Rule.LOWEST and verdict.score <= min(map(score_of, pending))

    def _weighted(
        self, counting: Sequence[SourceResult], results: tuple[SourceResult, ...]
    ) -> Verdict:
        heaviest = max(counting, key=_weight)  # the first of equal ones
        score = self._settings.unknown - sum(map(_weight, counting))
        return Verdict(
            max(0, round(score)), Rule.WEIGHTED, heaviest.source.name, _category(heaviest), results
        )


def _lowest(counting: Sequence[SourceResult], results: tuple[SourceResult, ...]) -> Verdict:
    worst = min(counting, key=score_of)  # the first of equal ones
    return Verdict(score_of(worst), Rule.LOWEST, worst.source.name, _category(worst), results)


def score_of(result: SourceResult) -> int:
    """Return the score that a source gives an address: its own, its category's, the source's."""
    return result.source.score_of(result.score, result.category)


def _counts(result: SourceResult) -> bool:
    """Whether a result counts: of a source that has the address, or that failed closed."""
    if result.state is Listing.FAILED:
        return result.source.failed == "closed"
    return result.state is Listing.LISTED and not result.source.allow


def _allows(result: SourceResult) -> bool:
    """Return whether a result is of a source that never blocks what it has, and has the address."""
    return result.source.allow and result.state is Listing.LISTED


def _weight(result: SourceResult) -> float:
    return (MAX_SCORE - score_of(result)) * result.source.weight


def _category(result: SourceResult) -> str:
    return result.category or result.source.category
